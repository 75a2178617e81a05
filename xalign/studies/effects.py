"""What leaving out or changing something did to each score: values, paired differences, Holm's correction. No torch."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from xalign.analysis.pooled import compare_over
from xalign.analysis.significance import holm
from xalign.analysis.systems import Outcome
from xalign.config import XalignError
from xalign.languages import LANGUAGES
from xalign.report.contenders import UNTRAINED, Contender, contenders, labelled, scored_runs
from xalign.report.marks import Runs, average, scored
from xalign.report.pivot import Cell, cell_of
from xalign.report.runs import FinishedRun
from xalign.rows import ALPHA, LOWER_IS_BETTER, arrow
from xalign.studies.variants import Variant, named

MEAN = "mean"


@dataclass(frozen=True)
class Score:
    """A task and metric, languages as roles, of the target languages or of the source language."""

    of_source: bool
    task: str
    metric: str

    @property
    def name(self) -> str:
        return f"{'source' if self.of_source else 'target'}/{self.task}/{self.metric}"

    @property
    def lower(self) -> bool:
        return self.metric.startswith(LOWER_IS_BETTER)


@dataclass
class Effect:
    """A variant's score and its difference to the reference's.

    Attributes:
        cell: of each language, and of ``mean`` over those that every variant has.
        against: the reference's label; empty for a reference itself.
        tests: like `cell`: the paired test against the reference; empty where there is none, and `reason` says why.
        adjusted: p of the mean after Holm's correction over the variants of a score; None without a test.
    """

    cell: dict[str, Cell]
    runs: dict[str, Runs]
    against: str = ""
    tests: dict[str, Outcome] = field(default_factory=dict)
    reason: str = ""
    adjusted: float | None = None

    @property
    def outcome(self) -> Outcome | None:
        return self.tests.get(MEAN)

    @property
    def p(self) -> float | None:
        return self.outcome.result.p_randomisation if self.outcome and self.outcome.result else None

    @property
    def uneven(self) -> bool:
        """True if the two were not scored on the same items, as where answers without words have no language."""
        return any(o.result is not None and o.result.n < o.total for o in self.tests.values())

    @property
    def mark(self) -> str:
        return "" if self.p is None or self.adjusted is None else "**" if self.adjusted < ALPHA else "*" if self.p < ALPHA else ""


@dataclass
class Panel:
    """One score of all variants.

    Attributes:
        langs: the target languages of the mean.
        effects: label → its effect; only of variants that have the score.
    """

    score: Score
    langs: list[str]
    source: str
    effects: dict[str, Effect]
    untrained: dict[str, Cell]
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Task and metric; with the languages themselves where they are the same in all variants."""
        tasks = {r["task"] for e in self.effects.values() for runs in e.runs.values() for _, r in runs}
        return f"{arrow(tasks.pop() if len(tasks) == 1 else self.score.task)} {self.score.metric}"

    @property
    def of(self) -> str:
        """Whose language the score is of."""
        if self.score.of_source:
            return named(self.source) if self.source else "source language"
        return named(self.langs[0]) if len(self.langs) == 1 else f"{len(self.langs)} languages"


def untrained_of(runs: Sequence[FinishedRun]) -> list[Contender]:
    """The untrained models of the runs, as rows of a table."""
    keys = [k for k in ("backbone", "source") if len({getattr(r, k) for r in runs}) > 1]
    rows = [c for c in contenders(runs, keys, "lang")[0] if c.kind == UNTRAINED]
    return [replace(c, label=label) for c, label in zip(rows, labelled(rows)[0], strict=True)]


def panel_of(score: Score, variants: Sequence[Variant], references: Mapping[str, Variant], untrained: Sequence[Contender]) -> Panel:
    """One score: every variant's values and its test against its reference, Holm's correction over the variants."""
    notes: list[str] = []
    known = list(LANGUAGES)
    found = {v.label: {lang: scored_runs(v.contender, lang, (score.task, score.metric), score.of_source, notes) for lang in v.members}
             for v in variants}
    having = {label: {lang for lang, (runs, _) in own.items() if runs} for label, own in found.items()}
    every = [langs for langs in having.values() if langs]
    langs = sorted(set.intersection(*every), key=known.index)
    if not langs:
        raise XalignError(f"study.scores={score.name}: the variants have no target language in common: "
                          + "; ".join(f"{label}: {' '.join(sorted(own))}" for label, own in having.items() if own))
    if left := sorted(set.union(*every) - set(langs)):
        notes.append(f"{score.name}: over {' '.join(langs)}, which all variants have; without {' '.join(left)}")
    effects = {}
    for v in variants:
        if having[v.label]:
            runs = {lang: found[v.label][lang][0] for lang in langs}
            effects[v.label] = Effect(_cells(runs, score.of_source), runs)
        else:
            reason = next((why for _, why in found[v.label].values() if why), "not scored by it")
            notes.append(f"{v.label} has no {score.name}: {reason}")
    for label, effect in effects.items():
        if label in references:
            _test(effect, references[label].label, effects.get(references[label].label))
    tested = [e for e in effects.values() if e.p is not None]
    for effect, adjusted in zip(tested, holm([e.p for e in tested if e.p is not None]), strict=True):
        effect.adjusted = adjusted
    of_untrained = {}
    for c in untrained:
        runs = {lang: scored_runs(c, lang, (score.task, score.metric), score.of_source, notes)[0] for lang in langs if lang in c.cells}
        if len(runs) == len(langs) and all(runs.values()):
            of_untrained[c.label] = _cells(runs, score.of_source)[MEAN]
    sources = {r.source for v in variants for r in v.runs}
    return Panel(score, langs, sources.pop() if len(sources) == 1 else "", effects, of_untrained, list(dict.fromkeys(notes)))


def _cells(runs: Mapping[str, Runs], of_source: bool) -> dict[str, Cell]:
    cells = {lang: cell_of(own, "") for lang, own in runs.items()}
    one = len(cells) == 1
    return cells | {MEAN: next(iter(cells.values())) if one else average(list(cells.values()), list(runs.values()), of_source)[0]}


def _test(effect: Effect, label: str, other: Effect | None) -> None:
    """Compare with the reference, language by language and over all; only answers to the same questions are compared."""
    effect.against = label
    if other is None:
        effect.reason = f"{label} has no such score"
        return
    asked = [{(r["lang"], r["task"]) for _, r in side.runs[lang]} for side in (effect, other) for lang in side.runs]
    if asked[:len(effect.runs)] != asked[len(effect.runs):]:
        effect.reason = f"{label} was asked in another language"
        return
    sides = [(scored(other.runs[lang]), scored(effect.runs[lang])) for lang in effect.runs]
    if not all(a and b for a, b in sides):
        effect.reason = "there are no per-example scores"
        return
    metric = next(iter(effect.runs.values()))[0][1]["metric"]
    whole, single = compare_over(metric, sides)
    effect.tests = {**dict(zip(effect.runs, single, strict=True)), MEAN: whole}
    effect.reason = whole.note if whole.result is None else ""
