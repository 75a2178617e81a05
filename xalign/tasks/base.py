"""What the evaluation tasks share: the journal of predictions, the collected scores, generated texts."""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, Node
from xalign.metrics.base import Score
from xalign.progress import bar

if TYPE_CHECKING:
    from xalign.backbones.causal import CausalBackbone
    from xalign.backbones.encoder import EncoderBackbone
    from xalign.config import Run

ENCODER_SECONDS = 0.02  # of one ranked item, on two cores


class Task(Node):
    """Base of the task nodes."""

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for scores that the backbone cannot give."""
        scores = getattr(self, "scores", [])
        odd = [s for s in scores if s in ("tokens", "bytes")]
        if run.backbone.kind == "encoder" and odd:
            raise ConfigError(f"task.scores={list(scores)}: {odd[0]} divides an option's log-likelihood by its length, and an encoder "
                              "gives options no likelihood; use raw and pmi")

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        """Everything about the task, in `lang`, that decides its scores: part of the evaluation's key."""
        raise NotImplementedError

    def inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        """Stages that `evaluate` reads, besides the model."""
        return ()

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        """Estimated cost on two cores."""
        raise NotImplementedError

    def evaluate(self, ev: Evaluation) -> None:
        """Predict what is not in `ev`'s journals yet and add every score to it."""
        raise NotImplementedError


class Journal:
    """One file of predictions, appended as they come; a killed run reads back what is there.

    Attributes:
        done: id → record.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, {}
        kept = 0
        if path.is_file():
            data = path.read_bytes()
            for line in data.splitlines(keepends=True):
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    record = None
                if record is None:  # the kill came in the middle of a line
                    break
                self.done[record["id"]] = record
                kept += len(line)
            if kept < len(data):
                os.truncate(path, kept)

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append `records`, each with an ``id``."""
        with open(self.path, "a", encoding="utf-8", newline="\n") as f:
            for record in records:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")
                self.done[record["id"]] = record


def bare(task: str, text: str, categories: tuple[str, ...] = ()) -> str:
    """A question without task or language prompts."""
    return text


@dataclass
class Evaluation:
    """One model on one language: where it writes, what it may read, the scores so far.

    Attributes:
        lang, source: ISO 639-3; equal when the source language itself is evaluated.
        baselines: also score what needs no training (few shots, majority answer, copying).
        scores: rows of scores.jsonl.
        examples: rows of examples.jsonl, one a metric of the model: [id, cluster, value] of each example.
        facts: counts for the receipt.
        kind: of the backbone; an ``encoder`` ranks options and generates nothing.
        frame: ``frame(task, text, categories)`` puts the prompts of a method around every question, neutral ones too.
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
    frame: Callable[[str, str, tuple[str, ...]], str] = bare

    @cached_property
    def model(self) -> CausalBackbone | EncoderBackbone:
        """The backbone, loaded when first needed: a run that continues may not need it."""
        return self.load()

    def journal(self, name: str) -> Journal:
        return Journal(self.folder / f"predictions.{name}.jsonl")

    def add(self, task: str, metric: str, score: Score, name: str = "model", examples: Sequence[list[Any]] | None = None) -> None:
        """Record one score of `name` (the model or a baseline) and, for the model, its examples."""
        self.scores.append({"task": task, "lang": self.lang, "metric": metric, "name": name, "value": score.value, "se": score.se,
                            "n": score.n, "signature": score.signature, "reason": score.reason})
        kept = [row for row in examples or () if row[2] is not None]
        if name == "model" and kept:
            self.examples.append({"task": task, "metric": metric, "examples": kept})


def example_rows(records: Sequence[dict[str, Any]], values: Sequence[float | None]) -> list[list[Any]]:
    """[id, cluster, value] of each record, as `Evaluation.add` takes them."""
    return [[r["id"], r["cluster"], v] for r, v in zip(records, values, strict=True)]


@dataclass(frozen=True)
class Request:
    """One text to generate, of at most `tokens` tokens.

    `fields` go into its record beside ``id`` and ``prediction``; `rate` gives the prediction's scores;
    `task_name` is what `Evaluation.frame` is told about the prompt.
    """

    journal: Journal
    id: str
    prompt: str
    tokens: int
    fields: dict[str, Any]
    rate: Callable[[str], dict[str, float | None]]
    task_name: str = "instruction"


def generate_all(ev: Evaluation, requests: Sequence[Request], desc: str) -> None:
    """Answer every request that its journal does not hold yet, those of one length in common batches."""
    todo = [r for r in requests if r.id not in r.journal.done]
    with bar(total=len(requests), desc=desc, unit="text") as progress:
        progress.update(len(requests) - len(todo))
        for tokens in sorted({r.tokens for r in todo}):
            own = [r for r in todo if r.tokens == tokens]

            def each(i: int, text: str, own: list[Request] = own) -> None:
                r = own[i]
                r.journal.add([{"id": r.id, **r.fields, "prompt": r.prompt, "prediction": text, "scores": r.rate(text)}])
                progress.update()

            ev.model.generate([ev.frame(r.task_name, r.prompt, ()) for r in own], tokens, stop_newline=True, each=each)
