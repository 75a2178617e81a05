"""Plots of finished runs as PNG, PDF or SVG: bars, heat map, accuracy against cost here; curves over training in `curves`. No torch.

Matplotlib without pyplot: nothing is kept between calls, no display is needed.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from xalign.report.contenders import UNTRAINED
from xalign.report.curves import learning_curves, off_target_curves
from xalign.report.drawing import (
    GREY,
    INTERVAL,
    WIDTH,
    NotDrawn,
    Plot,
    colours,
    describe,
    language,
    legend_above,
    many,
    new_plot,
    save,
    spread,
    styled,
)
from xalign.report.frontier import accuracy_cost
from xalign.rows import arrow, percent
from xalign.safe import printable
from xalign.tables import is_number, number

if TYPE_CHECKING:
    from xalign.report.pivot import Cell, Pivot
    from xalign.report.runs import FinishedRun

__all__ = ["NotDrawn", "Plot", "accuracy_cost", "draw_all", "heat_map", "language_bars", "learning_curves", "off_target_curves", "save",
           "write_all"]

BARS_A_ROW = 46  # bars side by side that stay wide enough to tell apart
FILLED = 1 / 3  # of a heat map's cells must have a value
MEAN = "mean"
LINES = [{"color": "black", "ls": "-"}, {"color": "black", "ls": (0, (4, 1.5))}, {"color": "#555555", "ls": (0, (1, 1.2))},
         {"color": "#555555", "ls": (0, (6, 1, 1, 1))}, {"color": "#888888", "ls": "-"}]


def _about(pivot: Pivot) -> str:
    """``accuracy_pmi, choice``: the metric and its task."""
    return f"{pivot.metric}, {arrow(pivot.task)}"


def _axis(pivot: Pivot) -> str:
    unit = "0–100" if percent(pivot.metric) else "share"
    return f"{pivot.metric} ({unit}{'; lower is better' if pivot.lower else ''})"


def _stem(kind: str, pivot: Pivot) -> str:
    return re.sub(r"[^\w+-]+", "_", f"{kind}_{pivot.role}_{pivot.task}_{pivot.metric}")


def _valued(pivot: Pivot, label: str, column: str) -> Cell | None:
    """The cell of one column, or of the mean over them, if it has a value."""
    cell = pivot.average.get(label) if column == MEAN else pivot.cells.get((label, column))
    return cell if cell is not None and is_number(cell.value) else None


def _groups(pivot: Pivot) -> list[str]:
    """The columns and, where it has values of its own to show, their mean."""
    mean = len(pivot.columns) > 1 and any(_valued(pivot, label, MEAN) for label in pivot.rows)
    return [*pivot.columns, *([MEAN] if mean else [])]


def _counts(pivot: Pivot) -> str:
    cells = [pivot.cells.get((label, column)) for label in pivot.rows for column in pivot.columns]
    seeds = {len(c.seeds) for c in cells if c and is_number(c.value) and c.seeds}
    unit = "language" if pivot.over == "lang" else pivot.over
    return (f"n {spread([c.n for c in cells if c and is_number(c.value) and c.n])} items a {unit}"
            + (f", {spread(sorted(seeds))} seeds" if seeds and max(seeds) > 1 else ""))


def _stars(pivot: Pivot) -> str:
    marked = any(c.mark for c in (*pivot.cells.values(), *pivot.average.values()))
    return f" * p<.05 against {pivot.baseline}, ** also after Holm's correction." if marked else ""


@styled
def language_bars(pivot: Pivot) -> Plot:
    """One group of bars a language, one bar a method, 95 % intervals; untrained and baselines as lines across the group.

    Raises:
        NotDrawn: if the pivot holds no value.
    """
    groups = _groups(pivot)
    valued = {(label, c): cell for label in pivot.rows for c in groups if (cell := _valued(pivot, label, c))}
    shown = [label for label in pivot.rows if any((label, c) in valued for c in groups)]
    methods = [label for label in shown if label not in pivot.reference] or shown
    lines = sorted((label for label in shown if label not in methods), key=lambda label: not label.startswith(UNTRAINED))
    if not shown:
        raise NotDrawn("no run has a value")
    present = {c: [m for m in methods if (m, c) in valued] for c in groups}
    rows = _rows([max(1, len(present[c])) + 1 for c in groups])
    longest = max(sum(max(1, len(present[groups[g]])) + 1 for g in row) for row in rows)
    width = WIDTH if len(rows) > 1 else min(WIDTH, max(3.6, 0.9 + 0.2 * longest))
    rotated = any(len(language(c)) * 0.07 > (max(1, len(present[c])) + 1) * (width - 0.7) / longest for c in groups)
    figure = new_plot(_stem("bars", pivot), width, 0.9 + (1.75 + 0.45 * rotated) * len(rows) + 0.6 * (len(rows) == 1))
    axes = list(figure.subplots(len(rows), 1, squeeze=False, sharey=True).flat)
    paint = colours(methods)
    for axis, row in zip(axes, rows, strict=True):
        left, ticks = 0.0, []
        for column in (groups[g] for g in row):
            span = max(1, len(present[column]))
            for k, label in enumerate(present[column]):
                _bar(axis, left + k + 0.5, valued[label, column], paint[label], longest)
            for k, label in enumerate(lines):
                if (label, column) in valued:
                    axis.hlines(valued[label, column].value, left - 0.3, left + span + 0.3, lw=1.2, zorder=3, **LINES[k % len(LINES)])
            if column == MEAN:
                axis.axvline(left - 0.5, color=GREY, lw=0.6)
            ticks.append((left + span / 2, language(column) if column != MEAN else MEAN))
            left += span + 1
        axis.set_xticks(*zip(*ticks, strict=True))
        axis.set_xlim(-0.5, longest - 0.5)
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="y")
        for tick in axis.get_xticklabels() if rotated else ():
            tick.set(rotation=35, ha="right", rotation_mode="anchor")
    figure.supylabel(_axis(pivot), fontsize=8)
    handles: list[Any] = [Patch(edgecolor="#333333", lw=0.4, **paint[m]) for m in methods]
    handles += [Line2D([], [], lw=1.2, **LINES[k % len(LINES)]) for k in range(len(lines))]
    legend_above(figure, handles, [*methods, *lines])
    text = f"{_counts(pivot)}. Whiskers: 95 % interval (1.96 x s.e.)"
    text += ", none where it is unknown." if any(not valued[m, c].se for c in groups for m in present[c]) else "."
    text += _stars(pivot) + " No bar: absent." * (min(map(len, present.values())) < len(methods))
    describe(figure, f"{_about(pivot)}, {_of(pivot)}.", text, "Bars. " + _numbers(pivot, [*methods, *lines], groups))
    return figure


def _rows(widths: Sequence[int]) -> list[list[int]]:
    """Groups of these widths in as few rows of at most `BARS_A_ROW` as there must be, about equally full."""
    most = math.ceil(sum(widths) / math.ceil(sum(widths) / BARS_A_ROW))
    rows: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if rows[-1] and sum(widths[j] for j in rows[-1]) + width / 2 > most:
            rows.append([])
        rows[-1].append(i)
    return rows


def _bar(axis: Any, at: float, cell: Cell, paint: dict[str, Any], longest: int) -> None:
    """One bar with its whisker and its star."""
    error = INTERVAL * cell.se if is_number(cell.se) else 0.0
    axis.bar(at, cell.value, 0.88, edgecolor="#333333", lw=0.4, yerr=error or None, capsize=min(2.0, 60 / longest),
             error_kw={"elinewidth": 0.7, "capthick": 0.7}, **paint)
    if cell.mark:
        text = axis.annotate(cell.mark, (at, max(cell.value + error, 0)), (0, 0.5), textcoords="offset points", ha="center", fontsize=6)
        text.set_in_layout(False)


def _of(pivot: Pivot) -> str:
    return "target language" if pivot.role == "target" else f"source language ({language(pivot.source)})"


def _numbers(pivot: Pivot, labels: Sequence[str], groups: Sequence[str]) -> str:
    """The mean, or the only column, in words; the tables hold the rest."""
    column = groups[-1]
    pairs = [(label, _valued(pivot, label, column)) for label in labels]
    named = f"mean over {many(pivot)}" if column == MEAN else language(column)
    return f"{_about(pivot)}, {named}: " + ", ".join(f"{label} {number(c.value, percent(pivot.metric))}" for label, c in pairs if c) + "."


@styled
def heat_map(pivot: Pivot, difference: bool = False) -> Plot:
    """Language x method, the value written in every cell; bright is good, also where lower is better and in print without colour.

    Args:
        difference: draw each value minus the untrained model's.
    Raises:
        NotDrawn: for fewer than two languages or two methods, or without the untrained model.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    untrained = next((label for label in pivot.rows if label in pivot.reference and label.startswith(UNTRAINED)), None)
    if difference and untrained is None:
        raise NotDrawn("no untrained model to take the difference to")
    labels = [label for label in pivot.rows if not (difference and label in pivot.reference)]
    labels = [label for label in labels if any(_valued(pivot, label, c) for c in pivot.columns)]
    if len(pivot.columns) < 2 or len(labels) < 2:
        raise NotDrawn("fewer than two columns or two rows: the table says it all")
    groups = _groups(pivot)

    def value(label: str, column: str) -> float | None:
        cell, base = _valued(pivot, label, column), _valued(pivot, untrained or "", column) if difference else None
        return None if cell is None or difference and base is None else cell.value - (base.value if base else 0)

    grid = [[value(label, g) for label in labels] for g in groups]
    known = [v for row in grid for v in row if v is not None]
    if len(known) < FILLED * len(labels) * len(groups):
        raise NotDrawn(f"{len(known)} of {len(labels) * len(groups)} cells have a value")
    limit = max(map(abs, known)) or 1.0
    norm = Normalize(-limit, limit) if difference else Normalize(min(known), max(known) if max(known) > min(known) else min(known) + 1)
    cmap = colormaps["cividis_r" if pivot.lower else "cividis"]
    longest = max(len(label) for label in labels)
    slanted = longest > 8
    height = 0.75 + 0.27 * len(groups) + (0.05 * longest if slanted else 0.1)
    width = min(10.0, max(3.8, 1.9 + len(labels) * (0.62 if not percent(pivot.metric) else 0.58)))
    figure = new_plot(_stem("heat_difference" if difference else "heat", pivot), width, height)
    axis = figure.subplots()
    axis.pcolormesh([[float("nan") if v is None else v for v in row] for row in grid], cmap=cmap, norm=norm, edgecolors="face", lw=0.3)
    for y, (column, row) in enumerate(zip(groups, grid, strict=True)):
        for x, (label, v) in enumerate(zip(labels, row, strict=True)):
            r, g, b, _ = cmap(norm(v)) if v is not None else (1, 1, 1, 1)
            cell = _valued(pivot, label, column)
            text = axis.text(x + 0.5, y + 0.5, number(v, percent(pivot.metric), sign=difference) + (cell.mark if cell else ""), ha="center",
                             va="center_baseline", fontsize=7, color="black" if 0.299 * r + 0.587 * g + 0.114 * b > 0.5 else "white")
            text.set_in_layout(False)
    references = sum(label in pivot.reference for label in labels)
    if references and all(label in pivot.reference for label in labels[:references]):
        axis.axvline(references, color="white", lw=2.5)
    if groups[-1] == MEAN:
        axis.axhline(len(groups) - 1, color="white", lw=2.5)
    axis.set(xlim=(0, len(labels)), ylim=(len(groups), 0))
    axis.set_yticks([i + 0.5 for i in range(len(groups))], [language(g) for g in groups])
    axis.set_xticks([i + 0.5 for i in range(len(labels))], labels)
    axis.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    for tick in axis.get_xticklabels() if slanted else ():
        tick.set(rotation=30, ha="left", rotation_mode="anchor")
    axis.spines[:].set_visible(False)
    what = f"difference to {untrained}" if difference else "value"
    better = "Brighter is better (lower values)" if pivot.lower else "Brighter is better"
    text = f"{_counts(pivot)}. {better}; – absent.{_stars(pivot)}"
    describe(figure, f"{_about(pivot)}, {_of(pivot)}: {what}.", text, "Heat map. " + _numbers(pivot, labels, groups))
    return figure


def draw_all(runs: Sequence[FinishedRun], pivots: Sequence[Pivot], brief: bool = False) -> tuple[list[Plot], list[str]]:
    """Every plot that the runs have data for, and one line a kind of plot and reason for those that they have none for.

    Args:
        brief: no second view of the same numbers: no heat maps of differences, none of the source language.
    """
    wanted: list[tuple[str, str, Callable[[], Plot]]] = []
    for pivot in pivots:
        about = f"{_about(pivot)} ({pivot.role})"
        wanted.append(("bars", about, lambda p=pivot: language_bars(p)))
        if pivot.role == "target" or not brief:
            wanted.append(("heat map", about, lambda p=pivot: heat_map(p)))
        if not brief:
            wanted.append(("heat map of differences", about, lambda p=pivot: heat_map(p, difference=True)))
        if pivot.role == "target":
            wanted.append(("score against cost", about, lambda p=pivot: accuracy_cost(p)))
    wanted += [("learning curves", "", lambda: learning_curves(runs)), ("off-target rate", "", lambda: off_target_curves(runs))]
    drawn: list[Plot] = []
    left: dict[tuple[str, str], list[str]] = {}
    for name, about, draw in wanted:
        try:
            drawn.append(draw())
        except NotDrawn as e:
            left.setdefault((name, str(e)), []).append(about)
    return drawn, [f"{name}{f' of {about[0]}' * any(about)}{f' and {len(about) - 1} more' * (len(about) > 1)}: {why}"
                   for (name, why), about in left.items()]


def write_all(runs: Sequence[FinishedRun], pivots: Sequence[Pivot], folder: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Every plot as a file of each format; prints what was written and what was left out and why."""
    drawn, left = draw_all(runs, pivots)
    paths = []
    for figure in drawn:
        paths += [Path(folder) / f"{figure.name}.{kind}" for kind in formats]
        for path in paths[-len(formats):]:
            save(figure, path)
        print(f"plot     {Path(folder) / figure.name}.{{{','.join(formats)}}}")
    for line in left:
        print(f"no plot  {printable(line)}")
    return paths
