"""XNLI from its official files: does a premise make a hypothesis true, false, or neither? Fifteen languages, twelve of ours."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import XalignError
from xalign.languages import LANGUAGES
from xalign.tasks.columns import lines_of
from xalign.tasks.files import HubFile, cluster_of
from xalign.tasks.ranking import Question
from xalign.tasks.worded import WordedChoiceTask
from xalign.tasks.wording import say, words
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.config import Run

LABELS = ("entailment", "neutral", "contradiction")  # in the order of the hub's labels and of the prompts' options
COLUMNS = ("language", "gold_label", "sentence1", "sentence2", "pairID")


@dataclass(frozen=True)
class XnliTask(WordedChoiceTask):
    """Where the files are and how the question is put; see the YAML. The official measure is accuracy. Source: Conneau et al. 2018."""

    name: ClassVar[str] = "xnli"
    title: ClassVar[str] = "XNLI"
    origin: ClassVar[str] = "XNLI-1.0 of github.com/facebookresearch/XNLI"
    languages: ClassVar[tuple[str, ...]] = ("eng", "ara", "bul", "deu", "ell", "fra", "hin", "spa", "tha", "tur", "vie", "zho")
    majority: ClassVar[str] = "most frequent label"
    items: ClassVar[int] = 5010
    item_seconds: ClassVar[float] = 0.12
    keys: ClassVar[tuple[str, ...]] = ("sentence", "nli_question", "nli_options")

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        names = {"test": "xnli.test.tsv", **({"shots": "xnli.dev.tsv"} if self.shots else {})}
        return {role: (name, f"XNLI-1.0/{name}") for role, name in names.items()}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        code, splits = LANGUAGES[lang].iso1, {"test": "test", "shots": "validation"}
        return [HubFile(names[0], "facebook/xnli", code, splits[role], lambda rows: write_pairs(rows, code))
                for role, names in self.files(lang, source).items()]

    def lacks(self, run: Run, lang: str) -> str:
        """Why `lang` cannot be evaluated: one file holds every language, so its being there says nothing."""
        own = "" if lang in self.languages else f"task.{self.name}: {self.title} has no {LANGUAGES[lang].name} ({lang}); " \
                                                f"it has {' '.join(self.languages)}"
        return own or super().lacks(run, lang)

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        return read_pairs(path, LANGUAGES[lang].iso1, self.told_in(lang, source)), {}


def read_pairs(path: Path, code: str, told_in: str) -> list[Question]:
    """The pairs of one language; those with one premise are one cluster.

    Args:
        code: of the language in the file, e.g. ``de``.
        told_in: ISO 639-3 code of the prompt's language.
    Raises:
        XalignError: for a header without a column, a line with another number of columns or another label, or a
            language without a line or with a pair twice, naming file and line.
    """
    lines = lines_of(path, "XNLI")
    header = lines[0][1].split("\t") if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise XalignError(f"{path}:1: the header, parted by tabs, has no {missing[0]}; use XNLI's official file")
    at = [header.index(name) for name in COLUMNS]
    out, seen = [], set[str]()
    for number, line in lines[1:]:
        row = line.split("\t")
        if row[at[0]:at[0] + 1] != [code]:
            if line.strip() and len(row) <= max(at):
                raise XalignError(f"{path}:{number}: has {len(row)} columns, parted by tabs; the header has {len(header)}; "
                                  "use XNLI's official file")
            continue
        if len(row) != len(header):
            raise XalignError(f"{path}:{number}: has {len(row)} columns, parted by tabs; the header has {len(header)}; "
                              "use XNLI's official file")
        _, label, premise, hypothesis, pair = (row[k].strip() for k in at)
        if pair in seen:
            raise XalignError(f"{path}:{number}: pairID={shown(pair)}: occurs a second time in language {code}; use XNLI's official file")
        seen.add(pair)
        out.append(question(f"xnli/{pair}", premise, hypothesis, label, told_in, f"{path}:{number}"))
    if not out:
        raise XalignError(f"{path}:{len(lines)}: ends without a line of language {code}; use XNLI's official file")
    return out


def question(id: str, premise: str, hypothesis: str, label: str, told_in: str, where: str) -> Question:
    """One pair as a ranked question; `label` as the file has it."""
    if label not in LABELS:
        raise XalignError(f"{where}: label '{shown(label)}': must be one of {', '.join(LABELS)}; use the official file")
    if not premise or not hypothesis:
        raise XalignError(f"{where}: has an empty sentence; use the official file")
    asked = say(told_in, "nli_question")
    text = "\n".join([*(say(told_in, "sentence", n=n, text=t) for n, t in ((1, premise), (2, hypothesis))), asked])
    return Question(id, "xnli", cluster_of(premise), text, tuple(words(told_in)["nli_options"]), LABELS.index(label), asked)


def write_pairs(rows: Iterable[Mapping[str, Any]], code: str) -> str:
    """The hub's rows of one language in the official file's shape; they have no ids, so these count from 1."""
    lines = ["\t".join([code, LABELS[row["label"]], *(" ".join(str(row[k]).split()) for k in ("premise", "hypothesis")), str(n)])
             for n, row in enumerate(rows, 1)]
    return "\n".join(["\t".join(COLUMNS), *lines]) + "\n"
