"""What the evaluation tasks share: predictions in journals, then scores from them."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, Node
from xalign.journal import Journal
from xalign.metrics.base import Score
from xalign.progress import bar

if TYPE_CHECKING:
    from xalign.backbones.causal import CausalBackbone
    from xalign.backbones.encoder import EncoderBackbone
    from xalign.config import Run

ENCODER_SECONDS = 0.02  # of one ranked item, on two cores


class Task(Node):
    """Base of the task nodes: one benchmark, any language.

    Class attributes:
        name, title: of the task, in keys and scores, and in messages.
        languages: those of ours that the benchmark has; empty: any.
        kinds: kinds of backbone that can do it.
        why_not: for the message to any other kind.
        compares: the trained model's scores need the untrained model's predictions.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    languages: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ("causal", "encoder")
    compares: ClassVar[bool] = False
    why_not: ClassVar[str] = "an encoder ranks options and generates nothing; choose a causal backbone"

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for what the backbone cannot do, or when no language of the run can be evaluated.

        In a training run, a benchmark that just does not have the target languages still scores the source language beside one that
        has them: a sweep over languages needs no list of languages for each benchmark.
        """
        if run.backbone.kind not in self.kinds:
            raise ConfigError(f"task.{self.name}: needs a {' or '.join(self.kinds)} backbone: {self.why_not}")
        scores = getattr(self, "scores", [])
        odd = [s for s in scores if s in ("tokens", "bytes")]
        if run.backbone.kind == "encoder" and odd:
            raise ConfigError(f"task.{self.name}.scores={list(scores)}: {odd[0]} divides an option's log-likelihood by its length, and an "
                              "encoder gives options no likelihood; use raw and pmi")
        reasons = [self.lacks(run, lang) for lang in run.lang]
        foreign = self.languages and not set(run.lang) & set(self.languages)
        useful = foreign and len(run.tasks) > 1 and not all(self.lacks(run, lang) for lang in run.evaluated)
        if all(reasons) and not useful:
            raise ConfigError(reasons[0])
        for lang in run.lang:
            reasons = [task.lacks(run, lang) for task in run.tasks]
            if all(reasons):
                raise ConfigError(f"lang={lang}: no task of the run can evaluate it: {'; '.join(reasons)}")

    def lacks(self, run: Run, lang: str) -> str:
        """Why `lang` cannot be evaluated, beginning with the key (``task.NAME...``); empty if it can."""
        return ""

    def metric_names(self) -> list[str]:
        """The metrics whose absence is reported for a language that `lacks` something."""
        raise NotImplementedError

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        """Everything about the task, in `lang`, that decides its predictions: part of their key."""
        raise NotImplementedError

    def scoring(self, run: Run, lang: str) -> dict[str, Any]:
        """Everything that decides the scores of given predictions: part of the scores' key."""
        return {}

    def inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        """Stages that `predict` and `score` read, besides the model."""
        return ()

    def score_inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        """Stages that only `score` reads."""
        return ()

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        """Estimated cost of the predictions on two cores."""
        raise NotImplementedError

    def predict(self, ev: Evaluation) -> None:
        """Put whatever is not there yet into `ev`'s journals."""
        raise NotImplementedError

    def score(self, ev: Evaluation) -> None:
        """Add every score to `ev`, from complete journals and without the model."""
        raise NotImplementedError


def bare(task: str, text: str, categories: tuple[str, ...] = ()) -> str:
    """A question without task or language prompts."""
    return text


@dataclass
class Evaluation:
    """One model on one task in one language: where it writes, what it may read, the scores so far.

    Attributes:
        folder: of the journals of predictions.
        out: of what the scoring itself has to keep (a judge's verdicts); None while predicting.
        inputs: artifacts of `Task.inputs`.
        lang, source: ISO 639-3; equal when the source language itself is evaluated.
        baselines: also score what needs no training (few shots, majority answer, copying).
        scores: rows of scores.jsonl.
        examples: rows of examples.jsonl, one a metric of the model: [id, cluster, value(, statistics)] of each example.
        facts: counts for the receipt.
        kind: of the backbone; an ``encoder`` ranks options and generates nothing.
        metric: the run's metric node.
        frame: ``frame(task, text, categories)`` puts the prompts of a method around every question, neutral ones too.
        opponent: folder of the untrained model's journals, for a task that `compares`; None for the untrained model itself.
        recipe: what `Task.recipe` said when the run was planned.
    """

    folder: Path
    load: Callable[[], CausalBackbone | EncoderBackbone]
    inputs: Sequence[Artifact]
    lang: str
    source: str
    baselines: bool
    scores: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    kind: str = "causal"
    metric: Any = None
    frame: Callable[[str, str, tuple[str, ...]], str] = bare
    out: Path | None = None
    opponent: Path | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> CausalBackbone | EncoderBackbone:
        """The backbone, loaded when first needed: a run that continues may not need it."""
        return self.load()

    def journal(self, name: str) -> Journal:
        """The predictions called `name`."""
        return Journal(self.folder / f"predictions.{name}.jsonl")

    def add(self, task: str, metric: str, score: Score, name: str = "model", examples: Sequence[list[Any]] | None = None) -> None:
        """Record one score of `name` (the model or a baseline) and, for the model, its examples."""
        self.scores.append({"task": task, "lang": self.lang, "metric": metric, "name": name, "value": score.value, "se": score.se,
                            "n": score.n, "signature": score.signature, "reason": score.reason})
        kept = [row for row in examples or () if row[2] is not None or len(row) > 3]  # statistics count where a value does not exist
        if name == "model" and kept:
            self.examples.append({"task": task, "metric": metric, "examples": kept})


def records_of(ev: Evaluation, name: str) -> list[dict[str, Any]]:
    """The records of one journal, in the order in which they were predicted."""
    return list(ev.journal(name).done.values())


def tasks_of(ev: Evaluation, records: Sequence[dict[str, Any]]) -> list[str]:
    """The tasks that records name, those from the source language first: records lie in the order in which they were finished."""
    return sorted({r["task"] for r in records}, key=lambda task: (task.partition(":")[0], f":{ev.source}-" not in task, task))


def example_rows(records: Sequence[dict[str, Any]], values: Sequence[float | None],
                 statistics: Sequence[Sequence[float]] | None = None) -> list[list[Any]]:
    """[id, cluster, value] of each record, as `Evaluation.add` takes them; with its `statistics` for a corpus metric."""
    rows = [[r["id"], r["cluster"], v] for r, v in zip(records, values, strict=True)]
    return rows if statistics is None else [[*row, list(s)] for row, s in zip(rows, statistics, strict=True)]


@dataclass(frozen=True)
class Request:
    """One text to generate, of at most `tokens` tokens.

    `fields` go into its record beside ``id``, ``prompt``, ``raw`` and ``prediction``; `parse` takes the answer out of what was
    generated; `task_name` is what `Evaluation.frame` is told about the prompt.
    """

    journal: Journal
    id: str
    prompt: str
    tokens: int
    fields: dict[str, Any]
    parse: Callable[[str], str] = str
    task_name: str = "instruction"


def generate_all(ev: Evaluation, requests: Sequence[Request], desc: str, stop_newline: bool = True, **how: Any) -> None:
    """Answer every request that its journal does not hold yet, those of one length in common batches.

    Args:
        stop_newline: an answer ends at its first line break.
        how: more of the backbone's ``generate``: shots, stop, beams.
    """
    todo = [r for r in requests if r.id not in r.journal.done]
    shots = [(ev.frame(todo[0].task_name, q, ()), a) for q, a in how.pop("shots", ())] if todo else []
    with bar(total=len(requests), desc=desc, unit="text") as progress:
        progress.update(len(requests) - len(todo))
        for tokens in sorted({r.tokens for r in todo}):
            own = [r for r in todo if r.tokens == tokens]

            def each(i: int, text: str, own: list[Request] = own) -> None:
                r = own[i]
                r.journal.add([{"id": r.id, **r.fields, "prompt": r.prompt, "raw": text, "prediction": r.parse(text)}])
                progress.update()

            ev.model.generate([ev.frame(r.task_name, r.prompt, ()) for r in own], tokens, stop_newline=stop_newline, each=each,
                              shots=shots, **how)
    # they came as they ended, which a kill changes; the scores' standard errors depend on the order
    for journal in {r.journal.path: r.journal for r in requests}.values():
        journal.arrange(r.id for r in requests if r.journal is journal)
