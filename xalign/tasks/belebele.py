"""BELEBELE from its official release files: reading comprehension, four options, ranked by log-likelihood."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import file_sha256
from xalign.config import ConfigError, XalignError, choice, choices, within
from xalign.data.examples import read_jsonl
from xalign.languages import LANGUAGES
from xalign.tasks.base import Evaluation, Question, Task, add_chance, add_ranking, rank_options

if TYPE_CHECKING:
    from xalign.config import Run

TEXTS = ("flores_passage", "question", "mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4")
NEUTRAL = "Answer:"


@dataclass(frozen=True)
class BelebeleTask(Task):
    """Where the files are and how the questions are put; see the YAML."""

    path: str = ""
    limit: int = within(0, low=0)
    prompt: str = choice("template", "template", "plain")
    scores: list[str] = choices(("raw", "pmi"), "raw", "tokens", "bytes", "pmi")

    def _file(self, lang: str) -> Path:
        return Path(self.path).expanduser() / f"{LANGUAGES[lang].flores}.jsonl"

    def check_run(self, run: Run) -> None:
        """Raise for a missing folder, language file or unusable line, before anything is computed."""
        if not self.path:
            raise ConfigError("task.path: is empty; name the folder with BELEBELE's official files (eng_Latn.jsonl ...)")
        for lang in (*run.lang, run.source):
            file = self._file(lang)
            if not file.is_file():
                raise ConfigError(f"task.path={self.path}: has no {file.name} for {lang}; put BELEBELE's official file there")
            read_questions(file, 0, self.prompt)

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        own = {k: v for k, v in asdict(self).items() if k != "path"}
        return {"name": "belebele", "file": file_sha256(self._file(lang)), **own}

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        return 5 + 0.35 * (self.limit or 900)

    def evaluate(self, ev: Evaluation) -> None:
        questions = read_questions(self._file(ev.lang), self.limit, self.prompt)
        records = rank_options(ev, questions, ev.journal("belebele"), self.scores, f"belebele {ev.lang}",
                               raw_text=self.prompt == "plain")
        add_ranking(ev, "belebele", records, self.scores)
        ev.facts["belebele"] = len(records)
        if ev.baselines:
            add_chance(ev, "belebele", records, self.scores)


def read_questions(path: Path, limit: int, prompt: str) -> list[Question]:
    """The file's questions (the first `limit`; 0: all); several on one passage are one cluster.

    Args:
        prompt: ``plain`` is ``P: passage, Q: question, Answer:`` as literal text, ``template`` the passage
            and the question as an instruction.
    Raises:
        XalignError: for a line without a text or with an impossible answer number, naming file and line.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as f:
        numbers = [number for number, line in enumerate(f, 1) if line.strip()]
    out: list[Question] = []
    for number, row in zip(numbers, read_jsonl(path), strict=True):
        for key in TEXTS:
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise XalignError(f"{path}:{number}: '{key}' is missing or empty; use BELEBELE's official file")
        if str(row.get("correct_answer_num")) not in ("1", "2", "3", "4"):
            raise XalignError(f"{path}:{number}: correct_answer_num={row.get('correct_answer_num')}: must be 1, 2, 3 or 4")
        passage, question = row["flores_passage"], row["question"]
        text = f"P: {passage}\nQ: {question}\nAnswer:" if prompt == "plain" else f"{passage}\n\n{question}"
        options = tuple(row[f"mc_answer{k}"].strip() for k in range(1, 5))
        cluster, gold = sha256(passage.encode()).hexdigest()[:12], int(row["correct_answer_num"]) - 1
        out.append(Question(f"belebele/{number}", "belebele", cluster, text, options, gold, NEUTRAL))
    return out[:limit] if limit else out
