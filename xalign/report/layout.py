"""Pivots as grids: target and source language under each other, small tables beside each other, best and second marked."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xalign.languages import LANGUAGES
from xalign.report.contenders import NO_RUN, UNTRAINED
from xalign.rows import arrow, lower_note, percent
from xalign.tables import MISSING, Grid, number, write_csv

if TYPE_CHECKING:
    from xalign.report.pivot import Cell, Pivot

BESIDE = 8  # tables of one column that stand beside each other
WIDE = 100  # characters: up to here a number and its error share a line
AVERAGE = "average"


@dataclass
class Block:
    """A pivot as texts.

    Attributes:
        cells: (row, column) → text and ``best``, ``second`` or nothing.
        faint: rows or columns that do not compete.
    """

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], tuple[str, str]]
    faint: set[str]


def thin(pivot: Pivot) -> set[tuple[str, str]]:
    """(row, column) of scores over fewer than half the items that another system has in the column, and of averages that hold one."""
    out: set[tuple[str, str]] = set()
    for column in pivot.columns:
        counts = {label: cell.n for label in pivot.rows for cell in [pivot.cells[label, column]]
                  if label not in pivot.reference and cell.value is not None}
        few = {label for label, n in counts.items() if 2 * n < max(counts.values())}
        out |= {(label, c) for label in few for c in (column, AVERAGE)}
    return out


def best_and_second(pivot: Pivot) -> dict[tuple[str, str], str]:
    """(row, column) → ``best`` or ``second`` among the systems of a column; what is equal as printed is marked alike.

    A lone system wins nothing, of two the other is not marked as second, and after two best there is no second. What is `thin`
    does not compete.
    """
    marks, few = {}, thin(pivot)
    for column in [*pivot.columns, AVERAGE]:
        cells = {label: pivot.average.get(label) if column == AVERAGE else pivot.cells[label, column] for label in pivot.rows}
        values = {label: float(f"{cell.value:.{1 if percent(pivot.metric) else 3}f}") for label, cell in cells.items()
                  if label not in pivot.reference and (label, column) not in few and cell is not None and cell.value is not None}
        order = sorted(set(values.values()), reverse=not pivot.lower)
        firsts = [label for label, value in values.items() if len(order) > 1 and value == order[0]]
        marks |= {(label, column): "best" for label in firsts}
        if len(firsts) == 1 and len(values) > 2:
            marks |= {(label, column): "second" for label, value in values.items() if value == order[1]}
    return marks


def _text(cell: Cell | None, metric: str, between: str, count: bool) -> str:
    """``.427**`` and, after `between`, ``±.022``; with its `count` of items, ``n=17``."""
    if cell is None or cell.value is None:
        return MISSING if cell is None or cell.reason == NO_RUN else "absent"
    error = "" if cell.se is None else f"{between}±{number(cell.se, percent(metric))}"
    return number(cell.value, percent(metric)) + cell.mark + error + f"{between}n={cell.n}" * count


def _items(cells: Iterable[Cell]) -> str:
    counts = sorted({c.n for c in cells if c.value is not None})
    return MISSING if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _block(pivot: Pivot, between: str) -> Block:
    columns = [*pivot.columns, *([AVERAGE] if pivot.average else [])]
    marks, few = best_and_second(pivot), thin(pivot)
    cells = {(label, c): (_text(pivot.average.get(label) if c == AVERAGE else pivot.cells[label, c], pivot.metric, between,
                                c != AVERAGE and (label, c) in few), marks.get((label, c), "")) for label in pivot.rows for c in columns}
    cells |= {("n", c): (_items(pivot.cells[label, c] for label in pivot.rows if label not in pivot.reference), "") for c in pivot.columns}
    if pivot.transposed:
        return Block(columns, ["n", *pivot.rows], {(c, label): cell for (label, c), cell in cells.items()}, {*pivot.reference, "n"})
    return Block([*pivot.rows, "n"], columns, cells, {*pivot.reference, "n"})


def pivot_grid(pivot: Pivot) -> Grid:
    """One pivot alone, for the terminal, Markdown and LaTeX."""
    return _grid([[pivot]])


def pivot_grids(pivots: Sequence[Pivot]) -> list[Grid]:
    """A report's tables: the roles of one task and metric are blocks of one table; tables of one column stand beside each other."""
    pairs: dict[tuple[str, str, str], list[Pivot]] = {}
    for p in pivots:
        pairs.setdefault((p.task, p.metric, p.lang), []).append(p)
    tables: list[list[list[Pivot]]] = []
    for pair in pairs.values():
        last = tables[-1] if tables else []
        if 0 < len(last) < BESIDE and all(len(p.columns) == 1 and not p.transposed and p.lang == pair[0].lang for p in [*pair, *last[0]]):
            last.append(pair)
        else:
            tables.append([pair])
    out = [_grid(table) for table in tables]
    said = [note for grid in out for note in grid.notes]
    common = [note for note in dict.fromkeys(said) if said.count(note) > 1]  # said once, at the end
    for grid in out:
        grid.notes = [note for note in grid.notes if note not in common]
    if out:
        out[-1].notes += common
    return out


def _grid(pairs: Sequence[Sequence[Pivot]]) -> Grid:
    """Tables beside each other, each of a target block and a source block or of one of them."""
    pivots = [p for pair in pairs for p in pair]
    first = pivots[0]
    room = 16 + 13 * sum(len(pair[0].columns) + bool(pair[0].average) for pair in pairs)
    between = " " if room <= WIDE and not first.transposed else "\n"
    blocks = [{p.role: _block(p, between) for p in pair} for pair in pairs]
    heads = [list(dict.fromkeys(c for b in pair.values() for c in b.columns)) for pair in blocks]
    names = dict.fromkeys(arrow(p.task) if len({(p.task, p.metric) for p in pivots}) > 1 else f"{arrow(p.task)} {p.metric}" for p in pivots)
    keys = [first.over, *first.by] if first.transposed else [*first.by, first.over]
    title = f"{', '.join(names)} by {' and '.join(keys)}" + (f", {first.lang}" if first.lang else "")
    grid = Grid(title, ["", *(c for own in heads for c in own)])
    if len(pairs) > 1:
        at = 1
        for own, pair in zip(heads, pairs, strict=True):
            grid.groups.append((at, at + len(own) - 1, f"{arrow(pair[0].task)} {pair[0].metric}"))
            at += len(own)
    for role in ("target", "source"):
        own = [pair.get(role) for pair in blocks]
        rows = list(dict.fromkeys(row for b in own if b for row in b.rows))
        faint = set().union(*(b.faint for b in own if b))
        if first.transposed:
            rows.sort(key=lambda row: row == AVERAGE)
        else:
            rows.sort(key=lambda row: (row == "n", row not in faint, row.split(" ")[0] == UNTRAINED))
        if rows:
            grid.rows.append([_section([p for p in pivots if p.role == role])])
        for row in rows:
            cells = [b.cells.get((row, c), (MISSING, "")) if b else (MISSING, "") for b, columns in zip(own, heads, strict=True)
                     for c in columns]
            grid.marks |= {(len(grid.rows), j): mark for j, (_, mark) in enumerate(cells, 1) if mark}
            if row in faint:
                grid.dim.add(len(grid.rows))
            grid.colours |= {(len(grid.rows), j): "dim" for j, c in enumerate(grid.columns) if c in faint}
            grid.rows.append([row, *(text for text, _ in cells)])
    grid.notes = notes(pivots)
    return grid


def _section(pivots: Sequence[Pivot]) -> str:
    """What a block is about."""
    if pivots[0].role == "source":
        names = dict.fromkeys(f"{LANGUAGES[p.source].name if p.source in LANGUAGES else p.source} ({p.source})" for p in pivots)
        return f"source: {', '.join(names)}"
    return " ".join(["target language" + "s" * (len(pivots[0].columns) > 1 and pivots[0].over == "lang"), pivots[0].lang]).strip()


def notes(pivots: Sequence[Pivot]) -> list[str]:
    """What the numbers and marks of pivots mean."""
    out = [_error_note(pivots)]
    tests = sorted({p.tests for p in pivots if p.tests})
    if tests:
        k = str(tests[0]) if len(tests) == 1 else f"{tests[0]} to {tests[-1]}"
        whom = next(p.baseline for p in pivots if p.baseline)
        whom = "its own untrained model" if whom == UNTRAINED else whom
        out.append(f"* p<.05; ** also after Holm's correction over the {k} test{'s' * (k != '1')} of a block and metric: two-sided paired "
                   f"randomisation test of each system against {whom}, item by item.")
    else:
        out.append("Nothing is tested here" + ("." if any(p.baseline for p in pivots) else
                   ": there is no untrained model; --baseline names a system to test against."))
    if any(best_and_second(p) for p in pivots):
        out.append("Bold: best system, underlined: second, of three or more; reference rows do not compete.")
    if any(thin(p) for p in pivots):
        out.append("n=: scored on fewer than half the items of another system; it does not compete, nor does an average that holds it.")
    if any(p.role == "source" and p.over == "lang" and len(p.columns) > 1 for p in pivots):
        out.append("Source block: the scores in the source language of the model for each column's language.")
    out += lower_note(p.metric for p in pivots)
    out += dict.fromkeys(note for p in pivots for note in p.notes)
    reasons: dict[str, dict[str, None]] = {}
    for p in pivots:
        for (label, column), cell in p.cells.items():
            if cell.value is None and cell.reason != NO_RUN:
                reasons.setdefault(cell.reason, {})[f"{arrow(p.task)} {p.metric} ({p.role}, {label}, {column})"] = None
    out += [f"absent: {', '.join(list(where)[:4])}{f' and {len(where) - 4} more' if len(where) > 4 else ''}: {reason}."
            for reason, where in reasons.items()]
    found: dict[str, dict[str, None]] = {}
    for p in pivots:
        for signature in p.signatures:
            found.setdefault(signature, {})[f"{arrow(p.task)} {p.metric}"] = None
    return out + [f"{', '.join(which)}: {signature}" for signature, which in found.items()]


def _error_note(pivots: Sequence[Pivot]) -> str:
    """Which standard error is shown, and which systems have which seeds."""
    seeds: dict[tuple[int, ...], dict[str, None]] = {}
    for p in pivots:
        for (label, column), cell in p.cells.items():
            if label not in p.reference and cell.value is not None and cell.seeds:
                seeds.setdefault(cell.seeds, {})[label if p.over == "seed" else f"{label} ({column})"] = None
    n = "n: items."
    several = [s for s in seeds if len(s) > 1]
    if not several:
        one = {s for own in seeds for s in own}
        return f"± standard error over items; {n}" + (f" One run each, seed {next(iter(one))}." if len(one) == 1 else "")
    if len(seeds) == 1:
        named = ", ".join(map(str, several[0]))
        return f"Mean ± standard error over the {len(several[0])} seeds {named}; of reference rows, over items. {n}"
    usual = max(seeds, key=lambda s: (len(seeds[s]), len(s)))
    others = "; ".join(f"{', '.join(list(where)[:6])}{' ...' if len(where) > 6 else ''}: seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}"
                       for s, where in seeds.items() if s != usual)
    return (f"Mean ± standard error over seeds where there are two or more, else over items. Seeds {', '.join(map(str, usual))}, "
            f"but {others}. {n}")


def pivots_csv(pivots: Sequence[Pivot], path: Path) -> None:
    """Unrounded numbers, one line a cell, averages included."""
    heads = ["task", "metric", "role", "source", "row", "reference", pivots[0].over if pivots else "lang", "value", "se", "n", "seeds", "p",
             "mark", "baseline", "reason"]
    body = []
    for p in pivots:
        cells = {**p.cells, **{(label, AVERAGE): cell for label, cell in p.average.items()}}
        body += [[p.task, p.metric, p.role, p.source, label, "yes" if label in p.reference else "no", column, c.value, c.se, c.n,
                  " ".join(map(str, c.seeds)), c.p, c.mark, p.baseline, c.reason] for (label, column), c in cells.items()]
    write_csv(path, heads, body)
