"""XGLUE's tasks of generated text: QG, a question on a passage, and NTG, a title for a news article. Scored by BLEU-4."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from xalign.config import XalignError, within
from xalign.languages import LANGUAGES
from xalign.metrics.base import Metric
from xalign.tasks.base import Evaluation
from xalign.tasks.columns import first_words, lines_of
from xalign.tasks.files import cluster_of
from xalign.tasks.qa import ask
from xalign.tasks.textfiles import TextItem
from xalign.tasks.worded import WordedTask
from xalign.tasks.xglue import ORIGIN


@dataclass(frozen=True)
class XglueTextTask(WordedTask):
    """Sources in one file, references in another, aligned by line.

    Class attributes:
        code: the task's folder; `keys`: of prompts.yaml, the instruction, the source's label and that of the answer.
    """

    origin: ClassVar[str] = ORIGIN
    items: ClassVar[int] = 10_000
    item_seconds: ClassVar[float] = 1.0
    code: ClassVar[str] = ""

    max_words: int = within(200, low=0)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        stem = f"{self.code}/xglue.{self.code.lower()}.{LANGUAGES[lang].iso1}"
        solved = {"shots": f"{stem}.src.dev", "shots_target": f"{stem}.tgt.dev"} if self.shots else {}
        return {"test": f"{stem}.src.test", "target": f"{stem}.tgt.test", **solved}

    def read(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        at, told_in = self.paths(folder, lang, source), self.told_in(lang, source)
        solved = self._items(at["shots"], at["shots_target"], lang, told_in, "dev-") if "shots" in at else []
        return solved, self._items(at["test"], at["target"], lang, told_in)

    def _items(self, source_file: Path, target_file: Path, lang: str, told_in: str, prefix: str = "") -> list[TextItem]:
        instruction, label, _ = self.keys
        out = []
        for n, (text, right) in enumerate(text_pairs(source_file, target_file, self.title), 1):
            text = first_words(text, self.max_words)
            out.append(TextItem(f"{self.name}/{prefix}{n}", cluster_of(text), ask(told_in, instruction, lang, [(label, text)]), lang,
                                (right,), text))
        return out

    def metric_names(self) -> list[str]:
        return ["bleu4", "off_target"]

    def metrics(self, part: str, lang: str, ev: Evaluation) -> Sequence[Metric]:
        from xalign.metrics.translation import BLEU4

        return [BLEU4(lang)]


@dataclass(frozen=True)
class QuestionTask(XglueTextTask):
    """QG: a question that the passage answers."""

    name: ClassVar[str] = "xglue_qg"
    title: ClassVar[str] = "XGLUE QG"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra", "por", "spa")
    code: ClassVar[str] = "QG"
    keys: ClassVar[tuple[str, ...]] = ("write_question", "context", "answer")


@dataclass(frozen=True)
class TitleTask(XglueTextTask):
    """NTG: the title of a news article."""

    name: ClassVar[str] = "xglue_ntg"
    title: ClassVar[str] = "XGLUE NTG"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra", "spa")
    code: ClassVar[str] = "NTG"
    keys: ClassVar[tuple[str, ...]] = ("title_question", "article", "answer")


def text_pairs(source: Path, target: Path, title: str) -> list[tuple[str, str]]:
    """(source, reference) of each line; of a reference with columns, the last one, as the official script reads it.

    Raises:
        XalignError: for another number of lines, or a line that is empty, naming file and line.
    """
    sides = [lines_of(path, title) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise XalignError(f"{target}:{len(sides[1])}: ends here, but {source} has {len(sides[0])} lines, and the two are aligned by line; "
                          f"use {title}'s official files")
    for path, lines in zip((source, target), sides, strict=True):
        for number, text in lines:
            if not text.strip():
                raise XalignError(f"{path}:{number}: is empty, and the files are aligned by line; use {title}'s official file")
    return [(text, right.rsplit("\t", 1)[-1].strip()) for (_, text), (_, right) in zip(*sides, strict=True)]
