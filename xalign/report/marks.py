"""Tests of a table's systems against a baseline, and its average column."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xalign.analysis.significance import t_over_languages
from xalign.analysis.systems import Scored, compare_on
from xalign.config import XalignError
from xalign.report.contenders import UNTRAINED, Contender, Member
from xalign.rows import Row, stars
from xalign.tables import is_number

if TYPE_CHECKING:
    from xalign.report.pivot import Cell, Pivot

Runs = Sequence[tuple[Member, Row]]
Against = Mapping[str, "Contender | None"] | None
Found = Mapping[tuple[str, str], tuple[Runs, str]]  # (row, column) → its runs, and why there is none


OVER_SEEDS = "s.e. over seeds of each seed's average"


def rivals(rows: Sequence[Contender], baseline: str | None) -> dict[str, Contender | None] | None:
    """Row → the system that it is tested against; None for the untrained models of its own runs. Empty where the baseline is no row.

    Raises:
        XalignError: for a baseline that stands for several rows equally well.
    """
    if baseline in (None, UNTRAINED):
        return None
    systems = [c for c in rows if not c.reference]
    folder = Path(baseline).resolve()
    named = [c for c in systems if c.label == baseline] or [c for c in systems if c.name == baseline] or [
        c for c in systems if any(run.folder.resolve() == folder for run in c.runs)]
    out: dict[str, Contender | None] = {}
    for c in systems if named else ():
        fit = named if len(named) == 1 else [r for r in named if r.like == c.like]
        if len(fit) > 1 and c not in named:
            raise XalignError(f"--baseline {baseline}: stands for several rows: {', '.join(r.label for r in fit)}; name one")
        out[c.label] = None if c in named or not fit else fit[0]
    return out


def scored(runs: Runs, when: str = "") -> dict[int, Scored]:
    """Seed → per-example scores; `when`: of that model of the same runs."""
    out = {}
    for m, r in runs:
        model = m.run.model(when or m.when)
        key = (r["lang"], r["task"], r["metric"])
        if key in model.examples:
            out[m.run.seed] = Scored(m.run.seed, model.trained, model.examples[key], model.row(key))
    return out


def _test(runs: Runs, rival: Runs | None) -> tuple[float | None, str]:
    """(p, note) of a cell's runs against another's; `rival` None: against the same runs' untrained models."""
    if rival is None and runs[0][0].when != "after":
        return None, ""
    if rival is None and len(runs) == 1 and is_number(runs[0][1].get("p")):
        return runs[0][1]["p"], ""  # the same test, done when the run ended
    a, b = (scored(runs, "before") if rival is None else scored(rival)), scored(runs)
    if not a or not b:
        return None, "not tested, there are no per-example scores"
    got = compare_on(runs[0][1]["metric"], a, b, bootstrap=False)
    return (got.result.p_randomisation if got.result else None), got.note


def mark_cells(pivot: Pivot, rows: Sequence[Contender], found: Found, against: Against) -> None:
    """Set p and marks; Holm's correction over the table, a model that stands in several columns counted once."""
    tested: dict[tuple[int, ...], tuple[float | None, str]] = {}
    places: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for c in rows:
        rival = against.get(c.label) if against else None
        for column in pivot.columns:
            runs, _ = found[c.label, column]
            other = found[rival.label, column][0] if rival else None
            if c.reference or not runs or (against is not None and not other):
                continue
            key = tuple(id(r) for _, r in [*runs, *(other or ())])
            places.setdefault(key, []).append((c.label, column))
            if key not in tested:
                tested[key] = _test(runs, other)
    marks = stars([p for p, _ in tested.values()])
    remarks: dict[str, list[str]] = {}
    for (key, (p, note)), mark in zip(tested.items(), marks, strict=True):
        for place in places[key]:
            pivot.cells[place] = replace(pivot.cells[place], p=p, mark=mark)
        if note:
            remarks.setdefault(note, []).append(" ".join(places[key][0]))
    pivot.tests = sum(p is not None for p, _ in tested.values())
    if against:
        named = {r.label: r for r in against.values() if r}
        pivot.baseline = next((r.name for r in named.values()), "") if len(named) > 1 else next(iter(named or against))
    elif against is None and any(c.kind == UNTRAINED for c in rows):
        pivot.baseline = UNTRAINED
    pivot.notes += [f"{', '.join(where[:6])}{' ...' if len(where) > 6 else ''}: {note}." for note, where in remarks.items()]
    if any(len(where) > 1 for where in places.values()):
        pivot.notes.append(f"A model of several target languages has one score in {pivot.source}; it stands in each of their columns.")


def add_average(pivot: Pivot, rows: Sequence[Contender], found: Found, against: Against) -> None:
    """The mean over languages, of those that every system has; where no two are, of all, for the systems that have all."""
    systems = [c for c in rows if not c.reference]

    def has(c: Contender, column: str) -> bool:
        return pivot.cells[c.label, column].value is not None

    common = [x for x in pivot.columns if all(has(c, x) for c in systems)]
    langs = common if len(common) > 1 else pivot.columns
    left = [x for x in pivot.columns if x not in langs]
    if left:
        pivot.notes.append(f"average: over {', '.join(langs)}; {', '.join(left)} not scored for every system.")
    elif len(common) < 2:
        pivot.notes.append("average: only of the systems that have every language.")
    kinds = set()
    for c in rows:
        if all(has(c, x) for x in langs):
            pivot.average[c.label], kind = average([pivot.cells[c.label, x] for x in langs], [found[c.label, x][0] for x in langs],
                                                    pivot.role == "source")
            kinds.add(kind)
    where = "source block, average" if pivot.role == "source" else "average"
    if kinds - {""}:
        pivot.notes.append(f"{where} ± {'; else '.join(sorted(kinds - {''}, key=lambda kind: kind != OVER_SEEDS))}.")
    if pivot.role == "target":
        _test_average(pivot, systems, rows, langs, against)


def average(cells: Sequence[Cell], runs: Sequence[Runs], of_source: bool) -> tuple[Cell, str]:
    """(the mean of the cells, how its standard error was found)."""
    value = statistics.fmean(x.value for x in cells if x.value is not None)
    whole = replace(cells[0], value=value, se=None, n=sum(x.n for x in cells), p=None, mark="")
    if len({x.seeds for x in cells}) == 1 and len(cells[0].seeds) > 1:
        by_seed = [statistics.fmean(r["value"] for found in runs for m, r in found if m.run.seed == seed) for seed in cells[0].seeds]
        return replace(whole, se=statistics.stdev(by_seed) / math.sqrt(len(by_seed))), OVER_SEEDS
    errors = [x.se for x in cells]
    if any(se is None for se in errors):
        return whole, ""
    if of_source:  # every model answers the same items, and one of several languages stands here several times
        return replace(whole, se=statistics.fmean(se or 0.0 for se in errors)), "mean of the s.e., an upper bound: the items are the same"
    return replace(whole, se=math.sqrt(sum((se or 0.0) ** 2 for se in errors)) / len(errors)), \
        "s.e. of the mean over languages, their errors taken as independent"


def _test_average(pivot: Pivot, systems: Sequence[Contender], rows: Sequence[Contender], langs: Sequence[str],
                  against: Against) -> None:
    """Paired t-tests over languages, Holm's correction over the systems."""
    ps: dict[str, float | None] = {}
    reasons = set()
    for c in systems:
        rival = against.get(c.label) if against is not None else next((r for r in rows if r.kind == UNTRAINED and r.like == c.like), None)
        if c.label not in pivot.average or rival is None or rival.label not in pivot.average:
            continue
        before, after = ({x: pivot.cells[r.label, x].value or 0.0 for x in langs} for r in (rival, c))
        got = t_over_languages(before, after)
        ps[c.label] = got.p
        reasons |= {got.reason} - {""}
    for label, mark in zip(ps, stars(list(ps.values())), strict=True):
        pivot.average[label] = replace(pivot.average[label], p=ps[label], mark=mark)
    k = sum(p is not None for p in ps.values())
    if k:
        pivot.notes.append(f"marks of the average: paired t-test over {len(langs)} languages, Holm's correction over {k} systems.")
    pivot.notes += [f"average not tested: {reason}." for reason in sorted(reasons)]
