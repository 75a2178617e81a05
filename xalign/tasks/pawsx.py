"""PAWS-X from its official files: do two sentences mean the same? Adversarial paraphrases in seven languages."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xalign.config import XalignError
from xalign.data.reading import text_lines
from xalign.languages import LANGUAGES
from xalign.tasks.choicefiles import ChoiceFileTask, check_places, fill
from xalign.tasks.files import HubFile, cluster_of
from xalign.tasks.ranking import Question
from xalign.values import shown

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
    origin: ClassVar[str] = "github.com/google-research-datasets/paws"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra", "jpn", "kor", "spa", "zho")
    task_name: ClassVar[str] = "paraphrase"
    categories: ClassVar[tuple[str, ...]] = OPTIONS
    majority: ClassVar[str] = "most frequent label"
    items: ClassVar[int] = 2000
    item_seconds: ClassVar[float] = 0.15

    prompt: str = "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nDo the two sentences have the same meaning, yes or no?"

    def check(self, path: str) -> None:
        super().check(path)
        check_places(self.prompt, PLACES, f"{path}.prompt")

    @property
    def asked(self) -> str:
        return cluster_of(self.prompt)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        names = {"test": "test_2k.tsv", **({"shots": "dev_2k.tsv"} if self.shots else {})}
        code = LANGUAGES[lang].iso1
        return {role: (f"{code}/{name}", f"x-final/{code}/{name}") for role, name in names.items()}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        splits = {"test": "test", "shots": "validation"}
        return [HubFile(paths[0], "google-research-datasets/paws-x", LANGUAGES[lang].iso1, splits[role], write_pairs)
                for role, paths in self.files(lang, source).items()]

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        return read_pairs(path, self.prompt)


def write_pairs(rows: Iterable[Mapping[str, Any]]) -> str:
    """The hub's rows in the official file's shape."""
    lines = ["\t".join(" ".join(str(row[name]).split()) for name in COLUMNS) for row in rows]
    return "\n".join(["\t".join(COLUMNS), *lines]) + "\n"


def read_pairs(path: Path, prompt: str) -> tuple[list[Question], dict[str, int]]:
    """The pairs of a file and how many were left out; pairs with the same first sentence are one cluster.

    Quotation marks are text: the official files quote nothing.

    Raises:
        XalignError: for another header, a line without four columns, a label other than 0 and 1, or an id that
            occurs twice, naming file and line.
    """
    rows = [(number, tuple(line.split("\t"))) for number, line in text_lines(path, "use PAWS-X's official file") if line.strip()]
    if not rows or rows[0][1] != COLUMNS:
        raise XalignError(f"{path}:1: the header must be {', '.join(COLUMNS)}, parted by tabs; use PAWS-X's official file")
    out: list[Question] = []
    seen: set[str] = set()
    left_out = 0
    neutral = fill(prompt, sentence1="", sentence2="")
    for number, row in rows[1:]:
        if len(row) != len(COLUMNS):
            raise XalignError(f"{path}:{number}: has {len(row)} columns, parted by tabs; must be {len(COLUMNS)}: {', '.join(COLUMNS)}; "
                              "use PAWS-X's official file")
        code, first, second, label = (text.strip() for text in row)
        if label not in ("0", "1"):
            raise XalignError(f"{path}:{number}: label={shown(label)}: must be 0 or 1; use PAWS-X's official file")
        if code in seen:
            raise XalignError(f"{path}:{number}: id={shown(code)}: occurs a second time; use PAWS-X's official file")
        seen.add(code)
        if first in NOT_TRANSLATED or second in NOT_TRANSLATED:
            left_out += 1
            continue
        text = fill(prompt, sentence1=first, sentence2=second)
        out.append(Question(f"pawsx/{code}", "pawsx", cluster_of(first), text, OPTIONS, int(label), neutral))
    return out, {LEFT_OUT: left_out}
