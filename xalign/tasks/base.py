"""What the evaluation tasks share: the journal of predictions, the collected scores, ranked options, generated texts."""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import Node
from xalign.metrics.base import Score
from xalign.metrics.ranking import MRR, Accuracy
from xalign.progress import bar

if TYPE_CHECKING:
    from xalign.backbones.causal import CausalBackbone
    from xalign.config import Run

CHUNK = 48  # questions scored before they are written down
Shots = Sequence[tuple[str, str]]


class Task(Node):
    """Base of the task nodes."""

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


@dataclass
class Evaluation:
    """One model on one language: where it writes, what it may read, the scores so far.

    Attributes:
        lang, source: ISO 639-3; equal when the source language itself is evaluated.
        baselines: also score what needs no training (few shots, majority answer, copying).
        scores: rows of scores.jsonl.
        examples: rows of examples.jsonl, one a metric of the model: [id, cluster, value] of each example.
        facts: counts for the receipt.
    """

    folder: Path
    load: Callable[[], CausalBackbone]
    inputs: Sequence[Artifact]
    lang: str
    source: str
    baselines: bool
    scores: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> CausalBackbone:
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


@dataclass(frozen=True)
class Question:
    """A multiple-choice question, as `rank_options` takes it.

    Attributes:
        neutral: the same request without its content, for PMI.
        cluster: questions with the same label are not independent.
    """

    id: str
    kind: str
    cluster: str
    text: str
    options: tuple[str, ...]
    gold: int
    neutral: str
    differs: bool = False


def example_rows(records: Sequence[dict[str, Any]], values: Sequence[float | None]) -> list[list[Any]]:
    """[id, cluster, value] of each record, as `Evaluation.add` takes them."""
    return [[r["id"], r["cluster"], v] for r, v in zip(records, values, strict=True)]


def option_scores(record: dict[str, Any], by: str) -> list[float]:
    """What one prediction's options are ranked by."""
    if by == "pmi":
        return [s - n for s, n in zip(record["logp"], record["neutral"], strict=True)]
    return record["logp"] if by == "raw" else [s / k for s, k in zip(record["logp"], record[by], strict=True)]


def rank_options(ev: Evaluation, questions: Sequence[Question], journal: Journal, scores: Sequence[str], desc: str,
                 shots: Callable[[str], Shots] = lambda kind: (), raw_text: bool = False) -> list[dict[str, Any]]:
    """Score every option of every question not yet in `journal`; returns all records in the questions' order.

    Args:
        scores: of raw, tokens, bytes, pmi; per-example accuracy and MRR are written for each.
        shots: kind → solved examples before the question.
        raw_text: the questions are literal text, not instructions for the template.
    """
    todo = [q for q in questions if q.id not in journal.done]
    with bar(total=len(questions), desc=desc, unit="question") as progress:
        progress.update(len(questions) - len(todo))
        for kind in dict.fromkeys(q.kind for q in todo):
            own, first = [q for q in todo if q.kind == kind], shots(kind)
            neutral: dict[tuple[str, str], float] = {}
            if "pmi" in scores:  # one neutral prompt a kind: each option is scored under it once
                for text in dict.fromkeys(q.neutral for q in own):
                    options = list(dict.fromkeys(o for q in own if q.neutral == text for o in q.options))
                    groups = [options[k:k + CHUNK] for k in range(0, len(options), CHUNK)]
                    for group, got in zip(groups, ev.model.score([text] * len(groups), groups, raw_text, first), strict=True):
                        neutral |= {(text, option): s.sum for option, s in zip(group, got, strict=True)}
            for start in range(0, len(own), CHUNK):
                part = own[start:start + CHUNK]
                records = []
                found = ev.model.score([q.text for q in part], [q.options for q in part], raw_text, first)
                for q, got in zip(part, found, strict=True):
                    record = {"id": q.id, "kind": kind, "cluster": q.cluster, "differs": q.differs, "question": q.text,
                              "options": list(q.options), "gold": q.gold, "logp": [s.sum for s in got],
                              "tokens": [s.tokens for s in got], "bytes": [s.bytes for s in got]}
                    if "pmi" in scores:
                        record["neutral"] = [neutral[q.neutral, o] for o in q.options]
                    record["scores"] = {f"{metric.name}_{by}": metric.per_example([option_scores(record, by)], [q.gold])[0]
                                        for metric in (Accuracy(), MRR()) for by in scores}
                    records.append(record)
                journal.add(records)
                progress.update(len(part))
    return [journal.done[q.id] for q in questions]


def add_ranking(ev: Evaluation, task: str, records: Sequence[dict[str, Any]], scores: Sequence[str], name: str = "model",
                shots: int = 0, differs: bool = False, kinds: bool = False) -> None:
    """Accuracy and MRR of `records`; also on items whose spelling `differs`, and accuracy of each of `kinds`."""
    subsets = {"": records}
    if differs:
        subsets["differs"] = [r for r in records if r["differs"]]
    for by in scores:
        for metric in (Accuracy(by, shots), MRR(by, shots)):
            key = f"{metric.name}_{by}"
            for label, chosen in subsets.items():
                if label and metric.name != "accuracy":
                    continue
                values = [r["scores"][key] for r in chosen]
                clusters = [r["cluster"] for r in chosen]
                ev.add(task, f"accuracy_{label}_{by}" if label else key, metric.aggregate(values, clusters), name,
                       example_rows(chosen, values))
    for kind in dict.fromkeys(r["kind"] for r in records) if kinds else ():
        for by in scores:
            chosen = [r for r in records if r["kind"] == kind]
            values = [r["scores"][f"accuracy_{by}"] for r in chosen]
            ev.add(task, f"accuracy_{by}.{kind}", Accuracy(by, shots).aggregate(values, [r["cluster"] for r in chosen]), name,
                   example_rows(chosen, values))


def add_chance(ev: Evaluation, task: str, records: Sequence[dict[str, Any]], scores: Sequence[str]) -> None:
    """What guessing would score: the mean of 1 / options."""
    if records:
        value = sum(1 / len(r["options"]) for r in records) / len(records)
        for by in scores:
            ev.add(task, f"accuracy_{by}", Score(value, None, len(records), "expected value of guessing"), "chance")


@dataclass(frozen=True)
class Request:
    """One text to generate, of at most `tokens` tokens.

    `fields` go into its record beside ``id`` and ``prediction``; `rate` gives the prediction's scores.
    """

    journal: Journal
    id: str
    prompt: str
    tokens: int
    fields: dict[str, Any]
    rate: Callable[[str], dict[str, float | None]]


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

            ev.model.generate([r.prompt for r in own], tokens, stop_newline=True, each=each)
