"""Pictures of `representations`: curves over the layers, and maps in which lines join parallel sentences. No torch."""
from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from xalign.report.drawing import COLOURS, GREY, INTERVAL, WIDTH, Plot, describe, language, legend_above, new_plot, styled
from xalign.studies.representation_views import NAMES, OF, Entry, Space, about, average
from xalign.studies.representations import METRICS, POOLINGS, TESTED
from xalign.tables import number

MARKERS = "os^DvPX*"
FEW = 6  # languages of one system that get a line each
LINE = Callable[[str, int, str], tuple[float | None, float | None]]  # pooling, layer, metric → value, standard error


@dataclass(frozen=True)
class Curve:
    """A line in every panel of `curves`."""

    label: str
    colour: str
    style: Any
    layers: int
    at: LINE


def plots(entries: Sequence[Entry], draw: int) -> list[Plot]:
    """The curves, and for each set of languages that runs share the two kinds of maps; `draw` sentences are drawn in a map."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        for langs in dict.fromkeys(tuple(space.langs) for space in entry.every):
            groups.setdefault(langs, []).append(entry)
    out = [curves(entries)]
    for langs, own in groups.items():
        end = "" if len(groups) == 1 else "_" + "_".join(langs[1:] if len(langs) <= 4 else (f"{len(langs) - 1}langs",))
        panels = _models(own, langs)
        out += [tsne_map(panels, draw, end), pca_maps(panels, draw, end)]
    return out


def _models(entries: Sequence[Entry], langs: tuple[str, ...]) -> list[tuple[str, Space]]:
    """Titled spaces of these languages, of the first seed: untrained models first, each once."""
    before: dict[str, tuple[str, Space]] = {}
    after = []
    for entry in entries:
        found = next(f for runs in entry.spaces.values() for f in runs if any(tuple(s.langs) == langs for s in f.values()))
        if "after" in found:
            after.append((entry.label, found["after"]))
        if "before" in found:
            before.setdefault(found["before"].key, ("untrained" if "after" in found else entry.label, found["before"]))
    return [*before.values(), *after]


def _average(entry: Entry, langs: Sequence[str], when: str) -> LINE:
    """The mean over languages; its error as if theirs went together, for they are measured on the same sentences."""
    def at(pooling: str, layer: int, metric: str) -> tuple[float | None, float | None]:
        found = [(v, se) for lang in langs for v, se in [average(entry.own(lang, when), lang, pooling, layer, metric)] if v is not None]
        if not found:
            return None, None
        return statistics.fmean(v for v, _ in found), statistics.fmean(se or 0.0 for _, se in found)

    return at


def _lines(entries: Sequence[Entry]) -> tuple[list[Curve], str]:
    """The curves, and what they are the mean of."""
    trained = [e for e in entries if e.when == "after"]
    if len(entries) == 1 and len(entries[0].spaces) <= FEW:
        (entry,), found = entries, []
        for i, lang in enumerate(entry.spaces):
            colour, layers = _look(i + 1)["color"], entry.own(lang)[0].layers  # as in the maps
            if trained:
                grey = GREY if len(entry.spaces) == 1 else colour
                found.append(Curve(f"{language(lang)}, untrained", grey, (0, (3, 2)), layers, _average(entry, [lang], "before")))
            name = f"{language(lang)}, {entry.label}" if trained else language(lang)
            found.append(Curve(name, colour, "-", layers, _average(entry, [lang], "")))
        return found, ""
    shared = [lang for lang in entries[0].spaces if all(lang in e.spaces for e in entries)]
    over = {id(e): shared or list(e.spaces) for e in entries}
    keys: dict[Any, set[str]] = {}
    for e in trained:
        for lang in over[id(e)]:
            for i, space in enumerate(e.own(lang, "before")):
                keys.setdefault((lang, i), set()).add(space.key)
    one = all(len(k) == 1 for k in keys.values())  # all begin with the same model
    found = []
    for i, e in enumerate(entries):
        layers = e.every[0].layers
        colour = COLOURS[i % len(COLOURS)]
        if e in trained and (not one or e is trained[0]):
            name, paint = ("untrained", GREY) if one else (f"{e.label}, untrained", colour)
            found.append(Curve(name, paint, (0, (3, 2)), layers, _average(e, over[id(e)], "before")))
        found.append(Curve(e.label, colour, "-", layers, _average(e, over[id(e)], "")))
    langs = dict.fromkeys(lang for own in over.values() for lang in own)
    text = f"Mean over {', '.join(map(language, langs))}" if len(langs) <= FEW else f"Mean over {len(langs)} languages"
    return found, (text if len(langs) > 1 else language(next(iter(langs)))) + ("" if shared else ", each system over its own") + ". "


@styled
def curves(entries: Sequence[Entry]) -> Plot:
    """Each metric over the layers, a row of panels for the mean of the tokens and one for the last token."""
    lines, what = _lines(entries)
    space, deep = entries[0].every[0], {c.layers for c in lines}
    figure = new_plot("layers", WIDTH, 4.2)
    figure.get_layout_engine().set(rect=(0, 0, 0.995, 1))  # the last tick's label hangs over
    axes = figure.subplots(len(POOLINGS), len(METRICS), squeeze=False, sharex=True)
    for row, pooling in zip(axes, POOLINGS, strict=True):
        for axis, metric in zip(row, METRICS, strict=True):
            for c in lines:
                found = [(layer / (c.layers if len(deep) > 1 else 1), *c.at(pooling, layer, metric)) for layer in range(c.layers + 1)]
                xs, ys, ses = (list(v) for v in zip(*[f for f in found if f[1] is not None], strict=True))
                axis.plot(xs, ys, color=c.colour, ls=c.style, lw=1.3, label=c.label)
                low, high = ([y + side * INTERVAL * (se or 0) for y, se in zip(ys, ses, strict=True)] for side in (-1, 1))
                low = [max(v, 0) for v in low] if metric in TESTED else low
                axis.fill_between(xs, low, high, color=c.colour, alpha=0.13, lw=0)
            axis.axhline(1 / space.n if metric in TESTED else 0, color="#999999", lw=0.7, ls=":")
            axis.grid(axis="y")
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=len(deep) == 1))
            if pooling == POOLINGS[0]:
                axis.set_title(NAMES[metric], loc="left")
            else:
                axis.set_xlabel("layer" if len(deep) == 1 else "depth (share of the layers)")
        row[0].set_ylabel(OF[pooling])
    handles = [Line2D([], [], color=c.colour, ls=c.style, lw=1.3) for c in lines]
    legend_above(figure, handles, [c.label for c in lines])
    text = (f"{what}{about(space)}. Layer 0: embeddings. Bands: 95\u00a0% (1.96 x s.e.). Dotted: chance (1/{space.n}) or 0, unrelated "
            "vectors. Centred: after each language's mean vector has been subtracted. CKA: linear, unbiased.")
    alt = [f"{c.label}: " + ", ".join(f"{NAMES[m]} {number(c.at('mean', layer, m)[0])}" for m in METRICS) for c in lines
           for layer in [round(c.layers / 2)]]
    alt_text = "Curves. In the middle layer, mean of the tokens: " + "; ".join(alt) + "."
    describe(figure, "How near translations lie, layer by layer.", text, alt_text)
    return figure


def _near(space: Space, pooling: str, layer: int) -> str:
    """The numbers of a panel, means over the languages."""
    cells = []
    for metric, short in zip(METRICS, ("retrieval", "centred", "margin"), strict=False):
        values = [v for lang in space.langs[1:] for v, _ in [space.value(lang, pooling, layer, metric)] if v is not None]
        cells.append(f"{short} {number(statistics.fmean(values) if values else None)}")
    return ", ".join(cells)


def _map(axis: Any, space: Space, kind: str, layer: int, draw: int, size: float) -> None:
    """One map: a point a sentence and language, a line from each to its original, whose point is larger so that none hides it."""
    places = space.points[kind, layer]
    source, *others = space.langs
    ids = space.ids[:draw]
    joins = [[places[source][i], places[lang][i]] for lang in others for i in ids]
    axis.add_collection(LineCollection(joins, colors="#777777", linewidths=0.45, alpha=0.45, zorder=1))
    for k, lang in enumerate(space.langs):
        xs, ys = zip(*(places[lang][i] for i in ids), strict=True)
        axis.scatter(xs, ys, s=size if k else 2 * size, lw=0.3, edgecolor="white", zorder=2, **_look(k))
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color("#bbbbbb")


def _look(k: int) -> dict[str, str]:
    """Colour and marker of the k-th language."""
    return {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}


def _legend(figure: Plot, langs: Sequence[str]) -> None:
    handles = [Line2D([], [], ls="", ms=4 if k else 6, **_look(k)) for k in range(len(langs))]
    legend_above(figure, [*handles, Line2D([], [], color="#777777", lw=0.7, alpha=0.6)], [*map(language, langs), "joins translations"])


@styled
def tsne_map(models: Sequence[tuple[str, Space]], draw: int, end: str) -> Plot:
    """The last layer's last token in two dimensions by t-SNE, a panel a model. Source: SDRRL, Figure 2."""
    columns = len(models) if len(models) <= 3 else math.ceil(len(models) / math.ceil(len(models) / 4))
    rows, side = math.ceil(len(models) / columns), min(3.1, WIDTH / columns)
    figure = new_plot(f"tsne{end}", max(columns * side, 4.4), rows * (side + 0.15) + 0.85)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    space, alt = models[0][1], []
    for axis, (title, own) in zip(axes, models, strict=False):
        _map(axis, own, "tsne", own.layers, draw, 13 if columns < 3 else 8)
        numbers = _near(own, "last", own.layers)
        lines = numbers if columns < 3 else numbers.replace(", ", "\n")
        axis.set_title(f"{title}\n{lines}", loc="left", fontsize=8 if columns < 4 else 7)
        alt.append(f"{title}: {numbers}")
    for axis in axes[len(models):]:
        axis.remove()
    _legend(figure, space.langs)
    text = (f"{about(space)}; {min(draw, space.n)} are drawn. Each panel is fitted on its own, all languages and sentences together "
            f"(perplexity {space.facts['perplexity']:.0f}); distances between groups mean nothing. The numbers are of the whole vectors: "
            f"retrieval@1 (chance {number(1 / space.n)}), the same with each language's mean subtracted, cosine margin.")
    describe(figure, "t-SNE of the last token's state after the last layer.", text, "Map. " + "; ".join(alt) + ".")
    return figure


@styled
def pca_maps(models: Sequence[tuple[str, Space]], draw: int, end: str) -> Plot:
    """The first two principal components of the mean over tokens, a row a model, a column a layer. Source: x-LLM, Figure 5."""
    columns = max(len(s.stated) for _, s in models)
    figure = new_plot(f"pca{end}", WIDTH, 0.85 + (WIDTH / max(columns, 4) + 0.3) * len(models))
    axes = figure.subplots(len(models), columns, squeeze=False)
    space, alt = models[0][1], []
    for row, (title, own) in zip(axes, models, strict=True):
        for axis, (name, layer) in zip(row, own.stated.items(), strict=False):
            _map(axis, own, "pca", layer, draw, 7)
            numbers = _near(own, "mean", layer)
            heading = f"layer {layer}" + f" ({name})" * (name in ("first", "middle", "last"))
            axis.set_title(f"{heading}\n" * (own is space) + numbers.replace(", ", "\n"), loc="left", fontsize=6.5)
            explained = " + ".join(f"{100 * v:.0f} %" for v in own.facts["explained"][str(layer)])
            axis.set_xlabel(explained, fontsize=6, labelpad=1.5, color=GREY)
            alt.append(f"{title}, layer {layer}: {numbers}")
        for axis in row[len(own.stated):]:
            axis.remove()
        row[0].set_ylabel(title)
    _legend(figure, space.langs)
    text = (f"{about(space)}; {min(draw, space.n)} are drawn. Each panel is fitted on its own, all languages and sentences together; below "
            "it the variance that its two axes explain. The numbers are of the whole vectors: retrieval@1 (chance "
            f"{number(1 / space.n)}), the same with each language's mean subtracted, cosine margin.")
    title = "Two principal components of sentence vectors (mean of the tokens, at length 1), by layer."
    describe(figure, title, text, "Maps. " + "; ".join(alt) + ".")
    return figure
