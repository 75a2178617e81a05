"""XGLUE's classification and ranking tasks from the official files: NC, XNLI, PAWS-X, QADSM, QAM and WPR.

The files are those of xglue_full_dataset in its release with labels for the test (26 November 2020); `xalign.tasks.xglue_tags` has
NER and POS, `xalign.tasks.xglue_texts` QG and NTG. Source: Liang et al. 2020 and xglue_evaluate.py of github.com/microsoft/XGLUE.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import XalignError, within
from xalign.languages import LANGUAGES
from xalign.tasks import xnli
from xalign.tasks.base import Evaluation, example_rows
from xalign.tasks.columns import first_words, rows_of
from xalign.tasks.files import HubFile, cluster_of
from xalign.tasks.pawsx import PawsXTask
from xalign.tasks.ranking import Question, option_scores
from xalign.tasks.worded import WordedChoiceTask
from xalign.tasks.wording import say, words
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.config import Run

ORIGIN = "xglue_full_dataset of microsoft.github.io/XGLUE"
TOPICS = {  # official category → its name in the languages of NC
    "foodanddrink": {"eng": "food and drink", "deu": "Essen und Trinken", "spa": "comida y bebida", "fra": "cuisine et boissons"},
    "sports": {"eng": "sports", "deu": "Sport", "spa": "deportes", "fra": "sport"},
    "news": {"eng": "news", "deu": "Nachrichten", "spa": "noticias", "fra": "actualités"},
    "entertainment": {"eng": "entertainment", "deu": "Unterhaltung", "spa": "entretenimiento", "fra": "divertissement"},
    "health": {"eng": "health", "deu": "Gesundheit", "spa": "salud", "fra": "santé"},
    "video": {"eng": "video", "deu": "Video", "spa": "vídeo", "fra": "vidéo"},
    "finance": {"eng": "finance", "deu": "Finanzen", "spa": "finanzas", "fra": "finance"},
    "travel": {"eng": "travel", "deu": "Reisen", "spa": "viajes", "fra": "voyages"},
    "lifestyle": {"eng": "lifestyle", "deu": "Lebensart", "spa": "estilo de vida", "fra": "art de vivre"},
    "autos": {"eng": "cars", "deu": "Autos", "spa": "coches", "fra": "voitures"},
}


def xglue_files(folder: str, lang: str, shots: int, stem: str = "") -> dict[str, str | tuple[str, ...]]:
    """Role → ``NC/xglue.nc.de.test``: files that have one name in every split."""
    name = f"{folder}/{stem}{LANGUAGES[lang].iso1}"
    return {"test": f"{name}.test", **({"shots": f"{name}.dev"} if shots else {})}


@dataclass(frozen=True)
class XglueTask(WordedChoiceTask):
    """One task whose files have texts and a label, parted by tabs.

    Class attributes:
        code: the task's folder.
        columns: of a line; the last one is the label.
        labels: the official labels, in the order of the options.
    """

    origin: ClassVar[str] = ORIGIN
    majority: ClassVar[str] = "most frequent label"
    items: ClassVar[int] = 10_000
    item_seconds: ClassVar[float] = 0.15
    code: ClassVar[str] = ""
    columns: ClassVar[tuple[str, ...]] = ()
    labels: ClassVar[tuple[str, ...]] = ()

    max_words: int = within(200, low=0)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        return xglue_files(self.code, lang, self.shots, f"xglue.{self.code.lower()}.")

    def ask(self, texts: Sequence[str], lang: str) -> tuple[str, str, tuple[str, ...]]:
        """(the question, the same without its texts, the options), in the words of `lang`."""
        raise NotImplementedError

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        out, told_in = [], self.told_in(lang, source)
        for where, (*texts, label) in rows_of(path, self.columns, self.title):
            if label not in self.labels:
                raise XalignError(f"{where}: {self.columns[-1]} '{shown(label)}': must be one of {', '.join(self.labels)}; "
                                  f"use {self.title}'s official file")
            text, neutral, options = self.ask([first_words(t, self.max_words) for t in texts], told_in)
            out.append(Question(f"{self.name}/{len(out) + 1}", self.name, cluster_of(texts[0]), text, options, self.gold(label), neutral,
                                fields={"label": label}))
        return out, {}

    def gold(self, label: str) -> int:
        """The place of the right option."""
        return self.labels.index(label)


@dataclass(frozen=True)
class NewsTask(XglueTask):
    """NC: which of ten topics is a news article about? Accuracy."""

    name: ClassVar[str] = "xglue_nc"
    title: ClassVar[str] = "XGLUE NC"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra", "spa")
    item_seconds: ClassVar[float] = 0.6
    code: ClassVar[str] = "NC"
    columns: ClassVar[tuple[str, ...]] = ("title", "body", "category")
    labels: ClassVar[tuple[str, ...]] = tuple(TOPICS)
    keys: ClassVar[tuple[str, ...]] = ("title", "article", "topic_question")

    def options(self, lang: str) -> tuple[str, ...]:
        """The topics in the words of `lang`, else in English."""
        return tuple(names.get(lang, names["eng"]) for names in TOPICS.values())

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        return {**super().recipe(run, lang), "options": self.options(self.told_in(lang, run.source))}

    def ask(self, texts: Sequence[str], lang: str) -> tuple[str, str, tuple[str, ...]]:
        options = self.options(lang)
        asked = say(lang, "topic_question", options=", ".join(options))
        return "\n".join([say(lang, "title", text=texts[0]), say(lang, "article", text=texts[1]), asked]), asked, options


@dataclass(frozen=True)
class YesNoTask(XglueTask):
    """Two sides of a pair, and whether they fit: `keys` are those of the first text, of the others together, of the question, no, yes."""

    def ask(self, texts: Sequence[str], lang: str) -> tuple[str, str, tuple[str, ...]]:
        first, second, question, no, yes = self.keys
        asked = say(lang, question)
        text = "\n".join([say(lang, first, text=texts[0]), say(lang, second, text="\n".join(t for t in texts[1:] if t)), asked])
        return text, asked, (words(lang)[no], words(lang)[yes])


@dataclass(frozen=True)
class AdTask(YesNoTask):
    """QADSM: does an advertisement fit a search query? Accuracy."""

    name: ClassVar[str] = "xglue_qadsm"
    title: ClassVar[str] = "XGLUE QADSM"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra")
    code: ClassVar[str] = "QADSM"
    columns: ClassVar[tuple[str, ...]] = ("query", "ad title", "ad description", "relevance label")
    labels: ClassVar[tuple[str, ...]] = ("Bad", "Good")
    keys: ClassVar[tuple[str, ...]] = ("query", "ad", "ad_question", "no", "yes")


@dataclass(frozen=True)
class AnswerTask(YesNoTask):
    """QAM: does a passage answer a question? Accuracy."""

    name: ClassVar[str] = "xglue_qam"
    title: ClassVar[str] = "XGLUE QAM"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra")
    code: ClassVar[str] = "QAM"
    columns: ClassVar[tuple[str, ...]] = ("question", "answer passage", "label")
    labels: ClassVar[tuple[str, ...]] = ("0", "1")
    keys: ClassVar[tuple[str, ...]] = ("question", "context", "passage_question", "no", "yes")


@dataclass(frozen=True)
class PageTask(YesNoTask):
    """WPR: how well does a web page fit a search query? nDCG of each query's pages, ranked by score(yes) - score(no).

    The pages of a query are lines that follow each other, as for the official script.
    """

    name: ClassVar[str] = "xglue_wpr"
    title: ClassVar[str] = "XGLUE WPR"
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra", "por", "spa", "zho")
    code: ClassVar[str] = "WPR"
    columns: ClassVar[tuple[str, ...]] = ("query", "web page title", "web page snippet", "relevance label")
    labels: ClassVar[tuple[str, ...]] = ("0", "1", "2", "3", "4")
    keys: ClassVar[tuple[str, ...]] = ("query", "page", "page_question", "no", "yes")

    def gold(self, label: str) -> int:
        return int(label >= "2")  # for solved examples: Good, Excellent and Perfect pages fit

    def first(self, questions: list[Question]) -> list[Question]:
        """The pages of the first queries."""
        return first_clusters(questions, self.limit)

    def metric_names(self) -> list[str]:
        return [f"ndcg_{by}" for by in self.scores]

    def add_scores(self, ev: Evaluation, records: list[dict[str, Any]]) -> None:
        from xalign.metrics.retrieval import NDCG

        queries = [list(pages) for _, pages in groupby(records, key=lambda r: r["cluster"])]
        ratings = [[float(p["label"]) for p in pages] for pages in queries]
        for by in self.scores:
            metric = NDCG()
            fits = [[yes - no for no, yes in (option_scores(p, by) for p in pages)] for pages in queries]
            signature = f"{metric.signature}|by:score(yes)-score(no)|options:{by}|shots:{self.shots}|prompt:{self.asked}"
            values = metric.per_example(fits, ratings)
            found = metric.aggregate(values, [pages[0]["cluster"] for pages in queries])
            ev.add(self.name, f"ndcg_{by}", replace(found, signature=signature), examples=example_rows([p[0] for p in queries], values))
            if ev.baselines:  # pages that score the same share their ranks' mean, so this is the expected value of any order
                ev.add(self.name, f"ndcg_{by}", metric.score([[0.0] * len(r) for r in ratings], ratings), "chance")


@dataclass(frozen=True)
class XglueXnliTask(xnli.XnliTask):
    """XNLI in XGLUE's files, one a language: premise, hypothesis, label. Accuracy."""

    name: ClassVar[str] = "xglue_xnli"
    title: ClassVar[str] = "XGLUE XNLI"
    origin: ClassVar[str] = ORIGIN

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        return xglue_files("XNLI", lang, self.shots)

    def hub(self, lang: str, source: str) -> list[HubFile]:
        return []

    def read(self, path: Path, lang: str, source: str) -> tuple[list[Question], dict[str, int]]:
        rows, told_in = rows_of(path, ("premise", "hypothesis", "label"), self.title), self.told_in(lang, source)
        return [xnli.question(f"{self.name}/{n}", *row, told_in, where) for n, (where, row) in enumerate(rows, 1)], {}


@dataclass(frozen=True)
class XgluePawsXTask(PawsXTask):
    """PAWS-X in XGLUE's folder: four of its languages. Accuracy; the official script counts untranslated pairs too."""

    name: ClassVar[str] = "xglue_pawsx"
    title: ClassVar[str] = "XGLUE PAWS-X"
    origin: ClassVar[str] = ORIGIN
    languages: ClassVar[tuple[str, ...]] = ("eng", "deu", "fra", "spa")

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        folder = f"PAWSX/{LANGUAGES[lang].iso1}"
        return {"test": f"{folder}/test_2k.tsv", **({"shots": f"{folder}/dev_2k.tsv"} if self.shots else {})}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        return []


def first_clusters(questions: list[Question], limit: int) -> list[Question]:
    """The questions of the first `limit` clusters, all for 0; those of a cluster follow each other."""
    groups = (list(own) for _, own in groupby(questions, key=lambda q: q.cluster))
    return [q for own in islice(groups, limit or None) for q in own]
