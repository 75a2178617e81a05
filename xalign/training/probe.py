"""The off-target rate while a model trains: at every validation it answers the same few questions (SDRRL figure 3).

Nothing here changes the training: the answers are greedy, no random number is drawn, no weight and no mode is left changed.
"""
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from xalign.data.examples import Example
from xalign.data.packing import Row
from xalign.languages import LANGUAGES
from xalign.metrics.offtarget import OffTarget, judged_language
from xalign.training.rollouts import sample

SAMPLES = "samples.jsonl"
BATCH = 16  # questions answered at a time: their keys and values take about what the activations of a step do


@dataclass(frozen=True)
class Question:
    """A training row's prompt, put to the model.

    Attributes:
        lang: ISO 639-3 language that the answer must be in.
        ids: the prompt's token ids, template included.
        prompt: its text, before any template.
        held_out: the row is one of validation.
    """

    id: str
    lang: str
    ids: tuple[int, ...]
    prompt: str
    held_out: bool


def answer_language(example: Example, languages: Sequence[str]) -> str | None:
    """The language that a row's answer is in, by its subset; None where the subset does not tell.

    Args:
        languages: of the run: the source language, then the targets.
    """
    subset, (source, *targets) = example.subset, languages
    if subset == "mt":  # a translation's id ends with "from-into"
        into = example.id.rpartition("-")[2]
        return into if into in LANGUAGES else None
    if subset in ("LL", "TL", "pair"):  # SDRRL, CIT, xCoT: question, answer; a distilled pair answers as the teacher was taught
        return source
    if subset in ("LT", "TT"):
        return targets[0] if len(targets) == 1 else None
    return example.lang if subset in ("D", "T", "source", "target", "comp") else None


def questions(examples: Sequence[Example], train: Sequence[Row], valid: Sequence[Row], n: int, seed: int, languages: Sequence[str],
              room: int) -> list[Question]:
    """`n` prompts for each language that rows are answered in: held-out rows first, training rows where those are too few.

    The seed shuffles the rows once, so that every subset has its share. Rows whose own answer the metric finds off target are left
    out (an instruction to translate into a third language), and those whose answer it cannot judge (a short one) come last.

    Args:
        languages: as in `answer_language`.
        room: prompts with more tokens are left out.
    """
    known, metric, found = {e.id: e for e in examples}, OffTarget(), dict[str, list[Question]]()
    for held_out, rows in ((True, valid), (False, train)):
        vague: dict[str, list[Question]] = {}
        for row in sorted(rows, key=lambda r: hashlib.sha256(f"probe:{seed}:{r.id}".encode()).digest()):
            example = known[row.id]
            lang = answer_language(example, languages)
            if lang is None or row.n_prompt > room or len(found.setdefault(lang, [])) == n:
                continue
            wrong = metric.per_example([example.response], [lang])[0]
            question = Question(row.id, lang, row.ids[:row.n_prompt], example.prompt, held_out)
            if wrong is None:
                vague.setdefault(lang, []).append(question)
            elif not wrong:
                found[lang].append(question)
        for lang, more in vague.items():
            found[lang] += more[:n - len(found[lang])]
    return [question for lang in sorted(found) for question in found[lang]]


class Probe:
    """Puts the questions to the model.

    Args:
        backbone: for its tokenizer and stop tokens; the model is the trainer's.
        limit: longest answer in tokens.
    """

    def __init__(self, backbone: Any, questions: Sequence[Question], limit: int) -> None:
        self.tokenizer, self.stop, self.questions, self.limit = backbone.tokenizer, backbone.stop, questions, limit

    def __call__(self, model: Any, together: bool = False) -> list[dict[str, Any]]:
        """Greedy answers of `model` as it is: a record {id, lang, prompt, answer, detected, off_target, held_out} a question.

        ``off_target`` is 1, 0, or None where nobody can tell; ``detected`` is then None too, and ``und`` for some other language.

        Args:
            model: the causal model itself, not the trainer's engine.
            together: see `sample`.
        """
        records = []
        # compiled layers would be compiled again for every length
        with getattr(torch.compiler, "set_stance", nullcontext)("force_eager"):
            for start in range(0, len(self.questions), BATCH):
                part = self.questions[start:start + BATCH]
                answers = sample(model, [q.ids for q in part], self.limit, self.stop, greedy=True, together=together)
                records += [self._judged(q, ids) for q, ids in zip(part, answers, strict=True)]
        return records

    def _judged(self, question: Question, ids: list[int]) -> dict[str, Any]:
        answer = self.tokenizer.decode([i for i in ids if i not in self.stop], skip_special_tokens=True).strip()
        wrong, detected = judged_language(answer, question.lang)
        return {"id": question.id, "lang": question.lang, "prompt": question.prompt, "answer": answer, "detected": detected,
                "off_target": wrong, "held_out": question.held_out}

    def facts(self) -> dict[str, Any]:
        """How many questions each language has, and where they are from."""
        asked = {lang: Counter("held out" if q.held_out else "training" for q in self.questions if q.lang == lang)
                 for lang in sorted({q.lang for q in self.questions})}
        return {"probe": {lang: dict(n) for lang, n in asked.items()}}


def rates(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """``off_target_<lang>``: the share of a language's judged answers that are in another one, and ``off_target_<lang>_n``, how many
    were judged; no share where there are none."""
    found: dict[str, float] = {}
    for lang in dict.fromkeys(s["lang"] for s in samples):
        judged = [s["off_target"] for s in samples if s["lang"] == lang and s["off_target"] is not None]
        found |= {f"off_target_{lang}": sum(judged) / len(judged)} if judged else {}
        found[f"off_target_{lang}_n"] = len(judged)
    return found
