"""Accuracy against cost: which methods no other one beats at both. No torch."""
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from xalign.report.contenders import UNTRAINED
from xalign.report.cost import stage_rows
from xalign.report.drawing import COLOURS, GREY, INTERVAL, NotDrawn, Plot, describe, language, legend_above, many, new_plot, spread, styled
from xalign.rows import arrow, percent
from xalign.tables import is_number, number

if TYPE_CHECKING:
    from xalign.report.pivot import Pivot
    from xalign.report.runs import FinishedRun

NOT_MAKING = ("evaluate", "assets")  # kinds of stages that are no part of making a model
PLACES = [(dx * r, dy * r, ha, va) for r in (1, 2.2, 3.8) for dx, dy, ha, va in
          [(5, 3, "left", "bottom"), (-5, 3, "right", "bottom"), (5, -3, "left", "top"), (-5, -3, "right", "top"),
           (0, 7, "center", "bottom"), (0, -7, "center", "top")]]


def device_hours(runs: Sequence[FinishedRun]) -> float | None:
    """Device-hours that make the models of these runs, without their evaluation: of one seed, the mean over seeds.

    A stage that several of the runs share is counted once. None where a run does not know its cost.
    """
    seeds: dict[int, dict[str, float]] = {}
    for run in runs:
        rows = stage_rows(run)
        if not rows:
            return None
        seeds.setdefault(run.seed, {}).update({r["key"]: float(r["device_hours"]) for r in rows if r["kind"] not in NOT_MAKING})
    return sum(sum(stages.values()) for stages in seeds.values()) / len(seeds) if seeds else None


def front(points: Sequence[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """The (cost, value) pairs that no other one beats in both, by cost."""
    kept: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda p: (p[0], p[1] if lower else -p[1])):
        if not kept or (value < kept[-1][1] if lower else value > kept[-1][1]):
            kept.append((cost, value))
    return kept


@styled
def accuracy_cost(pivot: Pivot) -> Plot:
    """The mean over languages against the device-hours that it took, with the front of what no other method beats.

    Raises:
        NotDrawn: for fewer than two methods with a value and a cost.
    """
    about = f"{pivot.metric}, {arrow(pivot.task)}"
    points: dict[str, tuple[float, Any]] = {}
    column = pivot.columns[0] if len(pivot.columns) == 1 else ""
    for label in pivot.rows:
        cell = pivot.cells.get((label, column)) if column else pivot.average.get(label)
        hours = device_hours([r for r in pivot.runs.get(label, ()) if r.trained])
        if label not in pivot.reference and cell is not None and is_number(cell.value) and hours:
            points[label] = hours, cell
    if len(points) < 2:
        raise NotDrawn("fewer than two methods with both a value and a cost")
    small = max(hours for hours, _ in points.values()) < 1
    xy = {label: (hours * (60 if small else 1), cell) for label, (hours, cell) in points.items()}
    figure = new_plot(re.sub(r"[^\w+-]+", "_", f"cost_{pivot.role}_{pivot.task}_{pivot.metric}"), 5.2, 3.7)
    axis = figure.subplots()
    axis.margins(x=0.12, y=0.1)
    axis.grid()
    xs = [x for x, _ in xy.values()]
    if max(xs) > 20 * min(xs):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())  # matplotlib's own writes formulas, which are not parsed
    best = front([(x, cell.value) for x, cell in xy.values()], pivot.lower)
    axis.step(*zip(*best, strict=True), where="post", color=GREY, lw=1, ls=(0, (4, 2)), zorder=1)
    systems = [label for label in pivot.rows if label not in pivot.reference]  # the colours that they have in the bars
    colours = {label: COLOURS[systems.index(label) % len(COLOURS)] for label in xy}
    for label, (x, cell) in xy.items():
        k = systems.index(label)
        error = INTERVAL * cell.se if is_number(cell.se) else None
        axis.errorbar(x, cell.value, error, color=colours[label], marker="osD^vP*X"[k % 8], ms=5.5, lw=0.9, capsize=2.5, zorder=3)
    handles, names = [Line2D([], [], color=GREY, lw=1, ls=(0, (4, 2)))], ["front"]
    for k, label in enumerate(sorted(pivot.reference, key=lambda x: (not x.startswith(UNTRAINED), pivot.rows.index(x)))):
        cell = pivot.cells.get((label, column)) if column else pivot.average.get(label)
        if cell is not None and is_number(cell.value):
            style = {"color": "black" if not k else GREY, "lw": 0.9, "ls": ["-", ":", "-.", (0, (9, 2)), (0, (1, 3))][k % 5]}
            axis.axhline(cell.value, zorder=1, **style)
            handles.append(Line2D([], [], **style))
            names.append(label)
    unit = "device-minutes" if small else "device-hours"
    axis.set_xlabel(f"{unit} for {language(column) if column else f'the {many(pivot)}'}, one seed")
    unit_y = "0–100" if percent(pivot.metric) else "share"
    axis.set_ylabel(f"{pivot.metric} ({unit_y}{'; lower is better' if pivot.lower else ''})")
    legend_above(figure, handles, names)
    rows = [row for label in points for r in pivot.runs[label] for row in stage_rows(r)]
    devices = dict.fromkeys(str(row["device"]) for row in rows if row["kind"] == "train" and row.get("device"))
    over = language(column) if column else f"mean over {many(pivot)}"
    text = f"n {spread([c.n for _, c in xy.values()])}. Whiskers: 95 % interval (1.96 x s.e.). "
    text += "Front: no other method is both cheaper and better. "
    text += "Cost: all stages that make the models (data, answers, translation, training), shared ones once, without evaluation."
    text += f" Devices: {', '.join(devices)}." if devices else ""
    found = (f"{label} {number(c.value, percent(pivot.metric))} for {x:.3g} {unit}" for label, (x, c) in xy.items())
    describe(figure, f"{about}, {over}, against cost.", text, "Score against cost: " + ", ".join(found))
    _place_labels(figure, axis, {label: (x, cell.value) for label, (x, cell) in xy.items()}, best, colours)
    return figure


def _place_labels(figure: Plot, axis: Any, points: dict[str, tuple[float, float]], steps: Sequence[tuple[float, float]],
                  colours: dict[str, str]) -> None:
    """A name beside each point, where it covers no other name, point, whisker or step of the front, and a line to its point."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout decides where the points are
    renderer, frame = figure.canvas.get_renderer(), axis.get_window_extent()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axis.transData.transform(list(points.values()))]
    taken += [path.get_extents(axis.transData) for bars in axis.containers for lines in bars[2] for path in lines.get_paths()]
    corners = [axis.transData.transform(p) for a, b in zip(steps, steps[1:], strict=False) for p in (a, (b[0], a[1]), b)]
    taken += [Bbox([a, b]) for i in range(0, len(corners), 3) for a, b in ((corners[i], corners[i + 1]), (corners[i + 1], corners[i + 2]))]
    for label, at in points.items():
        for dx, dy, ha, va in PLACES:
            text = axis.annotate(label, at, (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=7.5,
                                 arrowprops={"arrowstyle": "-", "color": colours[label], "lw": 0.8, "shrinkA": 0, "shrinkB": 2})
            text.set_in_layout(False)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(2)  # without the line
            if frame.containsx(box.x0) and frame.containsx(box.x1) and frame.containsy(box.y0) and frame.containsy(box.y1) \
                    and not any(box.overlaps(other) for other in taken):
                break
            if (dx, dy, ha, va) != PLACES[-1]:
                text.remove()
        taken.append(box)
