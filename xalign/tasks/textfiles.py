"""Benchmarks of generated texts that are read from their official files."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import ConfigError, XalignError, within
from xalign.metrics.base import Metric, Score
from xalign.metrics.statistics import CorpusMetric
from xalign.tasks.base import Evaluation, Request, example_rows, generate_all, records_of, tasks_of
from xalign.tasks.files import FileTask
from xalign.tasks.learned import add_similarity, learned_inputs
from xalign.tasks.texts import add_off_target, learned_params

if TYPE_CHECKING:
    from xalign.cache import Stage
    from xalign.config import Run


@dataclass(frozen=True)
class TextItem:
    """One text to generate.

    Attributes:
        id: stable over models and, where the benchmark is parallel, over languages.
        cluster: items with the same label are not independent (questions on one passage).
        prompt: the whole instruction.
        lang: ISO 639-3 language that the text should be in.
        references: right answers; empty for an open instruction.
        text: what the answer is made from (the text to translate), for metrics that read it.
        part: the score's task is ``name:part``, or ``name`` without one.
        fields: whatever else the scoring needs.
    """

    id: str
    cluster: str
    prompt: str
    lang: str
    references: tuple[str, ...] = ()
    text: str = ""
    part: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextFileTask(FileTask):
    """How the texts are generated; a subclass reads the items and says how they are scored.

    Class attributes:
        task_name: for `Evaluation.frame`.
        one_line: an answer ends at its first line break.
        items, item_seconds: texts of a whole file, and the cost of one with a small backbone.
    """

    kinds: ClassVar[tuple[str, ...]] = ("causal",)
    task_name: ClassVar[str] = "instruction"
    one_line: ClassVar[bool] = True
    items: ClassVar[int] = 0
    item_seconds: ClassVar[float] = 0.5

    max_new_tokens: int = within(40, low=1)
    beams: int = within(1, low=1, high=64)
    stop: list[str] = field(default_factory=list)

    def check(self, path: str) -> None:
        super().check(path)
        if "" in self.stop:
            raise ConfigError(f"{path}.stop={list(self.stop)}: an empty text would end every answer at once; name texts, or [] for none")

    def read(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        """(items to solve before the question, items): the first list is empty unless the release has a file for it.

        Raises:
            XalignError: for the first unusable line, naming file and line.
        """
        raise NotImplementedError

    def parse(self, item: TextItem, raw: str) -> str:
        """The answer in what was generated."""
        return raw

    def metrics(self, part: str, lang: str, ev: Evaluation) -> Sequence[Metric]:
        """What the texts of one part, which should be in `lang`, are scored by."""
        raise NotImplementedError

    def baseline_texts(self, records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
        """Name → texts that need no model, one a record."""
        return {}

    def load(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        """(solved examples, items): without a file for them, the examples are the test's first ones on different texts,
        which are then not asked."""
        solved, items = self.read(folder, lang, source)
        if self.shots and not solved:
            first: dict[tuple[str, str], TextItem] = {}
            for item in items:
                first.setdefault((item.part, item.cluster), item)
            parts = dict.fromkeys(part for part, _ in first)
            solved = [i for part in parts for i in [x for (p, _), x in first.items() if p == part][:self.shots]]
            taken = {i.cluster for i in solved}
            items = [i for i in items if i.cluster not in taken]
        if not items and not solved:
            raise XalignError(f"{self.paths(folder, lang, source)['test']}: holds no item for {lang}; use {self.title}'s official file")
        if not items or self.shots and any(len(_of(solved, part)) < self.shots for part in {i.part for i in items}):
            raise ConfigError(f"task.{self.name}.shots={self.shots}: {folder} has too few items for {lang}")
        if self.limit:
            items = [i for part in dict.fromkeys(x.part for x in items) for i in _of(items, part)[:self.limit]]
        return solved, items

    @property
    def shots_from(self) -> str:
        """Where the solved examples come from, for the signature."""
        return "dev" if "shots" in self.files("eng", "eng") else "test"

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        return {**super().recipe(run, lang), "one_line": self.one_line}

    def scoring(self, run: Run, lang: str) -> dict[str, Any]:
        return learned_params(run)

    def score_inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        return learned_inputs(run.metric)

    def fitted(self, ev: Evaluation, solved: list[TextItem], items: list[TextItem]) -> tuple[list[TextItem], list[TextItem]]:
        """Both lists with prompts that fit the model; as they are, a prompt that is too long loses its beginning."""
        return solved, items

    def signed(self, score: Score) -> Score:
        """`score` with what the texts were generated by."""
        how = [f"shots:{self.shots}" + (f" from {self.shots_from}" if self.shots else ""), f"beams:{self.beams}",
               f"max_new_tokens:{self.max_new_tokens}"]
        prompt = [f"prompt:{self.asked}"] if self.asked else []
        return replace(score, signature="|".join([score.signature, *prompt, *how]))

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        return 5 + self.item_seconds * (self.limit or self.items) * self.beams

    def predict(self, ev: Evaluation) -> None:
        solved, items = self.fitted(ev, *self.loaded(ev))
        journal = ev.journal(self.name)
        for part in dict.fromkeys(i.part for i in items):
            shots = [(i.prompt, i.references[0]) for i in _of(solved, part)[:self.shots]]
            requests = [Request(journal, i.id, i.prompt, self.max_new_tokens,
                                {"task": f"{self.name}:{i.part}" if i.part else self.name, "lang": i.lang, "cluster": i.cluster,
                                 "references": list(i.references), "text": i.text, **i.fields},
                                lambda raw, i=i: self.parse(i, raw), self.task_name) for i in _of(items, part)]
            generate_all(ev, requests, f"{self.name} {part or ev.lang}", stop_newline=self.one_line, shots=shots, stop=list(self.stop),
                         beams=self.beams)

    def score(self, ev: Evaluation) -> None:
        records = records_of(ev, self.name)
        for task in tasks_of(ev, records):
            own = [r for r in records if r["task"] == task]
            ev.facts[task] = len(own)
            self.score_part(ev, task, own)
        add_off_target(ev, self.name, records)

    def score_part(self, ev: Evaluation, task: str, records: Sequence[dict[str, Any]]) -> None:
        """Every metric of one part, and of its baselines; with references, the learned similarity too."""
        references, clusters = [r["references"] for r in records], [r["cluster"] for r in records]
        for metric in self.metrics(task.partition(":")[2], records[0]["lang"], ev):
            predictions = [r["prediction"] for r in records]
            values = metric.per_example(predictions, references)
            if isinstance(metric, CorpusMetric):  # not the mean of its values
                found = metric.score(predictions, references, clusters=clusters)
                rows = example_rows(records, values, metric.statistics(predictions, references))
            else:
                found, rows = metric.aggregate(values, clusters), example_rows(records, values)
            ev.add(task, metric.name, self.signed(found), examples=rows)
            for name, texts in self.baseline_texts(records).items() if ev.baselines else ():
                ev.add(task, metric.name, metric.score(texts, references, clusters=clusters), name)
        add_similarity(ev, task, records)


def _of(items: Sequence[TextItem], part: str) -> list[TextItem]:
    return [i for i in items if i.part == part]
