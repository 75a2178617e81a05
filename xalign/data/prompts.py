"""ML-IPD's two prompt levels (METHODS.md section 3): the task in English, then the language, then the input."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xalign.data.examples import Example
from xalign.languages import LANGUAGES

# TP: what is asked, in English; closed categories are listed
TASKS = {
    "choice": "Task: answer the question with a name or a few words.",
    "term": "Task: classify the term into one of the categories: {categories}.",
    "paraphrase": "Task: compare the two sentences and choose one of the categories: {categories}.",
    "cause": "Task: choose the more plausible of two alternatives.",
    "open": "Task: answer the question with a name or a few words.",
    "translation": "Task: translate the text.",
    "instruction": "Task: follow the instruction.",
}
SCRIPTS = {"Latn": "Latin", "Cyrl": "Cyrillic", "Jpan": "Japanese", "Hang": "Hangul", "Thai": "Thai", "Khmr": "Khmer",
           "Arab": "Arabic", "Grek": "Greek", "Deva": "Devanagari", "Hans": "simplified Chinese"}


@dataclass(frozen=True)
class Frame:
    """The prompt around an input: ``TP, LP, x`` on a line each.

    Attributes:
        language: LP: ``text`` describes the language in words, ``soft`` is `k` trainable tokens for each target
            language (the source language keeps its text), ``none`` leaves it out.
        source: ISO 639-3 code of the source language.
        k: number of trainable tokens.
    """

    language: str = "text"
    source: str = "eng"
    k: int = 20

    def __call__(self, task: str, lang: str, text: str, categories: Sequence[str] = ()) -> str:
        """``prompt(task, lang, x)``; `task` is one of `TASKS`."""
        task_level = TASKS[task].replace("{categories}", ", ".join(categories))
        return "\n".join(part for part in (task_level, self.language_level(lang), text) if part)

    def language_level(self, lang: str) -> str:
        """LP of one language."""
        if self.language == "none":
            return ""
        if self.language == "soft" and lang != self.source:
            return "".join(soft_tokens(lang, self.k))
        return language_text(lang)

    def example(self, example: Example) -> Example:
        """A row with its prompt, and its pivot if it has one, in the frame."""
        task, categories = task_of(example), example.options if task_of(example) == "term" else ()
        pivot = example.pivot and self(task, self.source, example.pivot, categories)
        return example.with_(prompt=self(task, example.lang, example.prompt, categories), pivot=pivot)

    def params(self) -> dict[str, Any]:
        """What decides the prompts: part of the keys."""
        return {**asdict(self), "tasks": TASKS}


def language_text(lang: str) -> str:
    """LP in words: family, script, and whether spaces part the words."""
    row = LANGUAGES[lang]
    spaces = "spaces between words" if row.spaced else "no spaces between words"
    return f"Language: {row.name}, {row.family}, {SCRIPTS[row.script]} script, {spaces}."


def soft_tokens(lang: str, k: int) -> list[str]:
    """The names of a language's trainable tokens."""
    return [f"<lp_{lang}_{i}>" for i in range(k)]


def task_of(example: Example) -> str:
    """Which of `TASKS` a training row belongs to."""
    if example.source == "lab:term":
        return "term"
    if example.source.startswith("parallel:"):
        return "translation"
    return "choice" if example.source.startswith("lab:") or example.options else "instruction"
