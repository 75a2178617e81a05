"""What the benchmarks of short free answers share: the prompts in every language, and the answer in what was generated."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xalign.config import within
from xalign.tasks.textfiles import TextItem
from xalign.tasks.worded import WordedTask
from xalign.tasks.wording import say, words

QUOTES = ('""', "''", "“”", "„“", "„”", "””", "‘’", "«»", "»«", "‹›", "「」", "『』", "《》", "``")


@dataclass(frozen=True)
class AnswerTask(WordedTask):
    """A task whose answers are a name or a few words."""

    task_name: ClassVar[str] = "open"

    max_new_tokens: int = within(32, low=1)

    def parse(self, item: TextItem, raw: str) -> str:
        """The first line, without a repeated "Answer:" in any language involved and without surrounding quotes."""
        return short_answer(raw, [item.fields["told_in"], item.lang, "eng"])

    def metric_names(self) -> list[str]:
        return ["em", "f1", "containment", "off_target"]


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
