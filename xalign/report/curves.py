"""Curves over training: losses and the off-target rate. No torch."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from xalign.report.course import series
from xalign.report.drawing import COLOURS, GREY, INTERVAL, WIDTH, NotDrawn, Plot, describe, language, legend_above, new_plot, spread, styled
from xalign.rows import Row, arrow
from xalign.tables import is_number

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

Points = list[tuple[float, float]]
FEW = 6  # runs of one panel that get a colour and a name of their own


def stages_of(run: FinishedRun, names: Sequence[str]) -> tuple[dict[str, list[Points]], list[tuple[float, str]]]:
    """Series drawn one training stage after another, and where each stage ends with its title.

    Returns:
        name → one list of (step since the first stage began, value) a stage; and (last step, title) of every stage.
    """
    raw = {name: series(run, name) for name in names}
    count = max((len(found) for found in raw.values()), default=0)
    out: dict[str, list[Points]] = {name: [] for name in names}
    ends, start = [], 0.0
    for i in range(count):
        parts = {name: found[i] for name, found in raw.items() if i < len(found)}
        last = max((step for _, points in parts.values() for step, _ in points), default=0)
        for name, (_, points) in parts.items():
            out[name].append([(start + step, value) for step, value in points])
        start += last
        ends.append((start, next(iter(parts.values()))[0]))
    return out, ends


def panel_names(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs by method, and by backbone and source where those differ."""
    varied = [k for k in ("backbone", "source") if len({getattr(r, k) for r in runs}) > 1]
    panels: dict[str, list[FinishedRun]] = {}
    for run in runs:
        panels.setdefault(", ".join([run.method, *(("from " if k == "source" else "") + getattr(run, k) for k in varied)]), []).append(run)
    return panels


def run_names(runs: Sequence[FinishedRun]) -> list[str]:
    """What tells runs of one panel apart: languages, seed, or the end of the folder's name."""
    def langs(run: FinishedRun) -> str:
        return " ".join(run.langs) if len(run.langs) <= 3 else f"{len(run.langs)} languages"

    several = len({langs(o) for o in runs}) > 1, len({o.seed for o in runs}) > 1
    names = [" ".join([langs(r)] * several[0] + [f"seed {r.seed}"] * several[1]) for r in runs]
    return [name if name and names.count(name) == 1 else f"{name} {run.name[-8:]}".strip() for name, run in zip(names, runs, strict=True)]


@styled
def learning_curves(runs: Sequence[FinishedRun]) -> Plot:
    """Training and validation loss over optimiser steps, one panel a method: losses of different methods are different things.

    Raises:
        NotDrawn: if no run has recorded a loss.
    """
    drawn = [(run, *stages_of(run, ("loss", "valid_loss"))) for run in runs]
    drawn = [d for d in drawn if any(points for parts in d[1].values() for points in parts)]
    if not drawn:
        raise NotDrawn("no run has a log.jsonl with a loss (a model that was only evaluated has none)")
    panels = panel_names([d[0] for d in drawn])
    columns = min(len(panels), 3 if len(panels) > 4 else 2)
    rows = math.ceil(len(panels) / columns)
    figure = new_plot("learning_curves", WIDTH if columns > 1 else 5, 0.75 + 1.9 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    found = {id(run): (values, ends) for run, values, ends in drawn}
    alt, staged = [], False
    for axis, (title, own) in zip(axes, panels.items(), strict=False):
        few = len(own) <= FEW
        for k, (run, label) in enumerate(zip(own, run_names(own), strict=True)):
            values, ends = found[id(run)]
            for points in filter(None, values["loss"] if few else ()):
                axis.plot(*zip(*points, strict=True), color=COLOURS[k], lw=0.9, alpha=0.45)
            for points in filter(None, values["valid_loss"] if few else ()):
                name = label if len(own) > 1 and points is next(filter(None, values["valid_loss"])) else None
                axis.plot(*zip(*points, strict=True), color=COLOURS[k], lw=1.3, marker="o", ms=2.8, label=name)
            for (at, _), (_, after) in zip(ends, ends[1:], strict=False):
                staged = True
                if few or not k:
                    axis.axvline(at, color=GREY, lw=0.7, ls=(0, (3, 3)))
                if len(panels) == 1 and not k and after:
                    axis.text(at, 0.98, f" {after}", transform=axis.get_xaxis_transform(), fontsize=6, color=GREY, va="top", rotation=90)
            last = [points[-1][1] for points in values["valid_loss"] if points]
            alt.append(f"{run.name}: {int(ends[-1][0])} steps" + (f", last validation loss {last[-1]:.3f}" if last else ""))
        for name, style in () if few else (("loss", {"lw": 0.9, "alpha": 0.6}), ("valid_loss", {"lw": 1.3, "marker": "o", "ms": 2.8})):
            _summary(axis, [found[id(run)][0][name] for run in own], style)
        tokens = [sum(points[-1][1] for _, points in series(run, "tokens") if points) for run in own]
        size = f", {spread_short(tokens)} tokens" if any(tokens) else ""
        axis.set_title(f"{title}{f', {len(own)} runs' if len(own) > 1 else ''}{size}", loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(axis="y")
        if few and len(own) > 1:
            axis.legend(fontsize=6.5, ncols=2 if columns > 2 else 3, handlelength=1.2, loc="upper left", bbox_to_anchor=(-0.08, -0.1))
    for axis in axes[len(panels):]:
        axis.remove()
    figure.supylabel("loss (nats a token)", fontsize=8)
    handles = [Line2D([], [], color=COLOURS[0], lw=0.9, alpha=0.45), Line2D([], [], color=COLOURS[0], lw=1.3, marker="o", ms=2.8)]
    legend_above(figure, handles, ["training loss, every step", "validation loss"])
    text = "x: optimiser steps. Methods with another loss than cross-entropy have it in its own unit. "
    text += "Dashed: the next training stage begins, with its own loss. " * staged
    text += "Losses of different methods cannot be compared. " * (len(panels) > 1)
    if max(map(len, panels.values())) > FEW:
        text += f"Panels of more than {FEW} runs: their median, in the band from the lowest to the highest. "
    left = len(runs) - len(drawn)
    text += f"{left} run{'s' * (left > 1)} without a log left out." * bool(left)
    described = "Learning curves. " + "; ".join(alt[:12]) + "; …" * (len(alt) > 12)
    describe(figure, f"Training and validation loss, {len(drawn)} run{'s' * (len(drawn) > 1)}.", text.strip(), described)
    return figure


def spread_short(numbers: Sequence[float]) -> str:
    """``14 k``, ``14–43 k``: thousands without noise."""
    low, high = (round(f(numbers) / 1000) or 1 for f in (min, max))
    return f"{low:,} k" if low == high else f"{low:,}–{high:,} k"


def _summary(axis: Any, runs: Sequence[list[Points]], style: dict[str, Any]) -> None:
    """Many runs of one method: at each step the median, lowest and highest of those that have a value; stages stay apart."""
    for i in range(max(map(len, runs), default=0)):
        at: dict[float, list[float]] = {}
        for step, value in (p for stages in runs if i < len(stages) for p in stages[i]):
            at.setdefault(step, []).append(value)
        if steps := sorted(at):
            axis.plot(steps, [statistics.median(at[s]) for s in steps], color=COLOURS[0], **style)
            axis.fill_between(steps, [min(at[s]) for s in steps], [max(at[s]) for s in steps], color=COLOURS[0], alpha=0.15, lw=0)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `n` independent answers. Source: Wilson, 1927."""
    z2 = INTERVAL**2
    middle, half = (share + z2 / (2 * n)) / (1 + z2 / n), INTERVAL / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean(rows: Sequence[Row]) -> tuple[float, float | None]:
    """Mean and standard error of one score: over seeds where they differ, else over items."""
    values = [row["value"] for row in rows]
    spread_out = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread_out or rows[0].get("se")


def probed(run: FinishedRun) -> list[str]:
    """Languages whose off-target rate the run recorded while it trained."""
    keys = dict.fromkeys(k for record in run.log for k in record if k.startswith("off_target_"))
    return [k.removeprefix("off_target_") for k in keys if not k.endswith("_n")]


@styled
def off_target_curves(runs: Sequence[FinishedRun]) -> Plot:
    """The share of answers in another language than asked over optimiser steps, one panel a language, one line a method.

    Runs that recorded none while training give their two measured points, before and after.

    Raises:
        NotDrawn: if no run has an off-target rate.
    """
    # language → method → step → [(share, answers)], pooled over seeds; and the points measured before and after
    curves: dict[str, dict[str, dict[float, Points]]] = {}
    points: dict[str, dict[str, list[tuple[float, Any]]]] = {}
    panels = panel_names([r for r in runs if r.trained])
    for method, own in panels.items():
        for run in own:
            names = [f"off_target_{lang}{end}" for lang in probed(run) for end in ("", "_n")]
            values, ends = stages_of(run, ["loss", *names])
            for lang in probed(run):
                # a stage begins with the model that the one before it ended with: one point, not two
                shares, counts = (dict(p for part in values[f"off_target_{lang}{end}"] for p in part) for end in ("", "_n"))
                for step, share in shares.items():
                    if counts.get(step):
                        curves.setdefault(lang, {}).setdefault(method, {}).setdefault(step, []).append((share, counts[step]))
            last = ends[-1][0] if ends else 1.0
            for row in (r for r in run.rows if r["metric"] == "off_target" and r["lang"] in run.langs and is_number(r["value"])):
                if row["when"] in ("before", "after") and not probed(run):
                    points.setdefault(row["lang"], {}).setdefault(method, []).append((0.0 if row["when"] == "before" else last, row))
    targets = {lang for run in runs for lang in run.langs}
    langs = sorted({*curves, *points}, key=lambda lang: (lang not in targets, lang))
    if not langs:
        raise NotDrawn("no run has an off-target rate, in its rows or in log.jsonl (trainer.probe_prompts records one while training)")
    methods = [m for m in panels if any(m in by for by in (*curves.values(), *points.values()))]
    paint = {m: (COLOURS[i % len(COLOURS)], "osD^vP*X"[i % 8]) for i, m in enumerate(methods)}
    columns = min(len(langs), 4 if len(langs) > 6 else 3)
    rows = math.ceil(len(langs) / columns)
    figure = new_plot("off_target", 4.6 if len(langs) == 1 else WIDTH, 1.2 + 1.7 * rows + 0.8 * (rows == 1))
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    alt, counts = [], []
    for axis, lang in zip(axes, langs, strict=False):
        for method in methods:
            colour, marker = paint[method]
            if got := sorted(curves.get(lang, {}).get(method, {}).items()):
                xs, total = [x for x, _ in got], [int(sum(n for _, n in parts)) for _, parts in got]
                shares = [sum(s * n for s, n in parts) / k for (_, parts), k in zip(got, total, strict=True)]
                low, high = zip(*(wilson(s, k) for s, k in zip(shares, total, strict=True)), strict=True)
                axis.plot(xs, shares, color=colour, marker=marker, ms=3, lw=1.3)
                axis.fill_between(xs, low, high, color=colour, alpha=0.12, lw=0)
                counts += total
                alt.append(f"{language(lang)}, {method}: {shares[0]:.2f} to {shares[-1]:.2f}")
            if ends := points.get(lang, {}).get(method):
                places = sorted({x for x, _ in ends})
                means = [(x, *_mean([row for at, row in ends if at == x])) for x in places]
                for x, value, se in means:
                    error = INTERVAL * se if se else None
                    axis.errorbar(x, value, error, color=colour, marker=marker, ms=4, mfc="white", lw=0.9, capsize=2)
                axis.plot([x for x, *_ in means], [v for _, v, _ in means], color=colour, lw=0.8, ls=":", zorder=1)
                counts += [row["n"] for _, row in ends]
                alt.append(f"{language(lang)}, {method}: " + " to ".join(f"{v:.2f}" for _, v, _ in means))
        axis.set_title(language(lang), loc="left")
        axis.set_ylim(-0.03, 1.03)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.grid(axis="y")
    for axis in axes[len(langs):]:
        axis.remove()
    figure.supylabel("off-target rate (share; lower is better)", fontsize=8)
    legend_above(figure, [Line2D([], [], color=c, marker=k, ms=3.5, lw=1.3) for c, k in paint.values()], methods)
    text = f"x: optimiser steps of all training stages. n {spread(counts)} judged answers a point."
    if curves:
        text += " Bands: 95 % Wilson intervals, answers of all runs of a method taken together as independent."
    if points:
        tasks = ", ".join(dict.fromkeys(arrow(row["task"]) for by in points.values() for found in by.values() for _, row in found))
        text += (f" Hollow points joined by dots: measured only before and after training (task {tasks}), whiskers 95 % "
                 "(1.96 x s.e., over seeds where there are several); nothing is known between them.")
    describe(figure, "Answers in another language than asked, over training.", text, "Off-target rate. " + "; ".join(alt[:20]))
    return figure
