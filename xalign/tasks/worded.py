"""Tasks whose instruction or question is written in every language (prompts.yaml)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import choice
from xalign.tasks.choicefiles import ChoiceFileTask
from xalign.tasks.files import FileTask
from xalign.tasks.textfiles import TextFileTask
from xalign.tasks.wording import words

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class Worded(FileTask):
    """A benchmark with its wording.

    Class attributes:
        keys: of prompts.yaml that the prompt is made of, for the predictions' key.

    Attributes:
        wording: the language of the instruction: ``target``, that of the texts, or ``source``.
    """

    keys: ClassVar[tuple[str, ...]] = ()

    wording: str = choice("target", "target", "source")

    @property
    def asked(self) -> str:
        return self.wording

    def told_in(self, lang: str, source: str) -> str:
        """The language of the instruction, ISO 639-3."""
        return lang if self.wording == "target" else source

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        block = words(self.told_in(lang, run.source))
        return {**super().recipe(run, lang), "words": {key: block[key] for key in self.keys}}


@dataclass(frozen=True)
class WordedChoiceTask(Worded, ChoiceFileTask):
    """Ranked options."""


@dataclass(frozen=True)
class WordedTask(Worded, TextFileTask):
    """Generated texts."""
