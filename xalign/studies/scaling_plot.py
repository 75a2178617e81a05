"""The scaling law as a picture: points, curves and their bands over the number of translation rows (x-LLM Figures 3 and 7). No torch."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from xalign.analysis.scaling import score
from xalign.report.drawing import COLOURS, GREY, INTERVAL, WIDTH, Plot, describe, language, new_plot, spread, styled
from xalign.studies.scaling_points import Series
from xalign.studies.scaling_report import about

if TYPE_CHECKING:
    from xalign.studies.scaling import Scaling

TOGETHER = 4  # series on one pair of axes; more of them get a panel a language
PAST = 2  # times the largest X: how far the curve goes on


@styled
def draw(series: Sequence[Series], task: str, metric: str, study: Scaling) -> Plot:
    """Points with 95 % whiskers, each law with its band, the untrained model as a line; the laws stand in the legend."""
    langs = list(dict.fromkeys(s.lang for s in series))
    panels = [list(series)] if len(series) <= TOGETHER else [[s for s in series if s.lang == lang] for lang in langs]
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = new_plot("scaling", WIDTH if columns > 1 else 5.2, 3.9 if len(panels) == 1 else 0.9 + 2.1 * lines)
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    names = {id(s): s.label if len(panels) == 1 else s.system for s in series}
    tell = list(dict.fromkeys(names.values()))
    bands = {id(s): band(s) for s in series}
    for axis, own in zip(axes, panels, strict=False):
        handles = []
        for s in own:
            k = tell.index(names[id(s)])
            style = {"color": COLOURS[k % len(COLOURS)], "marker": "osD^vP*X"[k % 8], "ms": 4.5}
            curve(axis, s, bands[id(s)], style)
            handles.append(Line2D([], [], lw=1.4, **style))
        for value, same in untrained(own).items():
            colour = handles[own.index(same[0])].get_color() if len(panels) == 1 and len(langs) > 1 else GREY
            axis.axhline(value, color=colour, lw=1, ls=(0, (1, 1.5)), zorder=1)
        axis.set_xscale("log")
        axis.grid()
        axis.xaxis.set_major_locator(LogLocator(10, (1, 2, 5) if len(panels) == 1 else (1,)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        if len(panels) > 1:
            alone = len(own) == 1
            axis.set_title(language(own[0].lang) + f":  {formula(own[0])}" * alone, loc="left", pad=4 if alone else 8 + 11 * len(own))
        if len(panels) == 1 or len(own) > 1:
            laws = [f"{names[id(s)]}:  {formula(s)}" for s in own]
            axis.legend(handles, laws, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=1.8)
    for axis in axes[len(panels):]:
        axis.remove()
    texts = {s.texts for s in series}
    for axis in axes[:len(panels)][-columns:]:
        axis.set_xlabel({(False,): "translation rows", (True,): "texts"}.get(tuple(texts), "translation rows, or texts") + " X (log scale)")
    for axis in axes[:len(panels):columns]:
        axis.set_ylabel(f"{about(series, task, metric)} (0–100)")
    axes[0].set_ylim(heights(series, bands))
    describe(figure, *words(series, about(series, task, metric), study))
    return figure


def formula(s: Series) -> str:
    """The law as the papers write it."""
    assert s.fit is not None
    gamma = f"({s.gamma:.2f}\\,X)" if s.gamma != 1 else "X"
    return f"$100-{s.law.alpha:.4g}\\,{gamma}^{{{s.law.beta:.3f}}}$" + " (at its bound)" * (s.fit.bound is not None)


def short(x: float) -> str:
    """``960``, ``30k``, ``1M``: an axis has little room."""
    return f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x >= 1e4 else f"{x:,.0f}"


def band(s: Series) -> np.ndarray:
    """[3, 80]: X from the first point to `PAST` times the last one, and the ends of the law's 95 % interval there."""
    assert s.fit is not None
    xs = np.geomspace(s.points[0].rows, PAST * s.last, 80)
    return np.array([(x, *(s.fit.interval(lambda a, b, x=x: score(a, b, s.gamma * x)) or ())) for x in xs]).T


def untrained(own: Sequence[Series]) -> dict[float, list[Series]]:
    """Score of the model before training → the series that begin from it."""
    found: dict[float, list[Series]] = {}
    for s in own:
        if "untrained" in s.references:
            found.setdefault(s.references["untrained"], []).append(s)
    return found


def curve(axis: Any, s: Series, between: np.ndarray, style: dict[str, Any]) -> None:
    """One series: law, band and points."""
    xs, low, high = between
    inside, colour = xs <= s.last * 1.001, style["color"]
    ys = np.array([s.law.score(x) for x in xs])
    axis.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)
    axis.plot(xs[inside], ys[inside], color=colour, lw=1.4)
    axis.plot(xs[~inside], ys[~inside], color=colour, lw=1.2, ls=(0, (3, 2)))
    errors = [INTERVAL * p.se if p.se else 0 for p in s.points]
    axis.errorbar([p.rows for p in s.points], [p.score for p in s.points], errors, lw=0, elinewidth=1, capsize=2.5, zorder=3, **style)


def heights(series: Sequence[Series], bands: dict[int, np.ndarray]) -> tuple[float, float]:
    """Limits of the scores' axis: room for points, whiskers and curves, and for the bands as long as they leave those most of it."""
    ends = [p.score + side * INTERVAL * (p.se or 0) for s in series for p in s.points for side in (-1, 1)]
    ends += [s.law.score(x) for s in series for x in (s.points[0].rows, PAST * s.last)]
    ends += [s.references["untrained"] for s in series if "untrained" in s.references]
    low, high = min(ends), max(ends)
    height = high - low or 1.0
    room, edge = 0.3 * height, 0.04 * height
    wide = np.concatenate([b[1:].ravel() for b in bands.values()])
    return max(low - room, min(low, wide.min()) - edge), min(high + room, max(high, wide.max()) + edge)


def words(series: Sequence[Series], score_of: str, study: Scaling) -> tuple[str, str, str]:
    """Title, caption and alternative text."""
    ns = [p.row["n"] for s in series for p in s.points]
    text = (f"n {spread(ns)} test items a point. Whiskers: 95\u00a0% interval of the test items (1.96 x s.e.). Curves: least squares on "
            f"S(X) = 100 - alpha {'(gamma X)' if study.mode == 'shared' else 'X'}^beta; bands: 95\u00a0% bootstrap intervals "
            f"({study.resamples:,} resamples of test items and of the scatter around the curve); dashed: beyond the data.")
    if any("untrained" in s.references for s in series):
        text += " Dotted: the untrained model."
    others = {(name, s.lang): value for s in series for name, value in s.references.items() if name != "untrained"}
    if others:
        text += f" Baselines: {', '.join(f'{name} {value:.1f} ({language(lang)})' for (name, lang), value in others.items())}."
    told = []
    for s in series:
        assert s.fit is not None
        low, high = s.fit.interval(lambda a, b: b) or (0, 0)
        found = ", ".join(f"{p.score:.1f} at {p.rows:,.0f}" for p in s.points)
        told.append(f"{s.label}: alpha {s.law.alpha:.4g}, beta {s.law.beta:.3f} ({low:.3f} to {high:.3f}); {found}")
    return f"{score_of}, over the amount of translation data.", text, "Scaling law. " + ". ".join(told)
