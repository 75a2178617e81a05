"""Open instructions without right answers: MI-Eval's form, and the 80 Vicuna questions in one file a language."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import ConfigError, XalignError, within
from xalign.data.reading import ident_of, numbered
from xalign.languages import LANGUAGES
from xalign.tasks.base import Evaluation, Journal
from xalign.tasks.files import text_of
from xalign.tasks.learned import add_judged, answers
from xalign.tasks.textfiles import TextFileTask, TextItem
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.cache import Stage
    from xalign.config import Run

TITLE = "MI-Eval"
SHARED = "mi_eval.jsonl"  # every language in one file


@dataclass(frozen=True)
class OpenTask(TextFileTask):
    """Instructions answered freely: how many answers are in the wrong language, and which of two models a judge prefers.

    A line is ``{"instruction": ..., "lang": ...}`` with an optional ``id`` that is the same in every language, or Vicuna's
    ``{"question_id": ..., "text": ...}``. Source: x-LLM (Zhu et al. 2023), appendix B; lm-sys/FastChat's question.jsonl.
    """

    name: ClassVar[str] = "mi_eval"
    title: ClassVar[str] = TITLE
    origin: ClassVar[str] = "lines of instruction and lang; Vicuna's questions are in github.com/lm-sys/FastChat"
    one_line: ClassVar[bool] = False
    compares: ClassVar[bool] = True
    items: ClassVar[int] = 80
    item_seconds: ClassVar[float] = 12.0

    max_new_tokens: int = within(512, low=1)

    def check(self, path: str) -> None:
        super().check(path)
        if self.shots:
            raise ConfigError(f"{path}.shots={self.shots}: an open instruction has no right answer to show; use 0")

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        row = LANGUAGES[lang]
        return {"test": (f"questions_{row.name}.jsonl", f"{lang}.jsonl", f"{row.iso1}.jsonl", SHARED)}

    def lacks(self, run: Run, lang: str) -> str:
        reason = super().lacks(run, lang)
        file = self.paths(self.root(), lang, run.source)["test"] if self.path else Path()
        if reason or file.name != SHARED or any(of(row.get("lang")) == lang for _, row in numbered(file)):
            return reason
        return f"task.mi_eval.path={self.path}: {SHARED} has no line in {LANGUAGES[lang].name}"

    def metric_names(self) -> list[str]:
        return ["judge_win_rate", "off_target"]

    def read(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        path = self.paths(folder, lang, source)["test"]
        return [], [TextItem(f"mi_eval/{code}", code, text, lang) for code, text in read_instructions(path, lang)]

    def scoring(self, run: Run, lang: str) -> dict[str, Any]:
        judge = run.metric.judge
        if not judge.url:
            return {"judge": None}
        against = {r["id"]: r["prediction"] for r in answers(Path(judge.against).expanduser(), self.name, lang)} if judge.against else None
        return {"judge": judge.params(against)}

    def score_inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        return ()  # without references nothing is similar to them

    def score_part(self, ev: Evaluation, task: str, records: Sequence[dict[str, Any]]) -> None:
        theirs = list(Journal(ev.opponent / f"predictions.{self.name}.jsonl").done.values()) if ev.opponent else None
        add_judged(ev, task, records, ev.lang, theirs)


def of(name: Any) -> str | None:
    """ISO 639-3 code of the language that a file calls ``zho``, ``zh`` or ``Chinese``; None for any other."""
    return next((code for code, row in LANGUAGES.items() if name in (code, row.iso1, row.name)), None)


def read_instructions(path: Path, lang: str) -> list[tuple[str, str]]:
    """(id, instruction) of every line in `lang`; the id is the line's own, else its place among the lines of the language.

    Raises:
        XalignError: for a line without an instruction or, in the file for every language, without a language, for another
            language in a file of one, and for an id that occurs twice in a language, naming file and line.
    """
    out: list[tuple[str, str]] = []
    seen: set[str] = set()
    for number, row in numbered(path):
        where = f"{path}:{number}"
        text = text_of(row, "text" if "question_id" in row else "instruction", where, TITLE)
        if row.get("input"):
            text += "\n\n" + text_of(row, "input", where, TITLE)
        if path.name == SHARED or "lang" in row:
            if not isinstance(row.get("lang"), str):
                raise XalignError(f"{where}: 'lang' is missing; name the instruction's language (ISO 639-3: {lang})")
            if of(row["lang"]) != lang:
                if path.name != SHARED:
                    raise XalignError(f"{where}: lang={shown(row['lang'])}: is not {LANGUAGES[lang].name}, which this file's name says; "
                                      f"put it into {SHARED}, which takes every language")
                continue
        code = ident_of(row, "question_id" if "question_id" in row else "id", len(out) + 1, where)
        if code in seen:
            raise XalignError(f"{where}: id={shown(code)}: occurs a second time in {LANGUAGES[lang].name}; give each instruction its own")
        seen.add(code)
        out.append((code, text))
    return out
