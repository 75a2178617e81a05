"""CoIT and MuIT: cross-lingual and multilingual instruction tuning (x-LLM), METHODS.md section 1."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.analysis.allocation import STRATEGIES, Budget, read_given, read_laws
from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, XalignError, choice, choices, within
from xalign.data.examples import Example, read_examples, read_jsonl
from xalign.data.instructions import coit_prompt, translation_rows
from xalign.methods.base import Method
from xalign.methods.prompted import pick
from xalign.methods.supervised import failures, filtered, labelled, translated_rows, write_rows

if TYPE_CHECKING:
    from xalign.config import Run


SUBSETS = ("D", "T", "mt")


@dataclass(frozen=True)
class CoIT(Method):
    """D, its translation, and parallel text as translation instructions.

    Attributes:
        subsets: which parts of the training set are built: D, T (its translation), mt (translation instructions); x-LLM Figure 6.
        direction: the translation instructions have the target language on their target side (from S to L), on their source
            side, or one after the other on both.
    """

    name: ClassVar[str] = "coit"

    subsets: list[str] = choices(SUBSETS, *SUBSETS)
    direction: str = choice("target", "target", "source", "both")

    def check(self, path: str) -> None:
        """Also refuse an empty list of subsets."""
        super().check(path)
        if not self.subsets:
            raise ConfigError(f"{path}.subsets=[]: leaves nothing to train on; name some of {', '.join(SUBSETS)}")

    @property
    def translates(self) -> bool:  # type: ignore[override]
        """See `Method.translates`."""
        return "T" in self.subsets

    def rows(self, run: Run) -> Stage:
        """Subsets D, T (T(x), T(y)) and mt, over all target languages; D once."""
        langs, source, seed, direction, budget = run.lang, run.source, run.seed, self.direction, self.budgeted(run)
        used = [s for s in SUBSETS if s in self.subsets]
        questions = [run.data.questions_stage(run, source)] if {"D", "T"} & set(used) else []
        translated = [filtered(run, questions[0], lang=lang) for lang in langs] if "T" in used else []
        parallel = [run.parallel.stage(run, lang) for lang in langs] if "mt" in used else []

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            left = iter(inputs)
            examples = read_examples(next(left).file("examples.jsonl")) if questions else []
            texts, lost = [], {}
            for lang in langs if translated else ():
                records = list(read_jsonl(next(left).file("examples.jsonl")))
                why = {f"{lang} {reason}": n for reason, n in failures(records).items()}
                texts += translations(examples, records, lang, why)
                lost |= why
            tasks = {lang: instructions(list(read_jsonl(next(left).file("pairs.jsonl"))), source, lang, direction)
                     for lang in (langs if parallel else ())}
            if budget:
                share = budget.allocate({lang: len(rows) for lang, rows in tasks.items()})
                tasks = {lang: pick(rows, share[lang], seed) for lang, rows in tasks.items()}
            rows = (labelled(examples, "D") if "D" in used else []) + texts + [row for part in tasks.values() for row in part]
            facts = {"not translated": lost, "translation instructions": {lang: len(part) for lang, part in tasks.items()}}
            return write_rows(folder, rows, facts, required=used)

        params = {"method": "coit", "source": source, "langs": list(langs), "direction": direction if parallel else None,
                  "budget": {**budget.params(), "seed": seed} if budget else None, **({} if len(used) == 3 else {"subsets": used})}
        return Stage("rows", 1, params, work, inputs=(*questions, *translated, *parallel), seconds=2,
                     label=f"rows {self.name} {source}→{', '.join(langs)}")

    def budgeted(self, run: Run) -> Budget | None:
        """How many translation instructions each language gets; None takes all there are."""
        return None


@dataclass(frozen=True)
class MuIT(CoIT):
    """CoIT's rows for several languages, one model.

    Attributes:
        budget: translation instructions of all languages together; 0 takes all.
        allocation: who gets them: all alike, in proportion to what there is, or as the languages' scaling laws advise.
        allocation_file: a YAML or JSON file {language: rows or share} that says so instead.
        law: for `optimised`: {language: {alpha, beta, gamma}} of S(X) = 100 - alpha (gamma X)^beta, or a YAML or JSON file of that.
    """

    name: ClassVar[str] = "muit"
    many: ClassVar[bool] = True

    budget: int = within(0, low=0)
    allocation: str = choice("uniform", *STRATEGIES)
    allocation_file: str | None = None
    law: Any = None

    def check_run(self, run: Run) -> None:
        """Also refuse an allocation without a budget, and files that do not say what they must."""
        super().check_run(run)
        self.budgeted(run)

    def budgeted(self, run: Run) -> Budget | None:
        """See `CoIT.budgeted`.

        Raises:
            ConfigError: for settings that do not go together, or a file that is missing or wrong.
        """
        if "mt" not in self.subsets and (self.budget or self.allocation_file):
            raise ConfigError(f"method.subsets={list(self.subsets)}: has no translation instructions (mt) that method.budget or "
                              "method.allocation_file could share out; add mt, or leave those out")
        if self.allocation_file:
            if self.allocation != "uniform":
                raise ConfigError(f"method.allocation_file={self.allocation_file}: takes the place of method.allocation="
                                  f"{self.allocation}; leave one of them out")
            return Budget(self.budget, given=read_given(self.allocation_file, "method.allocation_file", run.lang, self.budget))
        if not self.budget:
            if self.allocation != "uniform":
                raise ConfigError(f"method.allocation={self.allocation}: shares out method.budget, and that is 0 (all rows); set "
                                  "method.budget=N")
            return None
        if self.allocation != "optimised":
            return Budget(self.budget, self.allocation)
        if not self.law:
            raise ConfigError("method.allocation=optimised: needs the languages' scaling laws; name their file as method.law=FILE "
                              "(YAML or JSON: {fin: {alpha: 300, beta: -0.3, gamma: 0.5}, ...}), or write them into an experiment's YAML")
        return Budget(self.budget, self.allocation, read_laws(self.law, "method.law", run.lang))


def translations(examples: Sequence[Example], records: Sequence[Mapping[str, Any]], lang: str, why: Mapping[str, int]) -> list[Example]:
    """T of one language, its ids telling the languages apart.

    Raises:
        XalignError: if there is none, saying why.
    """
    rows = translated_rows(examples, records, lang)
    if not rows:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in why.items())
        raise XalignError(f"training rows: no question and answer were translated into {lang} ({reasons or 'no data'}); use another "
                          "translator, loosen filter.*, or leave the language out")
    return [row.with_(id=f"{row.id}/{lang}") for row in rows]


def instructions(pairs: Sequence[Mapping[str, Any]], source: str, lang: str, direction: str) -> list[Example]:
    """Parallel text as translation instructions, each pair with the template of its place."""
    ways = {"target": (False,), "source": (True,), "both": (False, True)}[direction]
    return [row for reverse in ways for row in translation_rows(pairs, source, lang, coit_prompt, reverse)]
