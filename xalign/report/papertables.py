"""A paper's tables with ours beside them, as they are printed: scores, what can be compared whatever the scale, what is not the same."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xalign.languages import LANGUAGES
from xalign.report.against import Difference, minus
from xalign.report.beside import Beside, corrected, differences
from xalign.report.facts import Block, commands, facts, languages
from xalign.report.runs import FinishedRun
from xalign.rows import arrow
from xalign.tables import MISSING, Grid, headings, number, p_value, with_error

ERROR = "± standard error (over seeds; of one seed, over items)"
WIDTH = 120  # columns of a terminal


def grids(name: str, tables: Sequence[Beside], runs: Sequence[FinishedRun]) -> list[Grid]:
    """Everything there is to print for one experiment; the notes about the whole stand under the last grid."""
    known = facts(name)
    out = [grid for t in tables for grid in _scores(t, known)]
    out += [g for g in (_orders(tables, known["reference"]), _differences(tables, known)) if g]
    if not out:
        title = f"{known['paper']['name']} {known['place']}: {known['title']}"
        duel = known.get("duel")
        out = [Grid(title, ["", "won", "lost", "tied"], [[_of(duel), *(number(duel[k]) for k in ("win", "loss", "tie"))]])
               if duel else Grid(title, ["no numbers published"])]
    out[-1].notes += _notes(tables, known, runs)
    return out


def _of(duel: Mapping[str, str]) -> str:
    return f"{duel['method']} against {duel['against']}, {duel['task']}, {duel['lang']}"


def _published(value: float, block: Block) -> str:
    text = f"{value:.{block.digits}f}"
    return text if block.unit == "percent" else text.replace("0.", ".", 1)


def _scores(t: Beside, known: Mapping[str, Any]) -> list[Grid]:
    """The published numbers, ours and the difference, a few columns of the paper's at a time where the table would be too wide."""
    block, pc = t.block, t.block.unit == "percent"
    have = t.rows
    shared = t.shared if 1 < len(t.shared) < len(block.singles) else []
    columns = [*block.columns, *(["shared"] if shared else [])]
    names = ("paper", "ours") if t.laboratory else ("paper", "ours", "diff")
    marks: set[str] = set()

    def cells(row: str, column: str) -> list[str]:
        if column == "shared":
            theirs = t.paper(row, [c for c in shared if c in block.rows[row]])
            text, ours = _published(theirs, block), t.mean(row, shared) if row in have else None
        else:
            fixed = corrected(known, block.name, row, column)
            text, ours = _published(block.rows[row][column], block) + ("†" if fixed is not None else ""), t.ours.get((row, column))
            theirs = block.rows[row][column] if fixed is None else fixed
        if ours is None:
            return [text, *[MISSING] * (len(names) - 1)]
        diff = ours.value - theirs
        near = "" if ours.se is None or abs(diff) > 2 * ours.se else "~"
        marks.update([near] if not t.laboratory else [], "‡" if ours.lacking else "")
        return [text, with_error(ours.value, ours.se, pc) + ("‡" if ours.lacking else ""), number(diff, pc, sign=True) + near][:len(names)]

    def table(down: Sequence[str], across: Sequence[str], turned: bool) -> Grid:
        """Without a number of ours the paper's alone."""
        kinds = {a: names if a == "shared" or any(((a, d) if turned else (d, a)) in t.ours for d in down) else names[:1] for a in across}
        grid = Grid("", ["", *(kind for a in across for kind in kinds[a])] if t.ours else ["", *across])
        for a in across if t.ours else ():
            first = 1 if not grid.groups else grid.groups[-1][1] + 1
            grid.groups.append((first, first + len(kinds[a]) - 1, a))
        grid.rows = [[d, *(c for a in across for c in (cells(a, d) if turned else cells(d, a))[:len(kinds[a])])] for d in down]
        return grid

    def parts(down: Sequence[str], across: Sequence[str], turned: bool) -> list[Grid]:
        for k in range(1, len(across) + 1):  # equal parts, as few as fit
            size = -(-len(across) // k)
            found = [table(down, across[i:i + size], turned) for i in range(0, len(across), size)]
            if max(map(_width, found)) <= WIDTH:
                break
        return found

    both = parts(list(block.rows), columns, False), parts(columns, list(block.rows), True)
    made = min(both, key=lambda grids: (len(grids), sum(map(_width, grids))))
    title = f"{known['paper']['name']} {known['place']}: {block.title} ({'percent' if pc else 'shares'})"
    title += "" if t.ours else ", the paper's numbers"
    for k, part in enumerate(made, 1):
        part.title = title + (f", {k} of {len(made)}" if len(made) > 1 else "")
    grid = made[-1]
    stand = {w for parts in block.parts.values() for p in parts for w in [t.wanted(p)] if w}
    score = " ".join((arrow(w.task), w.metric, "")) if len(stand) == 1 and (w := next(iter(stand))) else ""
    if t.laboratory and not stand:
        grid.notes.append("nothing in the laboratory stands for this test.")
    elif have and t.laboratory:
        over = dict.fromkeys(lang for o in t.ours.values() for lang in o.langs)
        own = "" if over.keys() <= {*block.columns} else f"in {_over(list(over))}, "
        grid.notes.append(f"ours: {score}of the laboratory, {own}which stands for the paper's test, {ERROR}; the scales have nothing in "
                          "common, so no difference is shown.")
    elif have:
        near = " ~ within 2 of our standard errors (the paper states none)." if "~" in marks else ""
        grid.notes.append(f"ours: {score}{ERROR}; diff = ours - paper.{near}")
    if shared:
        grid.notes.append(f"shared = mean over the columns that paper and ours both have: {', '.join(shared)}.")
    if "‡" in marks:
        some = next(o for o in t.ours.values() if o.lacking)
        grid.notes.append(f"‡ not over all languages of the paper's average: over {', '.join(some.langs)}.")
    for e in known["errata"]:
        if e.get("block") == block.name:
            values = ", ".join(f"{row} {_published(v, block)}" for row, v in e["corrected"].items())
            grid.notes.append(f"† {e['column']}: {values} by the table itself: {e['why']}.")
    return made


def _width(grid: Grid) -> int:
    lines = [[max(map(len, h.split("\n"))) for h in headings(grid)], *([len(c) for c in row] for row in grid.rows)]
    return sum(max(column) + 2 for column in zip(*lines, strict=True))


def _orders(tables: Sequence[Beside], reference: str) -> Grid | None:
    """What does not depend on the scale: who is ahead of whom, and whether a gain has the paper's sign."""
    grid = Grid("What can be compared whatever the scale: gains and order", ["", "paper", "ours", "direction"], left=(0, 3))
    for t in tables:
        rows, shared, pc = t.rows, t.shared, t.block.unit == "percent"
        if len(rows) < 2 or not shared or t.block.minus:
            continue
        base = reference if reference in rows else rows[0]
        theirs, ours = ({r: f(r) for r in rows} for f in (lambda r, t=t, s=shared: t.paper(r, s), lambda r, t=t, s=shared: t.mean(r, s)))
        same = 0
        grid.rows.append([f"{t.block.title}: gains over {base}, {_over(shared)}"])
        for row in (r for r in rows if r != base):
            a, b = theirs[row] - theirs[base], minus(ours[row], ours[base])
            assert b is not None
            agree = (a > 0) == (b.value > 0) and a != 0 != b.value
            same += agree
            near = " ~" if b.se is not None and abs(b.value) <= 2 * b.se else ""
            grid.rows.append([row, number(a, pc, sign=True), with_error(b.value, b.se, pc, sign=True),
                              ("same" if agree else "opposite") + near])
        text = f"{same} of {len(rows) - 1} gains have the paper's sign"
        if len(rows) > 2:
            from scipy.stats import kendalltau

            tau = kendalltau([theirs[r] for r in rows], [ours[r].value for r in rows])
            text += f"; order of the {len(rows)} rows: Kendall's tau {number(tau.statistic, sign=True)}, p {p_value(tau.pvalue)}"
        grid.rows.append([f"→ {text}", "", "", ""])
    if grid.rows:
        grid.notes.append("~ our gain is within 2 standard errors of nothing. The errors are those of two independent scores: too large "
                          "where the items are the same; for paired tests: python -m xalign compare.")
    return grid if grid.rows else None


def _over(columns: Sequence[str]) -> str:
    named = [LANGUAGES[c].name if c in LANGUAGES else c.replace("_", " ") for c in columns]
    return ", ".join(named) if len(named) < 4 else f"mean over {len(named)} columns"


def _differences(tables: Sequence[Beside], known: Mapping[str, Any]) -> Grid | None:
    """Comparable or not, and why: every difference with the rows that it holds for."""
    found: dict[str, dict[Difference, list[str]]] = {"paper": {}, "experiment": {}}
    rows = list(dict.fromkeys(r for t in tables for r in t.rows))
    for t in tables:
        for row in t.rows:
            for kind, listed in differences(t, row, known).items():
                for d in listed:
                    found[kind].setdefault(d, []).append(row)
    if not rows:
        return None
    some = any(found.values())
    heads = ["", "published" if found["paper"] else "asked for", "ours", "rows"]
    grid = Grid(f"Comparable: {'no' if some else 'yes'}", heads, left=(0, 1, 2, 3), wrap=(1, 2, 3))
    for kind, head in (("paper", "not as in the paper"), ("experiment", f"not as experiments/{known['experiment']}.yaml asks")):
        if found[kind]:
            grid.rows.append([head])
            for d, of in found[kind].items():
                which = [r for r in rows if r in of]
                grid.rows.append([d.what, d.theirs, d.ours, "all" if len(which) == len(rows) else ", ".join(which)])
    if not some:
        grid.rows.append([f"every setting that the paper states and that experiments/{known['experiment']}.yaml asks for is the same"])
    return grid


def _notes(tables: Sequence[Beside], known: Mapping[str, Any], runs: Sequence[FinishedRun]) -> list[str]:
    """Where it comes from, what the paper leaves open or has wrong, what is missing and how to make it."""
    paper = known["paper"]
    notes = [f"source: {paper['authors']}, {paper['title']}. {paper['venue']}. {paper['url']}, {known['place']}."]
    notes += [f"the text says: {text}." for text in known["says"]]
    notes += [f"the paper leaves open: {text}." for text in known["unsaid"]]
    notes += [f"erratum, {e['about']}: {e['why']}." for e in known["errata"] if "about" in e]
    systems = {row: s for t in tables for row, s in t.systems.items()}
    for row, s in systems.items():
        if s.left_out:
            more = f" and {len(s.left_out) - 3} more" if len(s.left_out) > 3 else ""
            notes.append(f"{row}: {s.runs[0].folder.name} and its like are shown, nearest to the experiment; other configurations are left "
                         f"out: {', '.join(s.left_out[:3])}{more}.")
    made = any(t.ours for t in tables)
    lacking = _lacking(tables, languages(known["experiment"])) if made else ""
    if runs and not made and tables:
        notes.append(f"none of the {len(runs)} finished runs has these scores" + (
            "; what they have of the laboratory: experiment=" + f"{known['experiment']}_lab." if not known["laboratory"] and any(
                r["task"] == "choice" for run in runs for r in run.rows) else "."))
    if lacking and made:
        notes.append(f"missing: {lacking}.")
    if lacking or not made:
        notes += [f"{'the missing runs' if made else 'runs'}: {line}" for line in commands(known["experiment"])]
    return notes


def _lacking(tables: Sequence[Beside], asked: Sequence[str]) -> str:
    """Rows, and of the asked languages columns, without a number of ours; rows that no method of ours trains are not missing."""
    lacks: dict[str, list[str]] = {}
    whole = set()
    for t in tables:
        columns = [c for c in t.block.singles if any(t.wanted(p) for p in t.block.parts.get(c, ()))]
        if len(t.block.columns) > 1:  # one column alone is whatever language was run
            columns = [c for c in columns if c in asked or c not in LANGUAGES or not asked]
        for row, system in t.systems.items():
            mine = [c for c in columns if (row, c) not in t.ours]
            if system.spec is not None and mine:
                lacks.setdefault(row, [])
                lacks[row] += [c for c in mine if c not in lacks[row]]
                whole |= {row} if not system.runs else set()
    found: dict[str, list[str]] = {}
    for row, columns in lacks.items():
        found.setdefault("" if row in whole else f" in {' '.join(columns)}", []).append(row)
    return "; ".join(", ".join(rows) + columns for columns, rows in found.items())
