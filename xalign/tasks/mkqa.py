"""MKQA from its official file: questions that people asked a search engine, answered from memory in 18 of our languages."""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import XalignError, choice
from xalign.data.reading import ident_of, numbered
from xalign.languages import LANGUAGES
from xalign.metrics.answers import normalise
from xalign.metrics.base import Metric, Score
from xalign.metrics.qa import AnswerEM, AnswerF1, BestF1, mkqa
from xalign.tasks.base import Evaluation, example_rows
from xalign.tasks.files import HubFile, text_of
from xalign.tasks.qa import AnswerTask, ask
from xalign.tasks.textfiles import TextItem
from xalign.tasks.wording import words
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.config import Run

CODES = {"nob": "no", "zho": "zh_cn"}  # codes of the file that are not ISO 639-1
TYPES = ("entity", "long_answer", "unanswerable", "date", "number", "number_with_unit", "short_phrase", "binary")  # the hub's order
NAMES = ("mkqa.jsonl.gz", "mkqa.jsonl", "dataset/mkqa.jsonl.gz")


@dataclass(frozen=True)
class MkqaTask(AnswerTask):
    """MKQA, 10,000 questions, about 6,750 of them with an answer. Source: Longpre et al. 2021 and apple/ml-mkqa, mkqa_eval.py.

    ``em`` and ``f1`` are over the questions with an answer; ``f1_best`` is over all, at the best threshold.
    A question is unanswerable when the empty text is its only right answer: unanswerable ones and those with a long answer.

    Attributes:
        questions: ``all``, or only the ``answerable`` ones: a third of the time saved, and no ``f1_best``.
    """

    name: ClassVar[str] = "mkqa"
    title: ClassVar[str] = "MKQA"
    origin: ClassVar[str] = "github.com/apple/ml-mkqa"
    languages: ClassVar[tuple[str, ...]] = ("ara", "dan", "deu", "eng", "spa", "fin", "fra", "hun", "jpn", "khm", "kor", "nob", "pol",
                                            "por", "tha", "tur", "vie", "zho")
    keys: ClassVar[tuple[str, ...]] = ("closed", "question", "answer")
    items: ClassVar[int] = 10_000
    item_seconds: ClassVar[float] = 0.3

    questions: str = choice("all", "all", "answerable")

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        return {"test": NAMES}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        return [HubFile("mkqa.jsonl", "apple/mkqa", "mkqa", "train", write_rows)]

    def lacks(self, run: Run, lang: str) -> str:
        return super().lacks(run, lang) if lang in self.languages else \
            f"task.mkqa: MKQA has no {LANGUAGES[lang].name} ({lang}); it has {' '.join(self.languages)}"

    def metric_names(self) -> list[str]:
        return ["em", "f1", "f1_best", *(["mrr_tokens"] if self.distractors else []), "off_target"]

    def read(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        """Solved examples are the first questions with an answer, which are then not asked."""
        told_in, path = self.told_in(lang, source), self.paths(folder, lang, source)["test"]
        items = [TextItem(f"mkqa/{code}", code, ask(told_in, "closed", lang, [("question", query)]), lang, answers,
                          fields={"told_in": told_in, "question": query, "number": n})
                 for n, (code, query, answers) in enumerate(read_mkqa(path, CODES.get(lang, LANGUAGES[lang].iso1)), 1)]
        answerable = [i for i in items if any(i.references)]
        solved = answerable[:self.shots]
        taken = {i.id for i in solved}
        return solved, [i for i in (items if self.questions == "all" else answerable) if i.id not in taken]

    def metrics(self, part: str, lang: str, ev: Evaluation) -> Sequence[Metric]:
        return [AnswerEM(mkqa(lang)), AnswerF1(mkqa(lang))]

    def score_part(self, ev: Evaluation, task: str, records: Sequence[dict[str, Any]]) -> None:
        """Beside the best threshold's F1 that of saying nothing: the share of unanswerable questions, and no model's is lower."""
        # the best threshold goes through the file from its beginning
        records = [{**r, "prediction": binary(r["prediction"], r["lang"])} for r in sorted(records, key=lambda r: r["number"])]
        super().score_part(ev, task, records)
        metric = BestF1(mkqa(ev.lang))
        if self.questions == "answerable":
            ev.add(task, metric.name, Score(None, None, 0, metric.signature, "task.mkqa.questions=answerable: it needs all questions"))
            return
        references = [r["references"] for r in records]
        values = metric.per_example([r["prediction"] for r in records], references)
        ev.add(task, metric.name, self.signed(metric.aggregate(values)), examples=example_rows(records, values))
        if ev.baselines:
            ev.add(task, metric.name, metric.score([""] * len(records), references), "no-answer")


def binary(text: str, lang: str) -> str:
    """``yes`` or ``no`` for an answer that says just that in `lang` or in English, else the answer.

    The right answers of yes-no questions are these two words in every language of the file.
    """
    block, said = words(lang), normalise(text)
    for word in ("yes", "no"):
        if said in [word, *(normalise(w) for w in (block[word], *block[f"{word}_also"]))]:
            return word
    return text


def read_mkqa(path: Path, code: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(id, query, right answers) of every question, in the file's language `code`; an empty right answer: there is none.

    Raises:
        XalignError: for a line without a query or an answer in that language, or with an id a second time, naming file and line.
    """
    seen: set[str] = set()
    for number, row in numbered(path, "use MKQA's official file"):
        where = f"{path}:{number}"
        queries, answers = row.get("queries"), row.get("answers")
        if not isinstance(queries, dict) or not isinstance(answers, dict):
            raise XalignError(f"{where}: has no 'queries' or no 'answers' by language; use MKQA's official file")
        query = text_of(queries, code, f"{where}: queries", "MKQA")
        given = answers.get(code)
        if not isinstance(given, list) or not given:
            raise XalignError(f"{where}: answers: '{code}' is missing or empty; use MKQA's official file")
        right: list[str] = []
        for answer in given:
            if not isinstance(answer, dict) or answer.get("type") not in TYPES:
                found = answer.get("type") if isinstance(answer, dict) else answer
                raise XalignError(f"{where}: answers.{code}: type={shown(found)}: must be one of {', '.join(TYPES)}; "
                                  "use MKQA's official file")
            aliases = answer.get("aliases") or []
            own = [answer.get("text") or "", *(aliases if isinstance(aliases, list) else [0])]
            if not all(isinstance(text, str) for text in own):
                raise XalignError(f"{where}: answers.{code}: needs a text, and a list of texts as aliases; use MKQA's official file")
            right += own
        ident = ident_of(row, "example_id", None, where)
        if ident in seen:
            raise XalignError(f"{where}: example_id={shown(ident)}: is here a second time; use MKQA's official file")
        seen.add(ident)
        yield ident, query, tuple(dict.fromkeys(right))


def write_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """The hub's rows in the official file's shape: answer types by name, nothing for what an answer does not have."""
    lines = []
    for row in rows:
        answers = {lang: [{"type": a["type"] if isinstance(a["type"], str) else TYPES[a["type"]], "text": a["text"],
                           **({"aliases": list(a["aliases"])} if a["aliases"] else {}), **({"entity": a["entity"]} if a["entity"] else {})}
                          for a in given] for lang, given in row["answers"].items()}
        lines.append(json.dumps({"query": row["query"], "answers": answers, "queries": dict(row["queries"]),
                                 "example_id": row["example_id"]}, ensure_ascii=False) + "\n")
    return "".join(lines)
