"""Benchmarks of ranked options that are read from their official files, one for each language."""
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import file_sha256
from xalign.config import ConfigError, XalignError, choices, within
from xalign.data.examples import read_jsonl
from xalign.metrics.base import Score
from xalign.metrics.ranking import MRR, Accuracy
from xalign.tasks.base import ENCODER_SECONDS, Evaluation, Task
from xalign.tasks.ranking import Question, add_chance, add_majority, add_ranking, rank_options

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class ChoiceFileTask(Task):
    """Where the files are and how many questions are asked; a subclass reads them.

    Class attributes:
        name, title: of the task, in scores and in messages.
        needs_source: the source language must have a file; else its scores are absent with a reason.
        task_name, categories: for `Evaluation.frame`.
        majority: the recipe of the majority baseline, in words; empty for none.
        by_place: the majority is over the options' places, not their texts.
        items, item_seconds: questions of a whole file, and the cost of one with a small causal backbone.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    needs_source: ClassVar[bool] = False
    task_name: ClassVar[str] = "choice"
    categories: ClassVar[tuple[str, ...]] = ()
    majority: ClassVar[str] = ""
    by_place: ClassVar[bool] = False
    items: ClassVar[int] = 0
    item_seconds: ClassVar[float] = 0.1

    path: str = ""
    limit: int = within(0, low=0)
    scores: list[str] = choices(("raw", "pmi"), "raw", "tokens", "bytes", "pmi")

    def file(self, lang: str) -> Path:
        """The official file of one language."""
        raise NotImplementedError

    def read(self, path: Path) -> tuple[list[Question], dict[str, int]]:
        """All questions of a file, and how many rows were left out, by reason.

        Raises:
            XalignError: for the first unusable line, naming file and line.
        """
        raise NotImplementedError

    @property
    def raw_text(self) -> bool:
        """The questions are literal text, not instructions."""
        return False

    def check_run(self, run: Run) -> None:
        """Raise for a missing folder, language file or unusable line, before anything is computed."""
        super().check_run(run)
        if not self.path:
            raise ConfigError(f"task.path: is empty; name the folder with {self.title}'s official files "
                              f"({self.file(run.lang[0]).as_posix()} ...)")
        for lang in (*run.lang, run.source):
            file = self.file(lang)
            if file.is_file():
                self.read(file)
            elif lang != run.source or self.needs_source:
                missing = file.relative_to(Path(self.path).expanduser())
                raise ConfigError(f"task.path={self.path}: has no {missing} for {lang}; put {self.title}'s official file there")

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        own = {k: v for k, v in asdict(self).items() if k != "path"}
        file = self.file(lang)
        return {"name": self.name, "file": file_sha256(file) if file.is_file() else None, **own}

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        if not self.file(lang).is_file():
            return 0
        return 5 + (ENCODER_SECONDS if run.backbone.kind == "encoder" else self.item_seconds) * (self.limit or self.items)

    def evaluate(self, ev: Evaluation) -> None:
        file = self.file(ev.lang)
        if not file.is_file():
            for by in self.scores:
                for metric in (Accuracy(by), MRR(by)):
                    ev.add(self.name, f"{metric.name}_{by}",
                           Score(None, None, 0, metric.signature, f"{self.title} has no file {file.name} for {ev.lang}"))
            return
        questions, left_out = self.read(file)
        records = rank_options(ev, questions[:self.limit or None], ev.journal(self.name), self.scores, f"{self.name} {ev.lang}",
                               raw_text=self.raw_text, task_name=self.task_name, categories=self.categories)
        add_ranking(ev, self.name, records, self.scores)
        ev.facts |= {self.name: len(records), **{f"{self.name}: {why}": n for why, n in left_out.items()}}
        if ev.baselines:
            add_chance(ev, self.name, records, self.scores)
            if self.majority:
                add_majority(ev, self.name, records, self.scores, self.majority, by_place=self.by_place)


def check_places(prompt: str, names: tuple[str, ...], key: str) -> None:
    """Raise ConfigError unless the prompt holds every ``{name}`` of `names` and no other place."""
    found = re.findall(r"\{(\w*)\}", prompt)
    if set(found) != set(names):
        raise ConfigError(f"{key}={prompt!r}: must hold {' and '.join(f'{{{n}}}' for n in names)} and no other name in braces")


def fill(prompt: str, **texts: str) -> str:
    """The prompt with each ``{name}`` replaced, once, by its text; braces in the texts stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda hit: texts[hit[1]], prompt).strip()


def cluster_of(text: str) -> str:
    """A short label that questions on the same text share."""
    return sha256(text.encode()).hexdigest()[:12]


def numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of a JSON-lines file."""
    with open(path, encoding="utf-8-sig", errors="replace") as f:
        numbers = [number for number, line in enumerate(f, 1) if line.strip()]
    yield from zip(numbers, read_jsonl(path), strict=True)


def text_of(row: dict[str, Any], key: str, where: str, title: str) -> str:
    """A text of a record, without outer spaces; XalignError at `where` if it is none or empty."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise XalignError(f"{where}: '{key}' is missing or empty; use {title}'s official file")
    return value.strip()
