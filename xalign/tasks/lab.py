"""The laboratory's tests on entities that training never saw: multiple choice, terms, open answers, translation, language."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from xalign.cache import Stage
from xalign.config import choices, within
from xalign.data.instructions import translation_prompt
from xalign.data.lab.categories import CATEGORIES, TEST_TERMS
from xalign.data.lab.node import whole
from xalign.languages import LANGUAGES
from xalign.metrics.answers import F1, Containment, ExactMatch
from xalign.metrics.base import Metric, Score
from xalign.metrics.offtarget import OffTarget
from xalign.metrics.translation import BLEU, ChrF
from xalign.tasks.base import ENCODER_SECONDS, Evaluation, Request, Task, example_rows, generate_all
from xalign.tasks.ranking import Question, add_chance, add_majority, add_ranking, most_common, rank_options

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.data.lab import ChoiceItem


@dataclass(frozen=True)
class LabTask(Task):
    """Sizes of the laboratory's tests; see the YAML. An encoder generates nothing: it gets multiple choice and terms."""

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

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        from xalign.data.lab.facts import versions

        own = asdict(self) | {"terms": self._terms(run.backbone.kind)}
        if run.backbone.kind == "encoder":
            own = {k: own[k] for k in ("choice_items", "terms", "scores")}
        elif lang == run.source:  # translation belongs to the target's evaluation
            own = {k: v for k, v in own.items() if k not in ("phrases", "sentences")}
        if not own["terms"]:
            del own["terms"]
        return {"name": "lab", "data": versions(), "source": run.source, **own}

    def inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        from xalign.assets import home_assistant_stage

        translates = self.sentences and lang != run.source and run.backbone.kind != "encoder"
        return (home_assistant_stage(),) if translates else ()

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        items = (self.choice_items or 405) + self._terms(run.backbone.kind)
        if run.backbone.kind == "encoder":
            return 4 + ENCODER_SECONDS * items
        translated = 0 if lang == run.source else 2 * (self.phrases + self.sentences)
        tokens = 0.6 if lang == "eng" else 1.0 if LANGUAGES[lang].script == "Latn" else 1.7  # a text's, relative to Finnish
        return 4 + tokens * (items * (0.08 if baselines else 0.035) + 0.12 * (self.open_items + translated))

    def evaluate(self, ev: Evaluation) -> None:
        _choice(self, ev)
        if self._terms(ev.kind):
            _classify(self, ev)
        if ev.kind == "encoder":
            metric = OffTarget()
            ev.add("all", metric.name, Score(None, None, 0, metric.signature, "an encoder generates nothing"))
            return
        generated = [*_open(self, ev), *_translation(self, ev)]
        generate_all(ev, [r for r, _ in generated], f"open answers and translations {ev.lang}")
        _add_open(ev, [r for r, _ in generated if r.fields["task"] == "open"])
        for name in dict.fromkeys(r.fields["task"] for r, _ in generated):
            if name != "open":
                _add_translation(ev, name, [r for r, _ in generated if r.fields["task"] == name])
        _add_off_target(ev, generated)


def _questions(items: Sequence[ChoiceItem]) -> list[Question]:
    return [Question(i.id, i.kind, i.entity, i.question, i.options, i.gold, i.neutral, i.differs) for i in items]


def _choice(task: LabTask, ev: Evaluation) -> None:
    from xalign.data.lab import choice_items, train_shots

    questions = _questions(choice_items(ev.lang, ev.source, task.choice_items))
    target = ev.lang != ev.source
    records = rank_options(ev, questions, ev.journal("choice"), task.scores, f"multiple choice {ev.lang}")
    add_ranking(ev, "choice", records, task.scores, differs=target, kinds=True)
    ev.facts["choice"] = len(records)
    if not ev.baselines:
        return
    add_chance(ev, "choice", records, task.scores)
    add_majority(ev, "choice", records, task.scores, "most frequent right answer of the relation", lambda r: r["kind"])
    if task.shots and ev.kind != "encoder":
        name = f"{task.shots}-shot"
        few = rank_options(ev, questions, ev.journal("choice-shots"), task.scores, f"multiple choice {ev.lang}, {name}",
                           shots=lambda kind: train_shots(ev.lang, kind, task.shots))
        add_ranking(ev, "choice", few, task.scores, name, task.shots, differs=target)


def _classify(task: LabTask, ev: Evaluation) -> None:
    from xalign.data.lab import term_items

    questions = _questions(term_items(ev.lang, ev.source, task._terms(ev.kind)))
    records = rank_options(ev, questions, ev.journal("terms"), task.scores, f"terms {ev.lang}", task_name="term", categories=CATEGORIES)
    add_ranking(ev, "terms", records, task.scores, differs=ev.lang != ev.source, kinds=True)
    ev.facts["terms"] = len(records)
    if ev.baselines:
        add_chance(ev, "terms", records, task.scores)
        add_majority(ev, "terms", records, task.scores, "most frequent category")


def _answer_metrics(lang: str) -> list[Metric]:
    return [ExactMatch(), ExactMatch(cased=True), F1(lang), Containment()]


def _rater(metrics: Sequence[Metric], right: Any, lang: str) -> Callable[[str], dict[str, float | None]]:
    """text → its score under each metric, and whether it is in the wrong language."""
    def rate(text: str) -> dict[str, float | None]:
        found = {m.name: m.per_example([text], [right])[0] for m in metrics}
        return found | {"off_target": OffTarget().per_example([text], [lang])[0]}

    return rate


def _open(task: LabTask, ev: Evaluation) -> list[tuple[Request, str]]:
    """Open questions, each with the language its answer should be in."""
    from xalign.data.lab import open_items

    journal, metrics = ev.journal("open"), _answer_metrics(ev.lang)
    items = open_items(ev.lang, ev.source, task.open_items) if task.open_items else []
    tokens = min(task.answer_tokens, task.max_new_tokens)

    def request(i: Any) -> Request:
        fields = {"task": "open", "kind": i.kind, "cluster": i.entity, "answers": list(i.answers),
                  "source_answer": i.source_answer}
        return Request(journal, i.id, i.question, tokens, fields, _rater(metrics, i.answers, ev.lang), "open")

    return [(request(i), ev.lang) for i in items]


def _add_open(ev: Evaluation, requests: Sequence[Request]) -> None:
    records = [r.journal.done[r.id] for r in requests]
    ev.facts["open"] = len(records)
    if not records:
        return
    clusters, answers = [r["cluster"] for r in records], [r["answers"] for r in records]
    common = most_common((r["kind"], r["answers"][0]) for r in records)
    baselines = {"majority": [common[r["kind"]] for r in records]}
    if ev.lang != ev.source:
        baselines["copy"] = [r["source_answer"] for r in records]
    for metric in _answer_metrics(ev.lang):
        values = [r["scores"][metric.name] for r in records]
        ev.add("open", metric.name, metric.aggregate(values, clusters),
               examples=example_rows(records, values))
        for name, texts in baselines.items() if ev.baselines else ():
            ev.add("open", metric.name, metric.aggregate(metric.per_example(texts, answers), clusters), name)


def _translation(task: LabTask, ev: Evaluation) -> list[tuple[Request, str]]:
    """Phrases and sentences from and into the source language, each with the language it should come out in."""
    from xalign.data.lab import phrases, sentences

    if ev.lang == ev.source:
        return []
    sets = {"phrases": phrases(ev.source, ev.lang, "test", task.phrases, 0) if task.phrases else []}
    if task.sentences:
        found = sentences(ev.inputs[0].path, ev.source, ev.lang, "test")
        sets["sentences"] = sorted(found, key=lambda p: hashlib.sha256(p.id.encode()).digest())[:task.sentences]
        if not found:
            for a, b in ((ev.source, ev.lang), (ev.lang, ev.source)):
                for metric in (BLEU(b), ChrF(b)):
                    ev.add(f"sentences:{a}-{b}", metric.name,
                           Score(None, None, 0, metric.signature, f"the sentence corpus has no {ev.source}-{ev.lang} test pair"))
    out = []
    for name, pairs in sets.items():
        journal = ev.journal(name)
        for a, b in ((ev.source, ev.lang), (ev.lang, ev.source)):
            metrics = [BLEU(b), ChrF(b)]
            for p in pairs:
                text, right = (p.src, p.tgt) if a == ev.source else (p.tgt, p.src)
                fields = {"task": f"{name}:{a}-{b}", "kind": p.kind, "cluster": p.id, "text": text, "reference": right}
                tokens = task.max_new_tokens if name == "sentences" else min(task.answer_tokens, task.max_new_tokens)
                out.append((Request(journal, f"{p.id}:{a}-{b}", translation_prompt(text, a, b), tokens, fields,
                                    _rater(metrics, right, b), "translation"), b))
    return out


def _add_translation(ev: Evaluation, name: str, requests: Sequence[Request]) -> None:
    records = [r.journal.done[r.id] for r in requests]
    ev.facts[name] = len(records)
    into = name.rsplit("-", 1)[1]
    references = [r["reference"] for r in records]
    for metric in (BLEU(into), ChrF(into)):
        ev.add(name, metric.name, metric.score([r["prediction"] for r in records], references),
               examples=example_rows(records, [r["scores"][metric.name] for r in records]))
        if ev.baselines:
            ev.add(name, metric.name, metric.score([r["text"] for r in records], references), "copy")


def _add_off_target(ev: Evaluation, generated: Sequence[tuple[Request, str]]) -> None:
    """Over everything generated; beside it the same rate of the references, which the detector gets wrong."""
    metric = OffTarget()
    records = [(r.journal.done[r.id], lang) for r, lang in generated]
    values = [r["scores"]["off_target"] for r, _ in records]
    ev.add("all", metric.name, metric.aggregate(values), examples=example_rows([r for r, _ in records], values))
    if ev.baselines and records:
        right = [r["reference"] if "reference" in r else r["answers"][0] for r, _ in records]
        ev.add("all", metric.name, metric.score(right, [lang for _, lang in records]), "reference")
