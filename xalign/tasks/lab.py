"""The laboratory's tests on entities that training never saw: multiple choice, terms, open answers, translation, language."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Stage
from xalign.config import choices, within
from xalign.data.instructions import translation_prompt
from xalign.data.lab.categories import CATEGORIES, TEST_TERMS
from xalign.data.lab.node import whole
from xalign.languages import LANGUAGES
from xalign.metrics.answers import F1, Containment, ExactMatch
from xalign.metrics.base import Score
from xalign.metrics.offtarget import OffTarget
from xalign.tasks.base import ENCODER_SECONDS, Evaluation, Request, Task, example_rows, generate_all, records_of, tasks_of
from xalign.tasks.learned import learned_inputs
from xalign.tasks.ranking import Question, add_chance, add_majority, add_ranking, most_common, rank_options
from xalign.tasks.texts import add_off_target, add_translation, learned_params, tokenizers, translation_metrics

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.data.lab import ChoiceItem


@dataclass(frozen=True)
class LabTask(Task):
    """Sizes of the laboratory's tests; see the YAML. An encoder generates nothing: it gets multiple choice and terms."""

    name: ClassVar[str] = "lab"
    title: ClassVar[str] = "the laboratory"

    choice_items: int = within(0, low=0)
    terms: Any = "auto"
    open_items: int = within(60, low=0)
    phrases: int = within(40, low=0)
    sentences: int = within(30, low=0)
    answer_tokens: int = within(24, low=1)
    max_new_tokens: int = within(40, low=1)
    shots: int = within(3, low=0, high=8)
    scores: list[str] = choices(("raw", "pmi"), "raw", "tokens", "bytes", "pmi")

    def check(self, path: str) -> None:
        super().check(path)
        whole(self.terms, f"{path}.terms", 0, 100_000, f"there are {TEST_TERMS}, a larger number takes them all")

    def _terms(self, kind: str) -> int:
        """How many terms a backbone of this kind classifies."""
        if self.terms == "auto":
            return TEST_TERMS if kind == "encoder" else 0
        return min(self.terms, TEST_TERMS)

    def metric_names(self) -> list[str]:
        return []

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        from xalign.data.lab.facts import versions

        own = asdict(self) | {"terms": self._terms(run.backbone.kind), "pmi": "pmi" in self.scores}
        del own["scores"]
        if run.backbone.kind == "encoder":
            own = {k: own[k] for k in ("choice_items", "terms", "pmi")}
        elif lang == run.source:  # translation belongs to the target's evaluation
            own = {k: v for k, v in own.items() if k not in ("phrases", "sentences")}
        if not own["terms"]:
            del own["terms"]
        return {"name": "lab", "data": versions(), "source": run.source, **own}

    def scoring(self, run: Run, lang: str) -> dict[str, Any]:
        return {"scores": list(self.scores), **learned_params(run), **tokenizers(run, (run.source, lang))}

    def inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        from xalign.assets import home_assistant_stage

        translates = self.sentences and lang != run.source and run.backbone.kind != "encoder"
        return (home_assistant_stage(),) if translates else ()

    def score_inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        return learned_inputs(run.metric)

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        items = (self.choice_items or 405) + self._terms(run.backbone.kind)
        if run.backbone.kind == "encoder":
            return 4 + ENCODER_SECONDS * items
        translated = 0 if lang == run.source else 2 * (self.phrases + self.sentences)
        tokens = 0.6 if lang == "eng" else 1.0 if LANGUAGES[lang].script == "Latn" else 1.7  # a text's, relative to Finnish
        return 4 + tokens * (items * (0.08 if baselines else 0.035) + 0.12 * (self.open_items + translated))

    def predict(self, ev: Evaluation) -> None:
        from xalign.data.lab import choice_items, term_items, train_shots

        pmi = "pmi" in self.scores
        questions = _questions(choice_items(ev.lang, ev.source, self.choice_items))
        rank_options(ev, questions, ev.journal("choice"), pmi, f"multiple choice {ev.lang}")
        if ev.baselines and self.shots and ev.kind != "encoder":
            rank_options(ev, questions, ev.journal("choice-shots"), pmi, f"multiple choice {ev.lang}, {self.shots}-shot",
                         shots=lambda kind: train_shots(ev.lang, kind, self.shots))
        if terms := self._terms(ev.kind):
            rank_options(ev, _questions(term_items(ev.lang, ev.source, terms)), ev.journal("terms"), pmi, f"terms {ev.lang}",
                         task_name="term", categories=CATEGORIES)
        if ev.kind != "encoder":
            generate_all(ev, [*_open(self, ev), *_translation(self, ev)], f"open answers and translations {ev.lang}")

    def score(self, ev: Evaluation) -> None:
        target = ev.lang != ev.source
        records = records_of(ev, "choice")
        add_ranking(ev, "choice", records, self.scores, differs=target, kinds=True)
        ev.facts["choice"] = len(records)
        if ev.baselines:
            add_chance(ev, "choice", records, self.scores)
            add_majority(ev, "choice", records, self.scores, "most frequent right answer of the relation", lambda r: r["kind"])
            if few := records_of(ev, "choice-shots"):
                add_ranking(ev, "choice", few, self.scores, f"{self.shots}-shot", self.shots, differs=target)
        if terms := records_of(ev, "terms"):
            add_ranking(ev, "terms", terms, self.scores, differs=target, kinds=True)
            ev.facts["terms"] = len(terms)
            if ev.baselines:
                add_chance(ev, "terms", terms, self.scores)
                add_majority(ev, "terms", terms, self.scores, "most frequent category")
        if ev.kind == "encoder":
            metric = OffTarget()
            ev.add("all", metric.name, Score(None, None, 0, metric.signature, "an encoder generates nothing"))
            return
        answers, translated = records_of(ev, "open"), [*records_of(ev, "phrases"), *records_of(ev, "sentences")]
        _add_open(ev, answers)
        for name in tasks_of(ev, translated):
            add_translation(ev, name, [r for r in translated if r["task"] == name])
        if target and self.sentences and not records_of(ev, "sentences"):
            for a, b in ((ev.source, ev.lang), (ev.lang, ev.source)):
                for metric in translation_metrics(ev, b):
                    ev.add(f"sentences:{a}-{b}", metric.name,
                           Score(None, None, 0, metric.signature, f"the sentence corpus has no {ev.source}-{ev.lang} test pair"))
        add_off_target(ev, "all", [*answers, *translated])


def _questions(items: Sequence[ChoiceItem]) -> list[Question]:
    return [Question(i.id, i.kind, i.entity, i.question, i.options, i.gold, i.neutral, i.differs) for i in items]


def _open(task: LabTask, ev: Evaluation) -> list[Request]:
    from xalign.data.lab import open_items

    journal = ev.journal("open")
    items = open_items(ev.lang, ev.source, task.open_items) if task.open_items else []
    tokens = min(task.answer_tokens, task.max_new_tokens)
    return [Request(journal, i.id, i.question, tokens, {"task": "open", "lang": ev.lang, "kind": i.kind, "cluster": i.entity,
                                                        "references": list(i.answers), "text": i.source_answer}, task_name="open")
            for i in items]


def _add_open(ev: Evaluation, records: Sequence[dict[str, Any]]) -> None:
    ev.facts["open"] = len(records)
    if not records:
        return
    clusters, answers = [r["cluster"] for r in records], [r["references"] for r in records]
    common = most_common((r["kind"], r["references"][0]) for r in records)
    baselines = {"majority": [common[r["kind"]] for r in records]}
    if ev.lang != ev.source:
        baselines["copy"] = [r["text"] for r in records]
    for metric in (ExactMatch(), ExactMatch(cased=True), F1(ev.lang), Containment()):
        values = metric.per_example([r["prediction"] for r in records], answers)
        ev.add("open", metric.name, metric.aggregate(values, clusters), examples=example_rows(records, values))
        for name, texts in baselines.items() if ev.baselines else ():
            ev.add("open", metric.name, metric.aggregate(metric.per_example(texts, answers), clusters), name)


def _translation(task: LabTask, ev: Evaluation) -> list[Request]:
    """Phrases and sentences from and into the source language."""
    from xalign.data.lab import phrases, sentences

    if ev.lang == ev.source:
        return []
    sets = {"phrases": phrases(ev.source, ev.lang, "test", task.phrases, 0) if task.phrases else []}
    if task.sentences:
        found = sentences(ev.inputs[0].path, ev.source, ev.lang, "test")
        sets["sentences"] = sorted(found, key=lambda p: hashlib.sha256(p.id.encode()).digest())[:task.sentences]
    out = []
    for name, pairs in sets.items():
        journal = ev.journal(name)
        for a, b in ((ev.source, ev.lang), (ev.lang, ev.source)):
            for p in pairs:
                text, right = (p.src, p.tgt) if a == ev.source else (p.tgt, p.src)
                fields = {"task": f"{name}:{a}-{b}", "lang": b, "kind": p.kind, "cluster": p.id, "references": [right], "text": text}
                tokens = task.max_new_tokens if name == "sentences" else min(task.answer_tokens, task.max_new_tokens)
                out.append(Request(journal, f"{p.id}:{a}-{b}", translation_prompt(text, a, b), tokens, fields, task_name="translation"))
    return out
