"""What the benchmarks of short free answers share: the prompts in every language, and the answer in what was generated."""
from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from xalign.config import within
from xalign.metrics.answers import normalise
from xalign.metrics.base import Score
from xalign.metrics.ranking import MRR
from xalign.tasks.base import Evaluation, example_rows, records_of
from xalign.tasks.ranking import Question, option_scores, rank_options
from xalign.tasks.textfiles import TextItem
from xalign.tasks.worded import WordedTask
from xalign.tasks.wording import say, words

QUOTES = ('""', "''", "“”", "„“", "„”", "””", "‘’", "«»", "»«", "‹›", "「」", "『』", "《》", "``")


@dataclass(frozen=True)
class AnswerTask(WordedTask):
    """A task whose answers are a name or a few words.

    Attributes:
        distractors: wrong answers that the right one is ranked among for MRR (length-normalised log-likelihood); 0: no MRR.
    """

    task_name: ClassVar[str] = "open"

    max_new_tokens: int = within(32, low=1)
    distractors: int = within(9, low=0, high=99)

    def parse(self, item: TextItem, raw: str) -> str:
        """The first line, without a repeated "Answer:" in any language involved and without surrounding quotes."""
        return short_answer(raw, [item.fields["told_in"], item.lang, "eng"])

    def metric_names(self) -> list[str]:
        return ["em", "f1", "containment", *(["mrr_tokens"] if self.distractors else []), "off_target"]

    def predict(self, ev: Evaluation) -> None:
        super().predict(ev)
        if not self.distractors:
            return
        solved, items = self.loaded(ev)
        for part in dict.fromkeys(i.part for i in items):
            shots = [(i.prompt, i.references[0]) for i in solved if i.part == part][:self.shots]
            questions = among_others([i for i in items if i.part == part], self.distractors, f"{self.name}:{part}" if part else self.name)
            rank_options(ev, questions, ev.journal(f"{self.name}.ranked"), False, f"{self.name} {part or ev.lang}, options",
                         shots=lambda kind, shots=shots: shots, task_name=self.task_name)

    def score_part(self, ev: Evaluation, task: str, records: Sequence[dict[str, Any]]) -> None:
        super().score_part(ev, task, records)
        ranked = [r for r in records_of(ev, f"{self.name}.ranked") if r["task"] == task]
        if not self.distractors:
            return
        metric = MRR("tokens", self.shots, self.shots_from, self.asked)
        values = metric.per_example([option_scores(r, "tokens") for r in ranked], [r["gold"] for r in ranked])
        found = metric.aggregate(values, [r["cluster"] for r in ranked])
        found = replace(found, signature=f"{found.signature}|distractors:{self.distractors}")
        ev.add(task, "mrr_tokens", found, examples=example_rows(ranked, values))
        if ev.baselines and ranked:
            chance = [sum(1 / k for k in range(1, len(r["options"]) + 1)) / len(r["options"]) for r in ranked]
            ev.add(task, "mrr_tokens", Score(sum(chance) / len(chance), None, len(chance), "expected value of guessing"), "chance")


def among_others(items: Sequence[TextItem], n: int, task: str) -> list[Question]:
    """Each answerable item with its first right answer and `n` others, which are right answers to other items, as options.

    The choice depends on the item's id and the items beside it; with too few different answers there are fewer than `n`.
    """
    answers = sorted({i.references[0] for i in items if any(i.references)})
    out = []
    for item in items:
        right = {normalise(answer) for answer in item.references}
        if not any(item.references):
            continue
        drawn = random.Random(item.id).sample(answers, min(len(answers), n + len(right) + 8))
        others = [a for a in drawn if normalise(a) not in right][:n]
        if others:
            out.append(Question(item.id, "answer", item.cluster, item.prompt, (item.references[0], *others), 0, "", fields={"task": task}))
    return out


def short_answer(text: str, langs: Sequence[str]) -> str:
    """The answer in a generated text: its first line without the label that stands before answers in `langs`, and
    without one pair of quotation marks around the whole. Punctuation at the end stays: the scorers' affair."""
    line = text.strip().split("\n")[0].strip()
    for lang in dict.fromkeys(langs):
        label = re.escape(words(lang)["answer"].rstrip(":：៖ "))
        line = re.sub(rf"^{label}\s*[:：៖]\s*", "", line, flags=re.IGNORECASE)
    if len(line) > 2 and line[0] + line[-1] in QUOTES and not any(q in line[1:-1] for q in line[0] + line[-1]):
        line = line[1:-1].strip()
    return line


def ask(told_in: str, instruction: str, language: str, parts: Sequence[tuple[str, str]]) -> str:
    """The prompt: the instruction, each (label, text) on a line of its own, the label of the answer.

    Args:
        told_in: ISO 639-3 language of instruction and labels.
        language: ISO 639-3 language that the answer should be in.
    """
    lines = [say(told_in, instruction, language=language), *(say(told_in, label, text=text) for label, text in parts)]
    return "\n".join([*lines, words(told_in)["answer"]])
