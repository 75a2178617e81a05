"""PAWS-X from its official files: do two sentences mean the same? Adversarial paraphrases in seven languages."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from xalign.config import XalignError
from xalign.languages import LANGUAGES
from xalign.tasks.choicefiles import ChoiceFileTask, check_places, cluster_of, fill
from xalign.tasks.ranking import Question

OPTIONS = ("no", "yes")  # in the order of the labels 0 and 1
COLUMNS = ("id", "sentence1", "sentence2", "label")
PLACES = ("sentence1", "sentence2")
NOT_TRANSLATED = ("NS", "")  # what the official files hold in place of a sentence that nobody translated
LEFT_OUT = "pairs not translated"


@dataclass(frozen=True)
class PawsXTask(ChoiceFileTask):
    """Where the files are and how the question is put; see the YAML. The official measure is accuracy."""

    name: ClassVar[str] = "pawsx"
    title: ClassVar[str] = "PAWS-X"
    task_name: ClassVar[str] = "paraphrase"
    categories: ClassVar[tuple[str, ...]] = OPTIONS
    majority: ClassVar[str] = "most frequent label"
    items: ClassVar[int] = 2000
    item_seconds: ClassVar[float] = 0.15

    prompt: str = "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nDo the two sentences have the same meaning, yes or no?"

    def check(self, path: str) -> None:
        super().check(path)
        check_places(self.prompt, PLACES, f"{path}.prompt")

    def file(self, lang: str) -> Path:
        return Path(self.path).expanduser() / LANGUAGES[lang].iso1 / "test_2k.tsv"

    def read(self, path: Path) -> tuple[list[Question], dict[str, int]]:
        return read_pairs(path, self.prompt)


def read_pairs(path: Path, prompt: str) -> tuple[list[Question], dict[str, int]]:
    """The pairs of a file and how many were left out; pairs with the same first sentence are one cluster.

    Quotation marks are text: the official files quote nothing.

    Raises:
        XalignError: for another header, a line without four columns, a label other than 0 and 1, or an id that
            occurs twice, naming file and line.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as e:
        raise XalignError(f"{path}: not UTF-8 ({e.reason} at byte {e.start}); use PAWS-X's official file") from None
    rows = [(number, tuple(line.rstrip("\r").split("\t"))) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows or rows[0][1] != COLUMNS:
        raise XalignError(f"{path}:1: the header must be {', '.join(COLUMNS)}, parted by tabs; use PAWS-X's official file")
    out: list[Question] = []
    seen: set[str] = set()
    left_out = 0
    neutral = fill(prompt, sentence1="", sentence2="")
    for number, row in rows[1:]:
        if len(row) != len(COLUMNS):
            raise XalignError(f"{path}:{number}: has {len(row)} columns, parted by tabs; must be {len(COLUMNS)}: {', '.join(COLUMNS)}")
        code, first, second, label = (text.strip() for text in row)
        if label not in ("0", "1"):
            raise XalignError(f"{path}:{number}: label={label}: must be 0 or 1")
        if code in seen:
            raise XalignError(f"{path}:{number}: id={code}: occurs a second time; use PAWS-X's official file")
        seen.add(code)
        if first in NOT_TRANSLATED or second in NOT_TRANSLATED:
            left_out += 1
            continue
        text = fill(prompt, sentence1=first, sentence2=second)
        out.append(Question(f"pawsx/{code}", "pawsx", cluster_of(first), text, OPTIONS, int(label), neutral))
    return out, {LEFT_OUT: left_out}
