"""A shared budget and what came of it: shares as bars beside the differences to the uniform split with their intervals. No torch."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from xalign.report.drawing import GREY, WIDTH, Plot, colours, describe, language, legend_above, new_plot, spread, styled
from xalign.rows import arrow
from xalign.studies.allocation_runs import MEAN, UNIFORM, Split, unit

if TYPE_CHECKING:
    from xalign.studies.allocation_runs import Way


@styled
def draw(splits: Sequence[Split], task: str, metric: str) -> Plot:
    """One line of panels a budget: left the shares, right the score's differences, languages from top to bottom."""
    shown = [split for split in splits if len(split.ways) > 1]
    names = list(dict.fromkeys(way.name for split in shown for way in split.ways))
    paint = colours(names)
    sizes = [len(split.langs) * (0.14 + 0.12 * len(split.ways)) + 0.75 for split in shown]
    figure = new_plot("allocation", WIDTH, 1.1 + sum(sizes))
    axes = figure.subplots(len(shown), 2, squeeze=False, height_ratios=sizes, width_ratios=(1.1, 1))
    predicted = False
    for (left, right), split in zip(axes, shown, strict=True):
        places = {lang: y for y, lang in enumerate(reversed([*split.langs, *([MEAN] if len(split.langs) > 1 else [])]))}
        thick = 0.8 / len(split.ways)
        for k, way in enumerate(split.ways):
            offset = 0.4 - (k + 0.5) * thick
            for lang in split.langs:
                share = 100 * way.counts[lang] / split.budget
                at = places[lang] + offset
                left.barh(at, share, thick * 0.94, edgecolor="#333333", lw=0.4, **paint[way.name])
                left.annotate(f"{way.rows[lang]:,.0f}", (share, at), (3, 0), textcoords="offset points", va="center", fontsize=6)
            predicted |= _differences(right, split, way, {x: y + offset for x, y in places.items()}, paint[way.name]["facecolor"],
                                      unit(metric))
        for axis in (left, right):
            axis.set_ylim(-0.6, len(places) - 0.4)
            axis.set_yticks(list(places.values()), [language(x) for x in places])
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x")
            if len(split.langs) > 1:
                axis.axhline(0.5, color=GREY, lw=0.6)
        right.axvline(0, color="black", lw=0.8)
        right.tick_params(axis="y", labelleft=False)
        left.set_xlim(0, 1.18 * max(100 * way.counts[lang] / split.budget for way in split.ways for lang in split.langs))
        left.set_title(split.title, loc="left")
    spans = [axis.get_xlim() for axis in axes[:, 1]]
    for axis in axes[:, 1]:
        axis.set_xlim(min(low for low, _ in spans), max(high for _, high in spans))
    axes[-1, 0].set_xlabel("share of the rows (%), with rows trained on")
    axes[-1, 1].set_xlabel(f"{metric} minus that of the {UNIFORM} split (points)")
    handles: list[Any] = [Patch(edgecolor="#333333", lw=0.4, **paint[name]) for name in names]
    labels = list(names)
    handles.append(Line2D([], [], marker="o", ms=4.5, color=GREY, lw=1.2))
    labels.append("measured, 95 %")
    if predicted:
        handles.append(Line2D([], [], marker="D", ms=4.5, mfc="white", mec=GREY, lw=0))
        labels.append("predicted by the laws")
    legend_above(figure, handles, labels)
    describe(figure, *_words(shown, task, metric))
    return figure


def _differences(axis: Any, split: Split, way: Way, places: dict[str, float], colour: str, scale: int) -> bool:
    """One way's measured and predicted differences; True if there is a prediction."""
    base, said = split.ways[0], split.predicted(way)
    for x, y in places.items():
        got = way.tests[x].result if x in way.tests else None
        if got:
            axis.plot([scale * got.ci_low, scale * got.ci_high], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
            axis.plot([scale * got.diff], [y], marker="o", ms=4.5, color=colour, zorder=4)
        if said and base.name == UNIFORM and way is not base:
            axis.plot([said[x] - split.predicted(base)[x]], [y], marker="D", ms=4.5, mfc="white", mec=colour, mew=1, zorder=5)
    return bool(said) and way is not base and base.name == UNIFORM


def _words(splits: Sequence[Split], task: str, metric: str) -> tuple[str, str, str]:
    """Title, caption, alternative text."""
    scale, parts = unit(metric), []
    for split in splits:
        for way in (way for way in split.ways if way.tests):
            last = MEAN if MEAN in way.tests else split.langs[0]
            if got := way.tests[last].result:
                span = f"[{scale * got.ci_low:+.2f}, {scale * got.ci_high:+.2f}]"
                parts.append(f"{split.title}, {way.name}: {last} {scale * got.diff:+.2f} {span}")
    counts = [way.value(lang)[2] for split in splits for way in split.ways for lang in split.langs]
    text = (f"Difference in {arrow(task)} {metric}: {'; '.join(parts) or 'none could be tested'}. n {spread(counts)} items a language; "
            "95 % paired bootstrap intervals")
    seeds = max(len(way.runs) for split in splits for way in split.ways)
    text += " over items and seeds." if seeds > 1 else " over items; one training each."
    text += " Diamonds: the same difference by the laws that made the allocation." * any(split.laws for split in splits)
    alt = "; ".join(f"{split.title}, {way.name}: " + ", ".join(f"{language(k)} {way.rows[k]:,.0f}" for k in split.langs)
                    for split in splits for way in split.ways)
    return "A budget of translation rows, shared in several ways.", text, f"Bars and points. {alt}. {'; '.join(parts)}"
