"""A shared budget as a picture: the laws with the even and the optimal points on them, and the shares as bars. No torch."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from xalign.report.drawing import GREY, WIDTH, Plot, colours, describe, language, legend_above, new_plot, styled

if TYPE_CHECKING:
    from xalign.studies.allocate import Shares

PAST = 2.5  # times the largest number of rows: how far the curves go on, and below the smallest


@styled
def draw(shares: Shares, name: str) -> Plot:
    """Left the laws over rows, from the even split (hollow) to the optimum (filled); right the shares."""
    langs = sorted(shares.laws, key=lambda k: -shares.best[k])
    figure = new_plot(name, WIDTH, max(3.3, 1.5 + 0.28 * len(langs)))
    curves, bars = figure.subplots(1, 2, width_ratios=(1.35, 1))
    paint = colours(list(shares.laws))
    low = min(*shares.best.values(), *shares.even.values()) / PAST
    high = max(*shares.best.values(), *shares.even.values()) * PAST
    for lang in langs:
        _curve(curves, shares, lang, paint[lang], low, high)
    curves.set_xscale("log")
    curves.set_xlim(low, high)
    heights = [shares.laws[lang].score(rows[lang]) for rows in (shares.even, shares.best) for lang in langs]
    margin = max(0.3 * (max(heights) - min(heights)), 1)
    curves.set_ylim(min(heights) - margin, max(heights) + margin)
    curves.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    curves.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    curves.xaxis.set_minor_formatter(NullFormatter())
    curves.set_xlabel("translation rows X (log scale)")
    curves.set_ylabel("score predicted by the law (0–100)")
    curves.grid()
    for y, lang in enumerate(reversed(langs)):
        _bar(bars, shares, lang, paint[lang], y)
    bars.set_yticks(range(len(langs)), [language(lang) for lang in reversed(langs)])
    bars.tick_params(axis="y", length=0)
    bars.set_xlabel("share of the budget (%)")
    bars.set_xlim(0, 1.22 * max(100 * max(shares.best[k], shares.even[k]) / shares.budget for k in langs))
    bars.grid(axis="x")
    handles: list[Any] = [Line2D([], [], marker="o", ms=5, mfc="white", mec=GREY, lw=0), Line2D([], [], marker="o", ms=5, color=GREY, lw=0),
                          Line2D([], [], color="black", lw=1.4, ls=(0, (2, 1))), Patch(facecolor=GREY, edgecolor="#333333", lw=0.4)]
    labels = ["even split", "optimum", "even share", "optimal share"]
    if any(math.isfinite(x) and x < high for x in shares.most.values()):
        handles.append(Line2D([], [], color="black", marker="|", ms=9, mew=1.6, lw=0))
        labels.append("all there is")
    legend_above(figure, handles, labels)
    even, best = shares.mean(shares.even), shares.mean(shares.best)
    bound = ", ".join(language(lang) for lang in langs if shares.bound(lang))
    text = (f"Mean predicted score: even {even:.2f}, optimal {best:.2f} ({best - even:+.3f}). At the optimum the curves rise equally "
            "steeply per row" + f", but for {bound}: there is no more" * bool(bound) + "."
            + " Dotted: more rows than there are." * (len(handles) > 4) + " Laws, not measurements; how sure they are is not shown.")
    describe(figure, f"{shares.budget:,} translation rows among {len(langs)} languages.", text, "Curves and bars. " + "; ".join(
        f"{language(lang)}: even {shares.even[lang]:,.0f} rows, optimal {shares.best[lang]:,.0f}" for lang in langs))
    return figure


def _curve(axis: Any, shares: Shares, lang: str, paint: dict[str, Any], low: float, high: float) -> None:
    """One law with its two points; dotted past what there is."""
    law, most, colour = shares.laws[lang], shares.most[lang], paint["facecolor"]
    xs = np.geomspace(low, high, 120)
    ys = law.score(xs)  # type: ignore[arg-type]
    axis.plot(xs[xs <= most], ys[xs <= most], color=colour, lw=1.2, ls=(0, (6, 1.5)) if paint["hatch"] else "-")
    if most < high:
        past = np.geomspace(most, high, 60)
        axis.plot(past, law.score(past), color=colour, lw=0.9, ls=(0, (1, 2)))  # type: ignore[arg-type]
        axis.plot([most], [law.score(most)], color="black", marker="|", ms=9, mew=1.6, zorder=4)
    x, y = shares.even[lang], shares.best[lang]
    axis.plot([x], [law.score(x)], marker="o", ms=5, mfc="white", mec=colour, mew=1.1, zorder=5)
    axis.plot([y], [law.score(y)], marker="o", ms=5, color=colour, zorder=6)


def _bar(axis: Any, shares: Shares, lang: str, paint: dict[str, Any], at: int) -> None:
    """The optimal share as a bar, the even one as a line across it, what there is as a mark."""
    share, even, most = (100 * x / shares.budget for x in (shares.best[lang], shares.even[lang], shares.most[lang]))
    axis.barh(at, share, 0.62, edgecolor="#333333", lw=0.4, **paint)
    axis.plot([even, even], [at - 0.42, at + 0.42], color="black", lw=1.4, ls=(0, (2, 1)), zorder=4)
    if shares.bound(lang):
        axis.plot([most, most], [at - 0.31, at + 0.31], color="black", lw=2, zorder=4)
    axis.annotate(f"{shares.counts()[lang]:,}", (max(share, even), at), (4, 0), textcoords="offset points", va="center", fontsize=6.5)
