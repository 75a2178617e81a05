"""Benchmarks of ranked options that are read from their official files, one for each language."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import ConfigError, XalignError, choices
from xalign.tasks.base import ENCODER_SECONDS, Evaluation, records_of
from xalign.tasks.files import FileTask
from xalign.tasks.ranking import Question, Shots, add_chance, add_majority, add_ranking, rank_options

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class ChoiceFileTask(FileTask):
    """Questions with options that a model ranks; a subclass reads them.

    Class attributes:
        task_name, categories: for `Evaluation.frame`.
        majority: the recipe of the majority baseline, in words; empty for none.
        by_place: the majority is over the options' places, not their texts.
        items, item_seconds: questions of a whole file, and the cost of one with a small causal backbone.
    """

    task_name: ClassVar[str] = "choice"
    categories: ClassVar[tuple[str, ...]] = ()
    majority: ClassVar[str] = ""
    by_place: ClassVar[bool] = False
    items: ClassVar[int] = 0
    item_seconds: ClassVar[float] = 0.1

    scores: list[str] = choices(("raw", "pmi"), "raw", "tokens", "bytes", "pmi")

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        """All questions of a file, and how many rows were left out, by reason.

        Raises:
            XalignError: for the first unusable line, naming file and line.
        """
        raise NotImplementedError

    @property
    def raw_text(self) -> bool:
        """The questions are literal text, not instructions."""
        return False

    def load(self, folder: Path, lang: str, source: str) -> tuple[list[Question], list[Question], dict[str, int]]:
        """(solved examples, questions, rows left out by reason): the examples are of the file in the role ``shots``,
        else the first ones of the test file on different texts, which are then not asked."""
        paths = self.paths(folder, lang, source)
        questions, left_out = self.read(paths["test"], lang, source)
        solved: list[Question] = []
        if self.shots and "shots" in paths:
            solved = self.read(paths["shots"], lang, source)[0][:self.shots]
        elif self.shots:
            solved = list({q.cluster: q for q in reversed(questions)}.values())[::-1][:self.shots]
            taken = {q.cluster for q in solved}
            questions = [q for q in questions if q.cluster not in taken]
        if not questions and not solved:
            raise XalignError(f"{paths['test']}: holds no question for {lang}; use {self.title}'s official file")
        if len(solved) < self.shots or not questions:
            raise ConfigError(f"task.{self.name}.shots={self.shots}: {paths.get('shots', paths['test'])} has too few questions")
        return solved, self.first(questions), left_out

    def first(self, questions: list[Question]) -> list[Question]:
        """The questions that ``limit`` leaves."""
        return questions[:self.limit or None]

    @property
    def shots_from(self) -> str:
        """Where the solved examples come from, for the signature."""
        return "dev" if "shots" in self.files("eng", "eng") else "test"

    def metric_names(self) -> list[str]:
        return [f"{metric}_{by}" for by in self.scores for metric in ("accuracy", "mrr")]

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        return {**super().recipe(run, lang), "pmi": "pmi" in self.scores}

    def scoring(self, run: Run, lang: str) -> dict[str, Any]:
        return {"scores": list(self.scores)}

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        return 5 + (ENCODER_SECONDS if run.backbone.kind == "encoder" else self.item_seconds) * (self.limit or self.items)

    def predict(self, ev: Evaluation) -> None:
        solved, questions, left_out = self.loaded(ev)
        shots: Shots = tuple((q.text, q.options[q.gold]) for q in solved)
        before = ""
        if self.raw_text:  # literal text has no turns
            before, shots = "".join(f"{question} {answer}\n\n" for question, answer in shots), ()
        rank_options(ev, questions, ev.journal(self.name), "pmi" in self.scores, f"{self.name} {ev.lang}", shots=lambda kind: shots,
                     raw_text=self.raw_text, before=before, task_name=self.task_name, categories=self.categories)
        ev.facts |= {f"{self.name}: {why}": n for why, n in left_out.items()}

    def score(self, ev: Evaluation) -> None:
        records = records_of(ev, self.name)
        ev.facts[self.name] = len(records)
        self.add_scores(ev, records)

    def add_scores(self, ev: Evaluation, records: list[dict[str, Any]]) -> None:
        """Accuracy and MRR, chance, majority."""
        add_ranking(ev, self.name, records, self.scores, shots=self.shots, shots_from=self.shots_from, asked=self.asked)
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
