"""γ of x-LLM's scaling law: how alike a backbone's vectors of translations are, from every language to every other."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.analysis.multiway import FEWEST, KINDS, check_texts, read_texts, texts_stage
from xalign.cache import RECEIPT, Stage
from xalign.config import ConfigError, XalignError, choice, within
from xalign.digests import write_json
from xalign.studies.base import Findings, Study, exported

if TYPE_CHECKING:
    from xalign.cache import Artifact
    from xalign.config import Run
    from xalign.report.runs import FinishedRun

LOW, HIGH = 0.01, 0.99  # the law wants γ between 0 and 1
FILE = "similarity.json"
READ_SECONDS = 0.1  # a sentence of the laboratory by SmolLM2 on one of two cores


@dataclass(frozen=True)
class Similarity(Study):
    """Retrieval@1 and cosines of translations between the source and all target languages, and γ to the source.

    x-LLM measures γ by the approach of Pan et al. 2021 (mRASP2) on multi-way translation data (section 3.2, footnote 3): a sentence's
    vector is the mean of its tokens' states, and a language's similarity the share of sentences whose translation is the nearest by
    cosine. Which layer, texts and direction it took it does not say. Our defaults come from SmolLM2: its last layer, which is made to
    predict the next token, finds translations at chance level, a middle one, with each language's mean taken off, over half of them.

    Attributes:
        measure: what γ is: ``retrieval``, the mean of both directions between the source and the language; ``mean_cosine`` of
            translations; or ``constant``.
        constant: γ of every language with that measure.
        text, path, sentences: the texts, see `xalign.analysis.multiway.texts_stage`; all languages get the same, those that all have.
        layer: 0 is the embeddings' output, -1 the last; ``auto`` is the last of a sentence encoder (head=similarity), of any other
            backbone the one whose retrieval@1, averaged over the languages, is highest before training, on the same texts.
        pooling: see `xalign.backbones.states.sentence_vectors`.
        centre: subtract the mean of a language's vectors from each of them before any cosine.
    """

    name: ClassVar[str] = "similarity"
    alone: ClassVar[bool] = True

    measure: str = choice("retrieval", "retrieval", "mean_cosine", "constant")
    constant: float = within(0.5, low=LOW, high=HIGH)
    text: str = choice("sentences", *KINDS)
    path: str = ""
    sentences: int = within(200, low=0)
    layer: Any = "auto"
    pooling: str = choice("mean", "mean", "last")
    centre: bool = True

    def check(self, path: str) -> None:
        """Raise ConfigError for the first value out of range."""
        super().check(path)
        if self.layer != "auto" and type(self.layer) is not int:
            raise ConfigError(f"{path}.layer={self.layer}: must be auto or a whole number: 0 the embeddings, -1 the last layer")
        if 0 < self.sentences < FEWEST:
            raise ConfigError(f"{path}.sentences={self.sentences}: must be at least {FEWEST}, or 0 for all")

    def check_run(self, run: Run) -> None:
        """Raise ConfigError when the languages have no texts, or where it is known that there is no such layer."""
        check_texts(run, _languages(run), self.text, self.path)
        layers = (run.backbone.config() or {}).get("num_hidden_layers")
        if layers and self.layer != "auto":
            _layer(self.layer, layers)

    def stages(self, run: Run, weights: Stage, model: Stage | None) -> dict[str, Stage]:
        """What is measured of the untrained and of the trained model; γ itself is made of it afterwards."""
        langs, backbone = _languages(run), run.backbone
        texts = texts_stage(run, langs, self.text, self.path, self.sentences)
        layer = -1 if self.layer == "auto" and getattr(backbone, "head", "") == "similarity" else self.layer
        corpus = Path(self.path).expanduser().resolve().name if self.text == "files" else f"lab-{self.text}"

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            from xalign.backbones.states import open_states

            at = read(inputs[2].path)["layer"] if len(inputs) > 2 else layer
            found = measure(open_states(inputs[0].path, backbone), read_texts(inputs[1]), langs, at, self.pooling, self.centre)
            write_json(folder / FILE, {**found, "text": corpus})
            return {"texts": found["n"], "languages": len(langs), "layer": found["layer"]}

        def stage(model: Stage, kind: str, *more: Stage) -> Stage:
            seconds = 5 + READ_SECONDS * len(langs) * (self.sentences or 240)
            return Stage(self.name, 1, params, work, (model, texts, *more), seconds, f"similarity of {len(langs)} languages, {kind} model")

        params = {"backbone": backbone.params(), "langs": langs, "layer": layer, "pooling": self.pooling, "centre": self.centre,
                  "text": corpus}
        before = stage(weights, "untrained")
        return {"before": before, **({"after": stage(model, "trained", *[before] * (layer == "auto"))} if model else {})}

    def rows(self, run: Run, found: Mapping[str, Artifact]) -> list[dict[str, Any]]:
        """γ of each target language; of a trained model with the paired test against the untrained one, text by text."""
        from xalign.analysis.significance import paired

        out, facts = [], {when: read(artifact.path) for when, artifact in found.items()}
        for when, own in facts.items():
            for lang in own["langs"][1:]:
                value, se = self.gamma(own, lang)
                row = {"task": self.name, "lang": lang, "metric": "gamma", "value": value, "se": se, "n": own["n"],
                       "signature": self.signature(own), "when": when}
                if when == "after" and self.measure != "constant":
                    test = paired(facts["before"]["texts"][lang][self.measure], own["texts"][lang][self.measure], bootstrap=False)
                    row |= {"diff": test.diff, "diff_se": test.se, "p": test.p_randomisation, "pairs": test.n,
                            "detectable": test.detectable()}
                out.append(row)
        return out

    def gamma(self, facts: Mapping[str, Any], lang: str) -> tuple[float, float | None]:
        """(γ of a language to the source language, its standard error over texts) from what `measure` found."""
        if self.measure == "constant":
            return self.constant, None
        value, se = mean_se(facts["texts"][lang][self.measure])
        return min(max(value, LOW), HIGH), se

    def signature(self, facts: Mapping[str, Any]) -> str:
        """How γ was measured."""
        if self.measure == "constant":
            return "gamma|measure:constant"
        way = "retrieval@1|directions:both" if self.measure == "retrieval" else "mean_cosine"
        return (f"gamma|measure:{way}|layer:{facts['layer']}/{facts['layers']}|pooling:{facts['pooling']}|"
                f"centred:{'yes' if facts['centre'] else 'no'}|texts:{facts['text']}|to:{facts['langs'][0]}|clip:{LOW}-{HIGH}")

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        """Table, heat maps of retrieval between all languages, gamma.yaml for laws, similarity.csv."""
        from xalign.studies.similarity_report import Space, report

        spaces: dict[str, Space] = {}
        for run in runs:
            base = None
            for when, folder in exported(run, self.name).items():
                key = read(folder, RECEIPT)["key"]  # the untrained model of several runs is one
                base = spaces.setdefault(key, Space(run, when, read(folder), base))
        if not spaces:
            raise XalignError(f"none of {len(runs)} runs measured it; repeat a run's command with study=similarity, or ask a backbone as "
                              "it is: python -m xalign mode=study study=similarity 'lang=[fin,deu]'")
        for f in fields(self):
            asked, used = getattr(self, f.name), {json.dumps(s.run.config.get(f"study.{f.name}")) for s in spaces.values()}
            if f.name not in ("measure", "constant") and asked != f.default and json.dumps(asked) not in used:
                raise XalignError(f"study.{f.name}={asked}: these runs were measured with {', '.join(sorted(used))}; repeat their "
                                  f"commands with study.{f.name}={asked} (afterwards only measure and constant can be chosen)")
        return report(self, list(spaces.values()))


def _languages(run: Run) -> list[str]:
    """The source language, then the others."""
    return list(dict.fromkeys((run.source, *run.lang)))


def _layer(asked: int, layers: int) -> int:
    """The layer's number, 0 to `layers`."""
    if not -layers - 1 <= asked <= layers:
        raise ConfigError(f"study.layer={asked}: the backbone has the layers 0 (embeddings) to {layers}; -1 is the last")
    return asked % (layers + 1)


def read(folder: Path, name: str = FILE) -> dict[str, Any]:
    """What `measure` found, from an artifact or a run's folder; or another JSON file there.

    Raises:
        XalignError: the file is damaged.
    """
    path = Path(folder) / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise XalignError(f"{path}: is missing or damaged; repeat the run's command to write it again") from None


def mean_se(parts: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    import numpy as np

    return float(np.mean(parts)), float(np.std(parts, ddof=1) / np.sqrt(len(parts)))


def measure(backbone: Any, texts: Mapping[str, Sequence[str]], langs: Sequence[str], layer: int | str = "auto", pooling: str = "mean",
            centre: bool = True) -> dict[str, Any]:
    """Compare the vectors of aligned texts between all languages.

    Args:
        texts: language → N texts.
        langs: K languages, the source language first.
        layer: ``auto``: the one with the highest mean retrieval@1 between the source and the others.
    Returns:
        ``langs``, ``n``, ``layer`` (0 to ``layers``), ``pooling``, ``centre``; the matrices [K, K] ``retrieval`` (row: the language that
        asks, column: the one whose N texts are searched), ``cosine`` of translations, ``random``: of all pairs of texts that are no
        translations; ``texts``: language → {``retrieval``: both directions' mean, ``mean_cosine``} of each text to the source language;
        with ``auto``, ``by_layer``: that mean of every layer.
    Raises:
        ConfigError: the backbone has no such layer.
    """
    from xalign.analysis.geometry import retrieval
    from xalign.backbones.states import sentence_vectors
    from xalign.progress import bar

    vectors: dict[str, Any] = {}  # language → [layers kept, N, H]: all of them only where one is yet to be chosen
    layers, kept, tried = 0, slice(None), {}
    with bar(total=sum(len(texts[lang]) for lang in langs), desc="sentence vectors", unit="text") as progress:
        for lang in langs:
            every = sentence_vectors(backbone, texts[lang], progress=progress.update)[pooling]
            layers = len(every) - 1
            if layer != "auto":
                kept = slice(_layer(layer, layers), _layer(layer, layers) + 1)
            vectors[lang] = every[kept].copy()
            if centre:
                vectors[lang] -= vectors[lang].mean(1, keepdims=True)
    if layer == "auto":
        source, *others = vectors.values()
        found = [sum(retrieval(source[i], other[i]).value for other in others) / len(others) for i in range(layers + 1)]
        layer, tried = max(range(layers + 1), key=found.__getitem__), {"by_layer": found}
        vectors = {lang: every[layer:layer + 1] for lang, every in vectors.items()}
    return {"langs": list(langs), "layer": _layer(layer, layers), "layers": layers, "pooling": pooling, "centre": centre, **tried,
            **compare({lang: own[0] for lang, own in vectors.items()})}


def compare(vectors: Mapping[str, Any]) -> dict[str, Any]:
    """``n``, the matrices and ``texts`` of `measure` from language → vectors [N, H]; the first language is the source."""
    import numpy as np

    from xalign.analysis.geometry import cosines, nearest

    langs, n = list(vectors), len(next(iter(vectors.values())))
    tables = {name: np.ones((len(langs), len(langs))) for name in ("retrieval", "cosine", "random")}
    texts: dict[str, dict[str, list[float]]] = {}
    for i, a in enumerate(langs):
        for j, b in enumerate(langs[i:], i):
            near = cosines(vectors[a], vectors[b])
            own, there, back = np.diagonal(near), nearest(near), nearest(near.T)
            tables["retrieval"][i, j], tables["retrieval"][j, i] = there.mean(), back.mean()
            tables["cosine"][i, j] = tables["cosine"][j, i] = own.mean()
            tables["random"][i, j] = tables["random"][j, i] = (near.sum() - own.sum()) / (n * (n - 1))
            if i == 0 < j:
                texts[b] = {"retrieval": ((there + back) / 2).tolist(), "mean_cosine": own.tolist()}
    return {"n": n, **{name: table.tolist() for name, table in tables.items()}, "texts": texts}
