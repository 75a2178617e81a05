"""XGLUE's tagging tasks: NER and POS, by ranking the tags for each word of a sentence, without any training for it."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.languages import LANGUAGES
from xalign.tasks.base import Evaluation, example_rows
from xalign.tasks.choicefiles import ChoiceFileTask, check_places, fill
from xalign.tasks.columns import tagged_sentences
from xalign.tasks.files import cluster_of
from xalign.tasks.ranking import Question, option_scores
from xalign.tasks.xglue import ORIGIN, first_clusters, xglue_files

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.metrics.labels import SeqevalF1

PLACES = ("sentence", "word", "number")
WORDS = 15  # of a sentence, for the estimate


@dataclass(frozen=True)
class TagTask(ChoiceFileTask):
    """Every word a question, whose options are the tags in words; a sentence is one cluster, and ``limit`` counts sentences.

    Class attributes:
        code: the task's folder.
        tags: tag of the file → option; several tags may share one.
    """

    origin: ClassVar[str] = ORIGIN
    majority: ClassVar[str] = "most frequent tag"
    code: ClassVar[str] = ""
    tags: ClassVar[dict[str, str]] = {}

    prompt: str = ""

    def check(self, path: str) -> None:
        super().check(path)
        check_places(self.prompt, PLACES, f"{path}.prompt")

    @property
    def asked(self) -> str:
        return cluster_of(self.prompt)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        return xglue_files(self.code, lang, self.shots)

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        out, space = [], " " if LANGUAGES[lang].spaced else ""
        options = tuple(dict.fromkeys(self.tags.values()))
        neutral = fill(self.prompt, sentence="", word="", number="")
        for s, (words, tags) in enumerate(tagged_sentences(path, tuple(self.tags), self.title), 1):
            for w, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
                text = fill(self.prompt, sentence=space.join(words), word=word, number=str(w))
                out.append(Question(f"{self.name}/{s}.{w}", self.name, f"{self.name}/{s}", text, options, options.index(self.tags[tag]),
                                    neutral, fields={"tag": tag}))
        return out, {}

    def load(self, folder: Path, lang: str, source: str) -> tuple[list[Question], list[Question], dict[str, int]]:
        """As of a `ChoiceFileTask`, but the solved examples have different tags while there are any."""
        _, questions, left_out = super().load(folder, lang, source)
        if not self.shots:
            return [], questions, left_out
        return spread(self.read(self.paths(folder, lang, source)["shots"], lang, source)[0], self.shots), questions, left_out

    def first(self, questions: list[Question]) -> list[Question]:
        """The words of the first sentences."""
        return first_clusters(questions, self.limit)

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        return {**super().recipe(run, lang), "tags": self.tags}

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        return super().seconds(run, lang, baselines) * (WORDS if self.limit else 1)


def spread(questions: list[Question], n: int) -> list[Question]:
    """`n` questions, in the file's order: the first with each answer, then the second with each ..."""
    met: Counter[int] = Counter()
    turns = []
    for i, q in enumerate(questions):
        turns.append((met[q.gold], i))
        met[q.gold] += 1
    return [questions[i] for i in sorted(i for _, i in sorted(turns)[:n])]


def add_tags(ev: Evaluation, task: str, records: list[dict[str, Any]], by: str, metric: SeqevalF1, tag_of: dict[str, str]) -> None:
    """A metric of seqeval over the sentences, each word tagged by the option that ranks first (the first one among equals).

    Args:
        tag_of: option → tag.
    """
    sentences = [list(own) for _, own in groupby(records, key=lambda r: r["cluster"])]

    def tag(r: dict[str, Any]) -> str:
        found = option_scores(r, by)
        return tag_of[r["options"][found.index(max(found))]]

    given, gold = [[tag(r) for r in own] for own in sentences], [[r["tag"] for r in own] for own in sentences]
    rows = metric.statistics(given, gold)
    found = metric.of(rows)
    ev.add(task, f"{metric.name}_{by}", replace(found, signature=f"{found.signature}|tags:ranked-words|options:{by}"),
           examples=example_rows([{"id": own[0]["cluster"], "cluster": own[0]["cluster"]} for own in sentences],
                                 metric.per_example(given, gold), rows))


@dataclass(frozen=True)
class NameTask(TagTask):
    """NER of CoNLL-2002 and 2003: entity F1 by seqeval; beside it accuracy and MRR over words.

    A word is ranked among five kinds of name. Neighbours of one kind are one name, as in the official files, where nearly every tag
    begins with I-.
    """

    name: ClassVar[str] = "xglue_ner"
    title: ClassVar[str] = "XGLUE NER"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "spa")
    items: ClassVar[int] = 50_000
    code: ClassVar[str] = "NER"
    tags: ClassVar[dict[str, str]] = {"O": "no name", **{f"{p}-{kind}": option for kind, option in (
        ("PER", "person"), ("LOC", "place"), ("ORG", "organisation"), ("MISC", "other name")) for p in "BI"}}

    prompt: str = '{sentence}\nWord {number} is "{word}". Is it part of the name of a person, place, organisation, other name or no name?'

    def metric_names(self) -> list[str]:
        return [*super().metric_names(), *(f"seqeval_f1_{by}" for by in self.scores)]

    def add_scores(self, ev: Evaluation, records: list[dict[str, Any]]) -> None:
        from xalign.metrics.labels import SeqevalF1

        super().add_scores(ev, records)
        for by in self.scores:  # the later tag of an option, I-, is the one that continues a name
            add_tags(ev, self.name, records, by, SeqevalF1(), {option: tag for tag, option in self.tags.items()})


@dataclass(frozen=True)
class WordClassTask(TagTask):
    """POS of Universal Dependencies 2.5: accuracy over words, which the paper names; beside it MRR.

    The official script gives seqeval's precision instead, where neighbouring words with one tag are one entity: that row is
    ``seqeval_precision``.
    """

    name: ClassVar[str] = "xglue_pos"
    title: ClassVar[str] = "XGLUE POS"
    languages: ClassVar[tuple[str, ...]] = (
        "eng", "ara", "bul", "deu", "ell", "fra", "hin", "pol", "por", "spa", "tha", "tur", "vie", "zho")
    items: ClassVar[int] = 20_000
    item_seconds: ClassVar[float] = 0.3
    code: ClassVar[str] = "POS"
    tags: ClassVar[dict[str, str]] = {
        "ADJ": "adjective", "ADP": "adposition", "ADV": "adverb", "AUX": "auxiliary", "CCONJ": "coordinating conjunction",
        "DET": "determiner", "INTJ": "interjection", "NOUN": "noun", "NUM": "numeral", "PART": "particle", "PRON": "pronoun",
        "PROPN": "proper noun", "PUNCT": "punctuation", "SCONJ": "subordinating conjunction", "SYM": "symbol", "VERB": "verb", "X": "other"}

    prompt: str = '{sentence}\nWord {number} is "{word}". What is its part of speech?'

    def metric_names(self) -> list[str]:
        return [*super().metric_names(), *(f"seqeval_precision_{by}" for by in self.scores)]

    def add_scores(self, ev: Evaluation, records: list[dict[str, Any]]) -> None:
        from xalign.metrics.labels import SeqevalPrecision

        super().add_scores(ev, records)
        for by in self.scores:
            add_tags(ev, self.name, records, by, SeqevalPrecision(), {option: tag for tag, option in self.tags.items()})
