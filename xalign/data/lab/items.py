"""The laboratory's items: multiple choice and open questions about held-out territories, and what training offers to choose from."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from xalign.config import XalignError
from xalign.data.lab.facts import KINDS, Fact, chance, facts, fold, name
from xalign.data.lab.templates import TRAIN_TEMPLATES, neutral, question, spellings
from xalign.languages import LANGUAGES

OPTIONS = 4


@dataclass(frozen=True)
class ChoiceItem:
    """A question with four options; id, options and gold position are the same in every language.

    Attributes:
        id: the fact's or term's id; kind: its relation or category; entity: the cluster of paired tests, for a fact its territory.
        gold: index of the right option. neutral: the question without its entity, for PMI.
        differs: the right answer is spelled otherwise than in the source language.
    """

    id: str
    lang: str
    kind: str
    entity: str
    question: str
    options: tuple[str, ...]
    gold: int
    neutral: str
    differs: bool


@dataclass(frozen=True)
class OpenItem:
    """A question with a short free answer; `answers` are the accepted spellings, CLDR's first."""

    id: str
    lang: str
    kind: str
    entity: str
    question: str
    answers: tuple[str, ...]
    source_answer: str


Dealt = tuple[Fact, tuple[str, ...], int]  # the fact, its options' term ids, the index of the right one


def _deal(own: Sequence[Fact], label: str) -> list[Dealt]:
    """Four options for every fact of one relation, all of them right answers of `own`.

    An answer is a distractor three times as often as it is gold, as far as that is possible, so that
    being frequent among the options says nothing about being right.

    Args:
        label: names the draw; the same facts under another label get other options.
    """
    golds = Counter(f.answer for f in own)
    need = {a: (OPTIONS - 1) * n for a, n in golds.items()}
    left = {a: len(own) - n for a, n in golds.items()}  # items in which it may still be a distractor
    dealt = []
    for index, fact in enumerate(own):
        rng = Random(f"{label} {fact.id}")
        order = sorted((a for a in golds if a != fact.answer), key=lambda a: (-need[a] / max(left[a], 1), rng.random()))
        picked: list[str] = []
        for a in order:
            if len(picked) < OPTIONS - 1 and _distinct([fact.answer, *picked, a]):
                picked.append(a)
        for a in golds:
            if a != fact.answer:
                left[a] -= 1
        for a in picked:
            need[a] -= 1
        rng.shuffle(picked)
        gold = index % OPTIONS
        dealt.append((fact, (*picked[:gold], fact.answer, *picked[gold:]), gold))
    return dealt


@cache
def _dealt() -> tuple[Dealt, ...]:
    """Every test fact with its options, relations interleaved."""
    return tuple(interleave([_deal([f for f in facts() if f.kind == kind and f.split == "test"], "choice") for kind in KINDS]))


@cache
def _train_options() -> dict[tuple[str, str], tuple[str, ...]]:
    """(training fact's id, wording) → term ids of its options, dealt anew for each wording."""
    return {(fact.id, template): options for template in TRAIN_TEMPLATES for kind in KINDS
            for fact, options, _ in _deal([f for f in facts() if f.kind == kind and f.split == "train"], f"train {template}")}


def options_of(example_id: str, lang: str) -> tuple[str, ...]:
    """The options of a training row's id (see `render`) in `lang`: the same terms in the same order in every language.

    ``capital/FI/t1=capital/SE`` has the options of the fact that lends its answer.

    Raises:
        XalignError: if there is no such row.
    """
    if example_id.startswith("term/"):
        from xalign.data.lab.categories import CATEGORIES

        return CATEGORIES
    asked, _, answered = example_id.partition("=")
    fact, _, template = asked.rpartition("/")
    options = _train_options().get((answered or fact, template))
    if options is None:
        raise XalignError(f"{example_id}: the laboratory trains no such question")
    return tuple(name(term, lang) for term in options)


@cache
def _folded(term: str) -> tuple[str, ...]:
    return tuple(fold(name(term, lang)) for lang in LANGUAGES)


def _distinct(terms: list[str]) -> bool:
    return all(len(set(column)) == len(terms) for column in zip(*map(_folded, terms), strict=True))


def interleave(rows: list[list]) -> list:
    """Merge lists so that every prefix holds them in proportion to their length."""
    ranked = [((i + 0.5) / len(row), k, item) for k, row in enumerate(rows) for i, item in enumerate(row)]
    return [item for _, _, item in sorted(ranked, key=lambda r: r[:2])]


def choice_items(lang: str, source: str, limit: int = 0) -> list[ChoiceItem]:
    """The multiple-choice items in `lang`, relations mixed in proportion; `limit` 0 takes all."""
    items = []
    for fact, options, gold in _dealt()[: limit or None]:
        items.append(ChoiceItem(
            fact.id, lang, fact.kind, fact.territory, question(fact.kind, "test", fact.subject, lang),
            tuple(name(term, lang) for term in options), gold, neutral(fact.kind, lang),
            name(fact.answer, lang).casefold() != name(fact.answer, source).casefold()))
    return items


def open_items(lang: str, source: str, limit: int = 0) -> list[OpenItem]:
    """Open questions about test facts, the four relations in turn (so a limit takes equally many of each)."""
    by_kind = [[f for f in facts() if f.kind == kind and f.split == "test"] for kind in KINDS]
    turns = [rows[i] for i in range(max(map(len, by_kind))) for rows in by_kind if i < len(rows)]
    return [OpenItem(f.id, lang, f.kind, f.territory, question(f.kind, "test", f.subject, lang),
                     tuple(spellings(f.answer, lang)), name(f.answer, source)) for f in turns[: limit or None]]


def train_shots(lang: str, kind: str, n: int = 3) -> list[tuple[str, str]]:
    """(question, answer) of `n` training facts with different answers, in the held-out wording of the test."""
    shots: dict[str, tuple[str, str]] = {}
    rows = sorted((f for f in facts() if f.kind == kind and f.split == "train"), key=lambda f: chance("shot", f.id))
    for fact in rows:
        shots.setdefault(fact.answer, (question(kind, "test", fact.subject, lang), name(fact.answer, lang)))
    return list(shots.values())[:n]
