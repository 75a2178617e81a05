"""The picture of an ablation: each variant's difference to its reference with a 95 % interval, one panel a score. No torch."""
from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from xalign.report.drawing import COLOURS, GREY, WIDTH, NotDrawn, Plot, describe, legend_above, new_plot, styled
from xalign.rows import percent
from xalign.studies.effects import Effect, Panel
from xalign.studies.variants import Variant
from xalign.tables import number

A_ROW = 4  # panels side by side
LONGEST = 32  # letters of a variant's name on one line
BETTER, WORSE = COLOURS[0], COLOURS[1]


@styled
def effects_plot(panels: Sequence[Panel], variants: Sequence[Variant], references: Mapping[str, Variant]) -> Plot:
    """Dots and whiskers, the scores of the target languages first.

    Raises:
        NotDrawn: nothing could be compared.
    """
    drawn = [p for p in panels if any(_result(e) for e in p.effects.values())]
    labels = [v.label for v in variants if any(_result(p.effects.get(v.label)) for p in drawn)]
    if not drawn:
        raise NotDrawn("no variant could be compared with its reference")
    rows = math.ceil(len(drawn) / A_ROW)
    columns = math.ceil(len(drawn) / rows)
    shown = [textwrap.fill(label, LONGEST) for label in labels]
    wide = 0.2 + 0.062 * max(len(line) for text in shown for line in text.split("\n"))
    tall = 0.09 + 0.12 * max(text.count("\n") + 1 for text in shown)
    figure = new_plot("ablation", min(WIDTH, wide + 0.3 + 2.0 * columns), 1.05 + rows * (0.62 + tall * len(labels)))
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    whom = list(dict.fromkeys(v.label for v in references.values()))
    alt = []
    for axis, panel in zip(axes, drawn, strict=False):
        pc = percent(panel.score.metric)
        for y, label in enumerate(labels):
            if y % 2 == 0:
                axis.axhspan(y - 0.5, y + 0.5, color="#f4f4f4", lw=0, zorder=0)
            effect = panel.effects.get(label)
            if effect and (got := _result(effect)):
                colour = _colour(effect, panel.score.lower)
                if not math.isnan(got.ci_low):
                    axis.plot([got.ci_low, got.ci_high], [y, y], color=colour, lw=1.3, solid_capstyle="butt")
                axis.plot(got.diff, y, marker="o", ms=5, color=colour, mfc=colour if effect.mark == "**" else "white", mew=1.2, zorder=3)
                alt.append(f"{panel.title} ({panel.of}), {label}: {number(got.diff, pc, sign=True)}{effect.mark} "
                           f"[{number(got.ci_low, pc, sign=True)}, {number(got.ci_high, pc, sign=True)}]")
        axis.axvline(0, color="black", lw=0.8, zorder=1)
        axis.set_title(_title(panel, whom), loc="left", fontsize=7.5)
        axis.xaxis.set_major_locator(MaxNLocator(4 if columns > 3 else 5, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter(lambda v, _, pc=pc: "0" if abs(v) < 1e-9 else f"{v:+g}".replace("0.", ".").replace("-", "−"))
        axis.margins(x=0.08)
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set(yticks=range(len(labels)), yticklabels=shown, ylim=(len(labels) - 0.5, -0.5))
    for axis in axes[len(drawn):]:
        axis.remove()
    effects = [e for p in drawn for e in p.effects.values() if _result(e)]
    legend_above(figure, *_legend(drawn))
    to = whom[0] if len(whom) == 1 else f"the same settings with {next(iter(references.values())).runs[0].method}"
    text = f"Lines: 95 % bootstrap intervals; n {_span(effects)} items a score"
    text += f", mean over {len(drawn[0].langs)} languages" * (len(drawn[0].langs) > 1)
    text += ". p: paired randomisation test, Holm's correction over the variants of a score."
    text += " Shares; BLEU, chrF and ROUGE 0–100." if any(percent(p.score.metric) for p in drawn) else " Shares."
    describe(figure, f"Difference to {to}.", text, f"Difference to {to}. " + "; ".join(alt))
    return figure


def _result(effect: Effect | None) -> Any:
    return effect.outcome.result if effect and effect.outcome else None


def _colour(effect: Effect, lower: bool) -> str:
    if not effect.mark:
        return GREY
    return BETTER if (_result(effect).diff > 0) != lower else WORSE


def _title(panel: Panel, whom: Sequence[str]) -> str:
    """Whose score it is and, with one reference, its value."""
    lines = [panel.of, panel.title + (", lower is better" if panel.score.lower else "")]
    if len(whom) == 1 and whom[0] in panel.effects:
        lines[0] += f" ({whom[0]}: {number(panel.effects[whom[0]].cell['mean'].value, percent(panel.score.metric))})"
    return "\n".join(lines)


def _legend(panels: Sequence[Panel]) -> tuple[list[Line2D], list[str]]:
    found = {}
    for panel in panels:
        for effect in (e for e in panel.effects.values() if _result(e)):
            colour = _colour(effect, panel.score.lower)
            word = "not significant" if not effect.mark else "better" if colour == BETTER else "worse"
            text = {"": word, "*": f"{word}, p < .05", "**": f"{word}, p < .05 after Holm"}[effect.mark]
            found[text] = Line2D([], [], color=colour, marker="o", ms=5, lw=1.3, mew=1.2, mfc=colour if effect.mark == "**" else "white")
    texts = sorted(found, key=lambda t: (not t.startswith("worse"), not t.startswith("better"), len(t)))
    return [found[t] for t in texts], texts


def _span(effects: Sequence[Effect]) -> str:
    counts = sorted({_result(e).n for e in effects})
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
