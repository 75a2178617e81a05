"""BELEBELE from its official release files: reading comprehension, four options, ranked by log-likelihood."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from xalign.config import XalignError, choice
from xalign.data.reading import numbered
from xalign.languages import LANGUAGES
from xalign.tasks.choicefiles import ChoiceFileTask
from xalign.tasks.files import HubFile, cluster_of, text_of
from xalign.tasks.ranking import Question
from xalign.values import shown

TEXTS = ("flores_passage", "question", "mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4")
NEUTRAL = "Answer:"


@dataclass(frozen=True)
class BelebeleTask(ChoiceFileTask):
    """Where the files are and how the questions are put; see the YAML."""

    name: ClassVar[str] = "belebele"
    title: ClassVar[str] = "BELEBELE"
    origin: ClassVar[str] = "github.com/facebookresearch/belebele"
    items: ClassVar[int] = 900
    item_seconds: ClassVar[float] = 0.35

    prompt: str = choice("template", "template", "plain")

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        return {"test": f"{LANGUAGES[lang].flores}.jsonl"}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        code = LANGUAGES[lang].flores
        return [HubFile(f"{code}.jsonl", "facebook/belebele", code, "test")]

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        return read_questions(path, self.prompt), {}

    @property
    def asked(self) -> str:
        return self.prompt

    @property
    def raw_text(self) -> bool:
        return self.prompt == "plain"


def read_questions(path: Path, prompt: str) -> list[Question]:
    """The file's questions; several on one passage are one cluster.

    Args:
        prompt: ``plain`` is ``P: passage, Q: question, Answer:`` as literal text, ``template`` the passage
            and the question as an instruction.
    Raises:
        XalignError: for a line without a text or with an impossible answer number, naming file and line.
    """
    out: list[Question] = []
    for number, row in numbered(path):
        for key in TEXTS:
            text_of(row, key, f"{path}:{number}", "BELEBELE")
        if str(row.get("correct_answer_num")) not in ("1", "2", "3", "4"):
            raise XalignError(f"{path}:{number}: correct_answer_num={shown(row.get('correct_answer_num'))}: must be 1, 2, 3 or 4; "
                              "use BELEBELE's official file")
        passage, question = row["flores_passage"], row["question"]
        text = f"P: {passage}\nQ: {question}\nAnswer:" if prompt == "plain" else f"{passage}\n\n{question}"
        options = tuple(row[f"mc_answer{k}"].strip() for k in range(1, 5))
        gold = int(row["correct_answer_num"]) - 1
        out.append(Question(f"belebele/{number}", "belebele", cluster_of(passage), text, options, gold, NEUTRAL))
    return out
