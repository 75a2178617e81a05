"""XCOPA from its official files: which of two sentences is the cause, or the effect, of a premise?"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from xalign.config import XalignError
from xalign.data.reading import ident_of, numbered
from xalign.languages import LANGUAGES
from xalign.tasks.choicefiles import ChoiceFileTask, check_places, fill
from xalign.tasks.files import HubFile, cluster_of, text_of
from xalign.tasks.ranking import Question
from xalign.values import shown

QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}
PLACES = ("premise", "question")


@dataclass(frozen=True)
class XCopaTask(ChoiceFileTask):
    """Where the files are and how the question is put; see the YAML. The official measure is accuracy."""

    name: ClassVar[str] = "xcopa"
    title: ClassVar[str] = "XCOPA"
    origin: ClassVar[str] = "github.com/cambridgeltl/xcopa"
    languages: ClassVar[tuple[str, ...]] = ("ind", "tha", "tur", "vie", "zho")
    task_name: ClassVar[str] = "cause"
    majority: ClassVar[str] = "most frequent place of the right choice"
    by_place: ClassVar[bool] = True
    items: ClassVar[int] = 500
    item_seconds: ClassVar[float] = 0.1

    prompt: str = "{premise}\n{question}"

    def check(self, path: str) -> None:
        super().check(path)
        check_places(self.prompt, PLACES, f"{path}.prompt")

    @property
    def asked(self) -> str:
        return cluster_of(self.prompt)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        code = LANGUAGES[lang].iso1
        return {"test": f"{code}/test.{code}.jsonl", **({"shots": f"{code}/val.{code}.jsonl"} if self.shots else {})}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        code, splits = LANGUAGES[lang].iso1, {"test": "test", "shots": "validation"}
        return [HubFile(path, "cambridgeltl/xcopa", code, splits[role]) for role, path in self.files(lang, source).items()]

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        return read_premises(path, self.prompt), {}


def read_premises(path: Path, prompt: str) -> list[Question]:
    """The questions of a file, each premise its own cluster; the neutral question has no premise.

    Raises:
        XalignError: for a line without a text, with another question or label, or with an id a second time, naming file and line.
    """
    out: list[Question] = []
    seen: set[str] = set()
    for number, row in numbered(path):
        where = f"{path}:{number}"
        premise, *options = (text_of(row, key, where, "XCOPA") for key in ("premise", "choice1", "choice2"))
        asked, label = row.get("question"), row.get("label")
        if not isinstance(asked, str) or asked not in QUESTIONS:
            raise XalignError(f"{where}: question={shown(asked)}: must be cause or effect; use XCOPA's official file")
        if type(label) is not int or label not in (0, 1):
            raise XalignError(f"{where}: label={shown(label)}: must be 0 or 1; use XCOPA's official file")
        code = f"xcopa/{ident_of(row, 'idx', number, where)}"
        if code in seen:
            raise XalignError(f"{where}: idx={shown(row.get('idx'))}: occurs a second time; use XCOPA's official file")
        seen.add(code)
        text, neutral = (fill(prompt, premise=p, question=QUESTIONS[asked]) for p in (premise, ""))
        out.append(Question(code, asked, code, text, tuple(options), label, neutral))
    return out
