"""Tables, pictures and files of study=similarity. No torch."""
from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from xalign.analysis.systems import tell_apart
from xalign.report.curves import wilson
from xalign.report.drawing import COLOURS, GREY, INTERVAL, WIDTH, Plot, describe, language, legend_above, new_plot, spread, styled
from xalign.studies.base import Findings
from xalign.studies.similarity import HIGH, LOW, Similarity, mean_se
from xalign.tables import Grid, number, with_error

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

MARKERS = "osD^vP*X"
CROWDED = 16  # languages; with more, a heat map's cells have no room for numbers
Labels = Mapping[str, Mapping[int, str]]  # language → id of a Space → what it is called among those of this language


@dataclass(frozen=True)
class Space:
    """One model's similarities.

    Attributes:
        run: the first run that measured it.
        when: ``before`` or ``after`` training.
        facts: what `xalign.studies.similarity.measure` found.
        base: of a trained model, the untrained one.
    """

    run: FinishedRun
    when: str
    facts: Mapping[str, Any] = field(repr=False)
    base: Space | None = None

    @property
    def source(self) -> str:
        return self.facts["langs"][0]

    @property
    def langs(self) -> list[str]:
        """The languages that are compared with the source."""
        return self.facts["langs"][1:]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes it another model or another measurement, but for seed and languages."""
        own = self.run.model(self.when).identity
        if self.when == "before":
            own = {k: v for k, v in own.items() if not k.startswith(("task", "choices.task", "mode"))}
        return own | {"source": self.source} | {f"study.{k}": self.facts[k] for k in ("layer", "pooling", "centre", "text")}

    def parts(self, lang: str, name: str) -> list[float]:
        """Every text's own score."""
        return self.facts["texts"][lang][name]


def report(study: Similarity, spaces: Sequence[Space]) -> Findings:
    """Everything that study=similarity shows of these models."""
    labels = {lang: _labels([s for s in spaces if lang in s.langs]) for lang in dict.fromkeys(x for s in spaces for x in s.langs)}
    return Findings([_table(study, spaces, labels)], [_points(study, spaces, labels), *_heat_maps(spaces)],
                    {**_gammas(study, spaces), "similarity.csv": _csv(spaces)})


def _labels(spaces: Sequence[Space]) -> dict[int, str]:
    """id → a name that no other of these has."""
    trained = any(s.when == "after" for s in spaces)
    names = [s.run.method if s.when == "after" else "untrained" if trained else s.run.model("before").name for s in spaces]
    facts = [s.settings | {"lang": ",".join(s.langs), "seed": s.run.seed} for s in spaces]
    return dict(zip(map(id, spaces), tell_apart(names, facts, [s.run.folder for s in spaces])[0], strict=True))


def _table(study: Similarity, spaces: Sequence[Space], labels: Labels) -> Grid:
    """A row a language, or where there are several models a section a language and a row a model."""
    sources = list(dict.fromkeys(s.source for s in spaces))
    of = sources[0] if len(sources) == 1 else "source"
    several, changes = any(len(own) > 1 for own in labels.values()), any(s.base for s in spaces)
    grid = Grid(f"Similarity of translations to {language(of) if len(sources) == 1 else 'the source language'}",
                ["model" if several else "language", "n", "retrieval@1", f"{of}→", f"→{of}", "cosine", "random\npairs", "γ"]
                + ["after -\nbefore"] * changes)
    reached: set[float] = set()
    for lang, own in labels.items():
        title = f"{language(lang)} ({lang})"
        if several:
            grid.rows.append([title])
        for s in (s for s in spaces if id(s) in own):
            at, (gamma, se) = s.facts["langs"].index(lang), study.gamma(s.facts, lang)
            reached |= {gamma} & {LOW, HIGH} if study.measure != "constant" else set()
            row = [own[id(s)] if several else title, str(s.facts["n"]), with_error(*mean_se(s.parts(lang, "retrieval"))),
                   number(s.facts["retrieval"][0][at]), number(s.facts["retrieval"][at][0]),
                   with_error(*mean_se(s.parts(lang, "mean_cosine"))), number(s.facts["random"][0][at]), with_error(gamma, se)]
            if changes:
                row.append(with_error(*mean_se(_changes(study, s, lang)), sign=True) if s.base and study.measure != "constant" else "")
            grid.rows.append(row)
    how = {"retrieval": "retrieval@1", "mean_cosine": "the mean cosine of translations", "constant": "as asked for, nothing measured"}
    limits = f"{LOW} and {HIGH}{' (reached here)' * bool(reached)}"
    grid.notes.append(f"γ: {how[study.measure]}, kept between {limits}; ± standard error over texts"
                      + ("; after - before: of γ, text by text." if changes else "."))
    grid.notes.append(f"retrieval@1: share of texts whose translation is the nearest of all n by cosine, mean of both directions "
                      f"({of}→: the translations are searched); chance is 1/n. Random pairs: mean cosine of other texts.")
    if HIGH in reached and study.measure == "retrieval":
        grid.notes.append("where retrieval@1 is at its limit, γ tells languages apart with measure=mean_cosine, or with more sentences.")
    if len({s.facts["n"] for s in spaces}) > 1:
        grid.notes.append("more texts are harder to search: retrieval@1 of different n cannot be compared.")
    picked = {(s.facts["layer"], *s.langs): s.facts for s in spaces if "by_layer" in s.facts}
    for (layer, *langs), facts in picked.items():
        here, last = (number(facts["by_layer"][i]) for i in (layer, -1))
        grid.notes.append(f"layer {layer} of {facts['layers']} was picked: retrieval@1 of {', '.join(langs)} is {here} there and {last} in "
                          "the last layer, before training.")
    if len({layer for layer, *_ in picked}) > 1:
        grid.notes.append("γ of different layers cannot be compared: name one (study.layer=N), or ask for all languages in one run "
                          "(mode=study).")
    grid.notes += dict.fromkeys(study.signature(s.facts) for s in spaces)
    return grid


def _changes(study: Similarity, s: Space, lang: str) -> list[float]:
    """After minus before, text by text."""
    return [b - a for a, b in zip(s.base.parts(lang, study.measure), s.parts(lang, study.measure), strict=True)] if s.base else []


@styled
def _points(study: Similarity, spaces: Sequence[Space], labels: Labels) -> Plot:
    """One row a language, one point a model, 95 % intervals; random pairs or chance beside it."""
    measure = "mean_cosine" if study.measure == "mean_cosine" else "retrieval"
    found = {lang: [(own[id(s)], s, *mean_se(s.parts(lang, measure))) for s in spaces if id(s) in own] for lang, own in labels.items()}
    order = sorted(found, key=lambda lang: found[lang][0][2], reverse=True)
    names = list(dict.fromkeys(label for own in found.values() for label, *_ in own))
    paint = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    rows = sum(max(1, 0.55 * len(own)) for own in found.values())
    figure = new_plot("similarity", 4.8, 1.15 + 0.2 * rows + 0.2 * math.ceil(len(names) / 3))
    axis = figure.subplots()
    chances = {1 / s.facts["n"] for s in spaces}
    y, ticks = 0.0, []
    for lang in order:
        step = max(1, 0.55 * len(found[lang])) / len(found[lang])
        ticks.append(y + step * (len(found[lang]) - 1) / 2)
        for label, s, value, se in found[lang]:
            colour, marker = paint[label]
            if measure == "mean_cosine":
                axis.plot(s.facts["random"][0][s.facts["langs"].index(lang)], y, "|", color=GREY, ms=7, mew=1.2)
            low, high = wilson(value, s.facts["n"]) if measure == "retrieval" else (value - INTERVAL * se, value + INTERVAL * se)
            axis.errorbar(value, y, xerr=[[value - low], [high - value]], color=colour, marker=marker, ms=4, lw=1, capsize=2, zorder=3)
            y += step
        y += 0.25
    if measure == "retrieval":
        for chance in chances:
            axis.axvline(chance, color=GREY, ls=":", lw=1)
    axis.set(xlim=(min(0.0, axis.get_xlim()[0]) - 0.01, 1.03), ylim=(y - 0.25, -0.75),
             xlabel="mean cosine of translations" if measure == "mean_cosine" else "retrieval@1, mean of both directions")
    axis.set_yticks(ticks, [language(lang) for lang in order])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    handles = [Line2D([], [], color=c, marker=m, ms=4, lw=1) for c, m in paint.values()] if len(names) > 1 else []
    handles.append(Line2D([], [], color=GREY, ls=":", lw=1) if measure == "retrieval" else
                   Line2D([], [], color=GREY, marker="|", ms=7, mew=1.2, ls=""))
    legend_above(figure, handles, [*(names if len(names) > 1 else []), "chance" if measure == "retrieval" else "random pairs"])
    to = ", ".join(dict.fromkeys(language(s.source) for s in spaces))
    whiskers = "Wilson interval" if measure == "retrieval" else "interval (1.96 x s.e.)"
    text = (f"n {spread([s.facts['n'] for s in spaces])} texts a language; whiskers: 95 % {whiskers}. "
            + "; ".join(dict.fromkeys(_about(s) for s in spaces)) + ".")
    alt = "; ".join(f"{language(lang)} " + ", ".join(f"{label} {number(value)}" for label, _, value, _ in found[lang]) for lang in order)
    describe(figure, f"Similarity of translations to {to}.", text, f"Points. {alt}.")
    return figure


def _about(s: Space) -> str:
    """``SmolLM2 layer 30 of 30, mean of tokens, lab-sentences``."""
    f = s.facts
    pooling = "last token" if f["pooling"] == "last" else "mean of tokens"
    return f"{s.run.model('before').name}, layer {f['layer']} of {f['layers']}, {pooling}{', centred' * f['centre']}, {f['text']}"


def _heat_maps(spaces: Sequence[Space]) -> list[Plot]:
    """Retrieval between all languages, of each untrained model that nothing was trained from and of each trained one beside it."""
    large = [s for s in spaces if len(s.facts["langs"]) > 2]
    names, bases = _labels(large), {id(s.base) for s in large if s.base}
    shown = [[s.base, s] if s.base else [s] for s in large if id(s) not in bases]
    return [_heat_map(panels, [names[id(s)] for s in panels], "similarity_matrix"
                      + (f"_{re.sub(r'[^A-Za-z0-9=.-]+', '_', names[id(panels[-1])])}" if len(shown) > 1 else "")) for panels in shown]


@styled
def _heat_map(panels: Sequence[Space], names: Sequence[str], stem: str) -> Plot:
    """Language x language, one panel a model; like languages stand together, as in the first panel."""
    langs = panels[0].facts["langs"]
    k, order = len(langs), _clustered(panels[0].facts["retrieval"])
    beside = len(panels) > 1 and k <= 9
    rows, columns = (1, len(panels)) if beside else (len(panels), 1)
    side = min((WIDTH - 1.2) / k / columns, 0.46)  # inches of a cell
    figure = new_plot(stem, min(WIDTH, (side * k + 0.95) * columns + 0.7), (side * k + 0.4) * rows + 0.55)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    cmap, norm = colormaps["cividis"], Normalize(0, 1)
    for axis, s, name in zip(axes, panels, names, strict=True):
        cells = [[s.facts["retrieval"][i][j] if i != j else math.nan for j in order] for i in order]
        image = axis.imshow(cells, cmap=cmap, norm=norm)
        for y, row in enumerate(cells if k <= CROWDED else []):
            for x, v in enumerate(row):
                if x != y:
                    axis.text(x, y, f"{v:.2f}"[1:] if v < 0.995 else "1.0", ha="center", va="center_baseline", fontsize=min(7, 16 * side),
                              color="white" if v < 0.5 else "black").set_in_layout(False)
        axis.set_xticks(range(k), [langs[i] for i in order], rotation=0 if side > 0.3 else 90)
        axis.set_yticks(range(k), [language(langs[i]) for i in order])
        axis.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
        axis.spines[:].set_visible(False)
        axis.set_title(name, loc="left")
    figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=30, label="retrieval@1")
    n = spread([s.facts["n"] for s in panels])
    text = (f"Row: the language that asks; column: the one whose n {n} texts are searched; chance 1/n. "
            f"Languages by average-linkage clustering{' of the first panel' * (len(panels) > 1)}. {_about(panels[0])}.")
    alt = "; ".join(f"{name}: from {language(s.source)} to " + ", ".join(
        f"{language(lang)} {number(v)}" for lang, v in zip(langs[1:], s.facts["retrieval"][0][1:], strict=True))
        for s, name in zip(panels, names, strict=True))
    describe(figure, "Retrieval@1 of translations between all languages.", text, f"Heat map. {alt}.")
    return figure


def _clustered(retrieval: Sequence[Sequence[float]]) -> list[int]:
    """The order of the languages in which those that find each other's translations are neighbours."""
    import numpy as np
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    near = np.array(retrieval)
    far = 1 - (near + near.T) / 2
    np.fill_diagonal(far, 0)
    return leaves_list(linkage(squareform(far), "average", optimal_ordering=True)).tolist()


def _gammas(study: Similarity, spaces: Sequence[Space]) -> dict[str, str]:
    """gamma.yaml: language → γ of the untrained backbone, as the scaling law takes it; one file a backbone where there are several."""
    untrained = [s for s in spaces if s.when == "before"]
    groups: dict[str, list[Space]] = {}
    for s in untrained:
        groups.setdefault(repr(sorted(s.settings.items())), []).append(s)
    firsts = [own[0] for own in groups.values()]
    names = tell_apart([s.run.model("before").name for s in firsts], [s.settings for s in firsts], [s.run.folder for s in firsts])[0]
    files = {}
    for name, own in zip(names, groups.values(), strict=True):
        values: dict[str, list[float]] = {}
        for s in own:
            for lang in s.langs:
                values.setdefault(lang, []).append(study.gamma(s.facts, lang)[0])
        lines = [f"# {study.signature(own[0].facts)}|n:{spread([s.facts['n'] for s in own])}|{name}, untrained",
                 *(f"{lang}: {round(statistics.fmean(found), 4)}" for lang, found in values.items())]
        stem = "gamma" if len(groups) == 1 else "gamma_" + re.sub(r"[^A-Za-z0-9=.-]+", "_", name)
        files[f"{stem}.yaml"] = "\n".join(lines) + "\n"
    return files


def _csv(spaces: Sequence[Space]) -> str:
    """Every ordered pair of languages of every model, unrounded."""
    file, labels = io.StringIO(), _labels(spaces)
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["model", "when", "run", "seed", "source", "asks", "searched", "n", "retrieval_at_1", "mean_cosine", "random_cosine",
                  "layer", "layers", "pooling", "centred", "text"])
    for s in spaces:
        f = s.facts
        out.writerows([labels[id(s)], s.when, s.run.name, s.run.seed, s.source, a, b, f["n"], f["retrieval"][i][j], f["cosine"][i][j],
                       f["random"][i][j], f["layer"], f["layers"], f["pooling"], f["centre"], f["text"]]
                      for i, a in enumerate(f["langs"]) for j, b in enumerate(f["langs"]) if i != j)
    return file.getvalue()
