"""Options ranked by a model: multiple choice, its metrics, and its baselines."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xalign.metrics.base import Metric, Score
from xalign.metrics.ranking import MRR, Accuracy
from xalign.progress import bar
from xalign.tasks.base import Evaluation, Journal, example_rows

CHUNK = 48  # questions scored before they are written down
Shots = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Question:
    """A multiple-choice question, as `rank_options` takes it.

    Attributes:
        neutral: the same request without its content, for PMI.
        cluster: questions with the same label are not independent.
        fields: whatever else the scoring needs, kept in the record.
    """

    id: str
    kind: str
    cluster: str
    text: str
    options: tuple[str, ...]
    gold: int
    neutral: str
    differs: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


def option_scores(record: dict[str, Any], by: str) -> list[float]:
    """What one prediction's options are ranked by."""
    if by == "pmi":
        return [s - n for s, n in zip(record["logp"], record["neutral"], strict=True)]
    return record["logp"] if by == "raw" else [s / k for s, k in zip(record["logp"], record[by], strict=True)]


def rank_options(ev: Evaluation, questions: Sequence[Question], journal: Journal, pmi: bool, desc: str,
                 shots: Callable[[str], Shots] = lambda kind: (), raw_text: bool = False, before: str = "",
                 task_name: str = "choice", categories: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Score every option of every question not yet in `journal`; returns all records in the questions' order.

    Args:
        pmi: score the options under the neutral questions too.
        shots: kind → solved examples before the question.
        raw_text: the questions are literal text, not instructions for the template.
        before: literal text before every question, neutral ones too.
        task_name, categories: what `Evaluation.frame` is told about the questions, the neutral ones and the shots;
            the journal keeps them without the frame.
    """
    def framed(text: str) -> str:
        return before + ev.frame(task_name, text, categories)

    neutral: dict[tuple[Any, ...], float] = {}
    planned: dict[tuple[Any, ...], list[list[str]]] = {}  # option under a neutral text → what is scored with it: each only once

    def alone(first: Shots, text: str, option: str) -> None:
        """Find the log-likelihood of an option under a neutral text, with those that are scored with it."""
        if (first, text, option) not in neutral:
            groups = planned[first, text, option]
            for group, got in zip(groups, ev.model.score([framed(text)] * len(groups), groups, raw_text, first), strict=True):
                neutral.update({(first, text, o): s.sum for o, s in zip(group, got, strict=True)})

    # a run that was killed reads its texts in the chunks of one that was not: the last digits depend on what is read together
    with bar(total=len(questions), desc=desc, unit="question") as progress:
        progress.update(sum(q.id in journal.done for q in questions))
        for kind in dict.fromkeys(q.kind for q in questions):
            own, first = [q for q in questions if q.kind == kind], tuple((framed(q), a) for q, a in shots(kind))
            for text in dict.fromkeys(q.neutral for q in own) if pmi else ():
                options = [o for o in dict.fromkeys(o for q in own if q.neutral == text for o in q.options)
                           if (first, text, o) not in planned]
                groups = [options[k:k + CHUNK] for k in range(0, len(options), CHUNK)]
                planned.update({(first, text, option): groups for option in options})
            if all(q.id in journal.done for q in own):
                continue
            if ev.kind == "encoder":
                ev.model.keep(list(dict.fromkeys(o for q in own for o in q.options)))
            if pmi:
                for q in own:
                    for option in q.options:
                        alone(first, q.neutral, option)
            for part in (own[start:start + CHUNK] for start in range(0, len(own), CHUNK)):
                lacking = {q.id for q in part} - journal.done.keys()
                if not lacking:
                    continue
                records = []
                found = ev.model.score([framed(q.text) for q in part], [q.options for q in part], raw_text, first)
                for q, got in zip(part, found, strict=True):
                    record = {"id": q.id, "kind": kind, "cluster": q.cluster, "differs": q.differs, "question": q.text,
                              "options": list(q.options), "gold": q.gold, "logp": [s.sum for s in got],
                              "tokens": [s.tokens for s in got], "bytes": [s.bytes for s in got], **q.fields}
                    if pmi:
                        record["neutral"] = [neutral[first, q.neutral, o] for o in q.options]
                    records += [record] if q.id in lacking else []
                journal.add(records)
                progress.update(len(records))
    return [journal.done[q.id] for q in questions]


def add_ranking(ev: Evaluation, task: str, records: Sequence[dict[str, Any]], scores: Sequence[str], name: str = "model",
                shots: int = 0, differs: bool = False, kinds: bool = False, shots_from: str = "",
                asked: str = "") -> None:
    """Accuracy and MRR of `records`; also on items whose spelling `differs`, and accuracy of each of `kinds`."""
    subsets = {"": records}
    if differs:
        subsets["differs"] = [r for r in records if r["differs"]]

    def add(metric: Metric, key: str, chosen: Sequence[dict[str, Any]]) -> None:
        values = metric.per_example([option_scores(r, metric.by) for r in chosen], [r["gold"] for r in chosen])
        ev.add(task, key, metric.aggregate(values, [r["cluster"] for r in chosen]), name, example_rows(chosen, values))

    for by in scores:
        for metric in (Accuracy(by, shots, shots_from, asked), MRR(by, shots, shots_from, asked)):
            for label, chosen in subsets.items():
                if not label or metric.name == "accuracy":
                    add(metric, f"accuracy_{label}_{by}" if label else f"{metric.name}_{by}", chosen)
    for kind in dict.fromkeys(r["kind"] for r in records) if kinds else ():
        for by in scores:
            add(Accuracy(by, shots, shots_from, asked), f"accuracy_{by}.{kind}", [r for r in records if r["kind"] == kind])


def add_chance(ev: Evaluation, task: str, records: Sequence[dict[str, Any]], scores: Sequence[str]) -> None:
    """What guessing would score: the mean of 1 / options."""
    if records:
        value = math.fsum(1 / len(r["options"]) for r in records) / len(records)
        for by in scores:
            ev.add(task, f"accuracy_{by}", Score(value, None, len(records), "expected value of guessing"), "chance")


def add_majority(ev: Evaluation, task: str, records: Sequence[dict[str, Any]], scores: Sequence[str], signature: str,
                 group: Callable[[dict[str, Any]], str] = lambda r: "", by_place: bool = False) -> None:
    """What always giving the most frequent right answer of the record's `group` would score.

    Where that answer is not on offer, it has to guess.

    Args:
        signature: the recipe, in words.
        by_place: the answer is the option's place, not its text.
    """
    def offered(r: dict[str, Any]) -> list[Any]:
        return list(range(len(r["options"]))) if by_place else r["options"]

    common = most_common((group(r), offered(r)[r["gold"]]) for r in records)
    guesses = []
    for r in records:
        options, best = offered(r), common[group(r)]
        guesses.append(float(options[r["gold"]] == best) if best in options else 1 / len(options))
    for by in scores if records else ():
        score = Accuracy(by).aggregate(guesses, [r["cluster"] for r in records])
        ev.add(task, f"accuracy_{by}", replace(score, signature=signature), "majority")


def most_common(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Group → its most frequent answer (the first in order among equals)."""
    counts: dict[str, Counter[Any]] = {}
    for group, answer in pairs:
        counts.setdefault(group, Counter())[answer] += 1
    return {group: min(c, key=lambda a: (-c[a], a)) for group, c in counts.items()}
