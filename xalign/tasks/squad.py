"""XQuAD and MLQA from their official files, which have the form of SQuAD 1.1: a short answer to a question on a passage."""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import ConfigError, XalignError, nearest
from xalign.data.reading import parse_json, text_of_file
from xalign.languages import LANGUAGES
from xalign.metrics.answers import Containment
from xalign.metrics.base import Metric
from xalign.metrics.qa import AnswerEM, AnswerF1, mlqa, squad
from xalign.tasks.base import Evaluation
from xalign.tasks.files import HubFile, cluster_of, text_of
from xalign.tasks.qa import AnswerTask, ask
from xalign.tasks.textfiles import TextItem
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class SquadTask(AnswerTask):
    """Questions on passages; the answer is a span of the passage, and in the passage's language."""

    keys: ClassVar[tuple[str, ...]] = ("qa", "context", "question", "answer")
    item_seconds: ClassVar[float] = 1.0

    def context_of(self, lang: str, source: str) -> str:
        """ISO 639-3 language of the passages."""
        return lang

    def read(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        paths = self.paths(folder, lang, source)
        return self._items(paths["shots"], lang, source, "dev-") if "shots" in paths else [], self._items(paths["test"], lang, source)

    def _items(self, path: Path, lang: str, source: str, prefix: str = "") -> list[TextItem]:
        told_in, context = self.told_in(lang, source), self.context_of(lang, source)
        return [TextItem(f"{self.name}/{prefix}{code}", cluster_of(passage),
                         ask(told_in, "qa", context, [("context", passage), ("question", question)]), context, answers, passage,
                         "" if context == lang else f"context-{context}", {"told_in": told_in, "question": question})
                for code, passage, question, answers in read_squad(path, self.title)]


@dataclass(frozen=True)
class XQuadTask(SquadTask):
    """XQuAD: 240 passages of SQuAD's dev set, translated. Scored by SQuAD 1.1's script. Source: Artetxe et al. 2020."""

    name: ClassVar[str] = "xquad"
    title: ClassVar[str] = "XQuAD"
    origin: ClassVar[str] = "github.com/google-deepmind/xquad"
    languages: ClassVar[tuple[str, ...]] = ("ara", "deu", "ell", "eng", "spa", "hin", "tha", "tur", "vie", "zho")
    items: ClassVar[int] = 1190

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        return {"test": f"xquad.{LANGUAGES[lang].iso1}.json"}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        code = LANGUAGES[lang].iso1
        return [HubFile(f"xquad.{code}.json", "google/xquad", f"xquad.{code}", "validation", write_squad)]

    def metrics(self, part: str, lang: str, ev: Evaluation) -> Sequence[Metric]:
        return [AnswerEM(squad()), AnswerF1(squad()), Containment()]


@dataclass(frozen=True)
class MlqaTask(SquadTask):
    """MLQA, test; solved examples are of dev. Scored by its own script, in the passage's language. Source: Lewis et al. 2020.

    Attributes:
        context: the passages' language: ``same`` as the question's, the run's ``source`` language, or an ISO 639-3 code.
    """

    name: ClassVar[str] = "mlqa"
    title: ClassVar[str] = "MLQA"
    origin: ClassVar[str] = "github.com/facebookresearch/MLQA"
    languages: ClassVar[tuple[str, ...]] = ("ara", "deu", "eng", "spa", "hin", "vie", "zho")
    items: ClassVar[int] = 5300

    context: str = "same"

    def check(self, path: str) -> None:
        super().check(path)
        known = ("same", "source", *self.languages)
        if self.context not in known:
            raise ConfigError(f"{path}.context={self.context}: must be one of {', '.join(known)}{nearest(self.context, known)}")

    def context_of(self, lang: str, source: str) -> str:
        return {"same": lang, "source": source}.get(self.context, self.context)

    def lacks(self, run: Run, lang: str) -> str:
        context = self.context_of(lang, run.source)
        reason = super().lacks(run, lang)
        if (reason or not self.path) and context not in self.languages:
            return f"task.mlqa.context={self.context}: MLQA has no passages in {LANGUAGES[context].name} ({context}); it has " \
                   f"{' '.join(self.languages)}"
        return reason

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        codes = "context-{}-question-{}".format(*(LANGUAGES[x].iso1 for x in (self.context_of(lang, source), lang)))
        names = {"test": f"test/test-{codes}.json", **({"shots": f"dev/dev-{codes}.json"} if self.shots else {})}
        return {role: (name, f"MLQA_V1/{name}") for role, name in names.items()}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        """From XTREME, which has MLQA's files as plain data; MLQA's own repository has code that reads them."""
        config = "MLQA.{}.{}".format(*(LANGUAGES[x].iso1 for x in (self.context_of(lang, source), lang)))
        splits = {"test": "test", "shots": "validation"}
        return [HubFile(names[0], "google/xtreme", config, splits[role], write_squad)
                for role, names in self.files(lang, source).items()]

    def metrics(self, part: str, lang: str, ev: Evaluation) -> Sequence[Metric]:
        return [AnswerEM(mlqa(lang)), AnswerF1(mlqa(lang)), Containment()]


def read_squad(path: Path, title: str) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(id, passage, question, answers) of every question in a file of SQuAD 1.1's form; equal answers once.

    Raises:
        XalignError: for a file that is not JSON, naming the line, and for a passage, question or answer that is missing
            or an id that occurs twice, naming its place.
    """
    remedy = f"use {title}'s official file"
    data = parse_json(text_of_file(path, remedy), lambda n: f"{path}:{n}" if n else str(path), remedy)
    seen: set[str] = set()
    for at, article in _list(data, "data", f"{path}: ", title):
        for place, paragraph in _list(article, "paragraphs", at, title):
            passage = text_of(paragraph, "context", place, title)
            for where, qa in _list(paragraph, "qas", place, title):
                question, code = text_of(qa, "question", where, title), text_of(qa, "id", where, title)
                answers = tuple(dict.fromkeys(text_of(a, "text", spot, title) for spot, a in _list(qa, "answers", where, title)))
                if not answers:
                    raise XalignError(f"{where}: 'answers' is empty; every question of {title} has one: use its official file")
                if code in seen:
                    raise XalignError(f"{where}: id={shown(code)}: occurs a second time; use {title}'s official file")
                seen.add(code)
                yield code, passage, question, answers


def _list(holder: Any, key: str, where: str, title: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its place, item) of each object in the list ``holder[key]``."""
    found = holder.get(key) if isinstance(holder, dict) else None
    where = where if where.endswith(": ") else f"{where}."
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise XalignError(f"{where}{key}: is not a list of objects, as in SQuAD 1.1; use {title}'s official file")
    for n, item in enumerate(found):
        yield f"{where}{key}[{n}]", item


def write_squad(rows: Iterable[Mapping[str, Any]]) -> str:
    """The hub's rows (id, context, question, answers) in the form of SQuAD 1.1; rows on one passage become one paragraph."""
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        answers = [{"text": text, "answer_start": start}
                   for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)]
        paragraphs.setdefault(row["context"], []).append({"id": row["id"], "question": row["question"], "answers": answers})
    data = [{"title": "", "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]}]
    return json.dumps({"version": "1.1", "data": data}, ensure_ascii=False, indent=1) + "\n"
