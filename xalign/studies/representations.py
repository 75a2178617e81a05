"""How near a sentence and its translation lie in a model, layer by layer, before and after training. No torch here.

SDRRL's Figure 2 (t-SNE of the last layer's last token) and x-LLM's Figure 5 (two dimensions of every few layers), which print no number,
with numbers beside them: retrieval@1, cosine margin and linear CKA of the whole vectors.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.analysis.multiway import FEWEST as FEWEST_TEXTS
from xalign.analysis.multiway import KINDS, check_texts, read_texts, texts_stage
from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, choice, within
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.studies.base import Findings, Study

if TYPE_CHECKING:
    import numpy as np

    from xalign.analysis.geometry import Measured
    from xalign.config import Run
    from xalign.report.runs import FinishedRun

POOLINGS = ("mean", "last")  # of a text's tokens: their mean, the last one alone
METRICS = ("retrieval@1", "retrieval@1_centred", "margin", "cka")  # centred: each language's vectors without their mean
TESTED = METRICS[:2]  # scores of single sentences: tested by paired randomisation
PLAIN = "cka_plain"  # the biased one, for comparison with papers that print it: in the files only
ALL = "mean"  # of the layers from 1 on: layer 0 is the table of embeddings
FILES = ("layers.jsonl", "sentences.jsonl", "points.jsonl")
ROWS = ((ALL, "mean", "", METRICS), ("last", "last", "_last_token", ("retrieval@1", "margin")))  # layer, pooling, end of the name, metrics


def stated(layers: int) -> dict[str, int]:
    """The layers that tables and maps show, chosen before anything is measured: name → number."""
    places = {"first": 1, "quarter": round(layers / 4), "middle": round(layers / 2), "three quarters": round(3 * layers / 4),
              "last": layers}
    found = {max(number, 1): name for name, number in places.items()}  # of a small model's, the later name stands
    return {name: number for number, name in sorted(found.items())}


@dataclass(frozen=True)
class Representations(Study):
    """See conf/study/representations.yaml. Texts are read bare, without the frame that some methods put around a question: its words
    are nearly the same in every language, and the untrained model has no tokens for a soft one."""

    name: ClassVar[str] = "representations"
    alone: ClassVar[bool] = True

    text: str = choice("sentences", *KINDS)
    path: str = ""
    sentences: int = within(200, low=0)
    instruction: bool = False
    draw: int = within(60, low=1)

    def check(self, path: str) -> None:
        super().check(path)
        if 0 < self.sentences < FEWEST_TEXTS:
            raise ConfigError(f"{path}.sentences={self.sentences}: must be at least {FEWEST_TEXTS}, or 0 for all there are")

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for texts that are not there, and for a template that the backbone does not have."""
        check_texts(run, _langs(run), self.text, self.path)
        if self.instruction and run.backbone.kind == "encoder":
            raise ConfigError(f"study.instruction=true: backbone={run.choices.get('backbone')} is an encoder and has no prompt template; "
                              "leave it out")

    def stages(self, run: Run, weights: Stage, model: Stage | None) -> dict[str, Stage]:
        texts = texts_stage(run, _langs(run), self.text, self.path, self.sentences)
        return {when: self._stage(run, stage, texts, when) for when, stage in (("before", weights), ("after", model)) if stage}

    def _stage(self, run: Run, model: Stage, texts: Stage, when: str) -> Stage:
        params = {"source": run.source, "langs": sorted(_langs(run)), "instruction": self.instruction, "seed": run.seed,
                  "backbone": run.backbone.params(), "text": self.text, "path": Path(self.path).name}
        node, langs = run.backbone, _langs(run)

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            from xalign.backbones.states import open_states, sentence_vectors
            from xalign.progress import bar

            found = read_texts(inputs[1])
            ids = [row["id"] for row in read_jsonl(inputs[1].file("texts.jsonl"))]
            backbone = open_states(inputs[0].path, node)
            with bar(total=len(ids) * len(langs), desc=f"hidden states, {when}", unit="text") as progress:
                facts = measure(folder, langs, ids, lambda lang: sentence_vectors(backbone, found[lang], self.instruction, progress.update),
                                run.seed)
            return {**facts, "source": run.source, "kind": node.kind, "text": params["text"], "path": params["path"],
                    "instruction": self.instruction}

        count = self.sentences or 500
        return Stage(self.name, 2, params, work, (model, texts), seconds(run, count * len(langs), self.instruction),
                     f"representations of {'the trained' if when == 'after' else 'the untrained'} model")

    def rows(self, run: Run, found: Mapping[str, Artifact]) -> list[dict[str, Any]]:
        """Each metric over the mean of all layers (mean of the tokens), and two of the last layer's last token, where SDRRL looks: chosen
        beforehand. Rows after training have the paired difference; retrieval has its p and its chance."""
        from xalign.studies.representation_views import Space, change, signature

        spaces = {when: Space(artifact.path) for when, artifact in found.items()}
        rows = []
        for lang in _langs(run)[1:]:
            for at, pooling, end, metric in ((*place, m) for *place, metrics in ROWS for m in metrics):
                for when, space in spaces.items():
                    key = lang, pooling, space.layers if at == "last" else at, metric
                    value, se = space.value(*key)
                    row = {"task": self.name, "lang": lang, "metric": metric + end, "value": value, "se": se, "n": space.n,
                           "signature": signature(space, metric, at, pooling), "when": when}
                    if value is None:
                        row["reason"] = "all vectors of one language are the same"
                    if when == "before" and metric in TESTED:
                        rows.append({**row, "value": 1 / space.n, "se": None, "when": "baseline:chance"})
                    if when == "after" and (moved := change([(spaces["before"], space)], *key)):
                        row |= {"diff": moved.diff, "diff_se": moved.se, "pairs": moved.n}
                        row |= {"p": moved.p, "detectable": moved.detectable} if moved.p is not None else {}
                    rows.append(row)
        return rows

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        from xalign.studies.representation_plots import plots
        from xalign.studies.representation_views import gather, grid, layers_csv

        entries, notes = gather(runs)
        return Findings([grid(entries, notes)], plots(entries, self.draw), {"layers.csv": layers_csv(entries)})


def _langs(run: Run) -> list[str]:
    """The source language, then the others by their codes: the same languages in another order are the same stage."""
    return [run.source, *sorted({*run.lang} - {run.source})]


def seconds(run: Run, texts: int, instruction: bool) -> float:
    """Estimated cost of the hidden states of `texts`, twice as long in a template, and of what is made of them, on two cores."""
    shape = run.backbone.shape()
    weights = 1.35e8 if isinstance(shape, str) else shape.parameters - shape.words
    return 8 + texts * (0.01 + weights * 9e-10 * (1 + instruction))


def measure(folder: Path, langs: Sequence[str], ids: Sequence[str], vectors: Any, seed: int) -> dict[str, Any]:
    """Write `FILES` about the vectors of a model; the vectors themselves are not kept.

    Args:
        langs: the source language, then the others.
        vectors: language → {pooling: [L + 1, N, H]}; asked once a language.
    Returns:
        Facts: layers, width, texts, t-SNE's perplexity, the share of variance that the axes of each PCA explain.
    """
    from xalign.analysis import geometry

    source = vectors(langs[0])
    layers, n, width = len(source["mean"]) - 1, len(ids), source["mean"].shape[-1]
    shown = list(stated(layers).values())
    maps: dict[tuple[str, int], list[np.ndarray]] = {("tsne", layers): [], **{("pca", layer): [] for layer in shown}}
    records: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    for lang in langs:
        own = source if lang == langs[0] else vectors(lang)
        for (kind, layer), parts in maps.items():
            parts.append(own["last"][layer].copy() if kind == "tsne" else geometry.unit(own["mean"][layer]))
        for pooling in POOLINGS if lang != langs[0] else ():
            found = [_pair(source[pooling][layer], own[pooling][layer]) for layer in range(layers + 1)]
            average = {metric: geometry.mean([f[metric] for f in found[1:]]) for metric in METRICS}
            for layer, values in [*enumerate(found), (ALL, average)]:
                of = {"layer": layer, "pooling": pooling, "lang": lang}
                records += [{**of, "metric": m, "value": _number(v.value), "se": _number(v.se), "n": n} for m, v in values.items()]
                if layer == ALL or layer in shown:
                    details += [{**of, "metric": m, "values": [_number(v) for v in values[m].parts]} for m in METRICS]
    write_jsonl(folder / FILES[0], records)
    write_jsonl(folder / FILES[1], [{"ids": list(ids)}, *details])
    points, facts = [], {"layers": layers, "width": width, "texts": n, "langs": list(langs), "explained": {}}
    for (kind, layer), parts in maps.items():
        if kind == "tsne":
            places, facts["perplexity"] = geometry.tsne(_stack(parts), seed)
        else:
            places, facts["explained"][str(layer)] = geometry.pca(_stack(parts))
        points += [{"map": kind, "layer": layer, "id": code, "lang": lang, "x": _number(x), "y": _number(y)}
                   for (lang, code), (x, y) in zip(((lang, code) for lang in langs for code in ids), places, strict=True)]
    write_jsonl(folder / FILES[2], points)
    return facts


def _pair(a: np.ndarray, b: np.ndarray) -> dict[str, Measured]:
    """Every metric of the vectors of one layer."""
    import numpy as np

    from xalign.analysis import geometry

    return {"retrieval@1": geometry.retrieval(a, b), "retrieval@1_centred": geometry.retrieval(geometry.centred(a), geometry.centred(b)),
            "margin": geometry.margin(a, b), "cka": geometry.cka(a, b),
            PLAIN: geometry.Measured(geometry.plain_cka(a, b), np.full(len(a), np.nan))}


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.concatenate(parts)


def _number(value: float) -> float | None:
    """A number as it is written: six digits are more than its error; None for NaN."""
    return float(f"{value:.6g}") if value == value else None
