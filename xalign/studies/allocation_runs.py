"""Finished MuIT runs by budget and by how it was shared: rows trained on, scores, paired tests against the uniform split. No torch."""
from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.analysis.allocation import Law
from xalign.analysis.pooled import compare_over
from xalign.analysis.recover import ROUNDED
from xalign.analysis.systems import Outcome, Scored, tell_apart
from xalign.config import XalignError
from xalign.rows import Row, as_roles, percent, stars
from xalign.studies.scaling_points import trained_rows
from xalign.tables import is_number

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

UNIFORM = "uniform"
MEAN = "mean"
SETTINGS = ("method.budget", "method.allocation", "method.allocation_file", "method.law")  # what runs of one system may differ in


@dataclass
class Way:
    """One way to share a budget, and the runs that did, one a seed.

    Attributes:
        counts: language → translation rows built, which add up to the budget; rows: of those trained on.
        laws: that it was made by; empty of others than ``optimised``.
        scored: language → seed → row and per-example scores.
        tests: language or ``mean`` → paired test against the uniform split; marks: its stars.
    """

    name: str
    counts: dict[str, int]
    rows: dict[str, float]
    laws: dict[str, Law]
    runs: list[FinishedRun]
    scored: dict[str, dict[int, tuple[Row, Scored | None]]] = field(default_factory=dict)
    tests: dict[str, Outcome] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)

    def value(self, lang: str) -> tuple[float, float | None, int]:
        """(mean over seeds, its standard error over seeds or, of one, over items, items) in the metric's own unit."""
        found = [row for row, _ in self.scored[lang].values()]
        values = [row["value"] for row in found]
        se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else found[0].get("se")
        return statistics.fmean(values), se if is_number(se) else None, min(row["n"] for row in found)


@dataclass
class Split:
    """One budget of one system.

    Attributes:
        system: what tells it from other systems; empty if there is one.
        budget: the largest of its ways; `ROUNDED` apart they are one.
        ways: the uniform one first.
        laws: that one of them, else one of another budget of the system, was made by; empty if none was.
    """

    system: str
    langs: tuple[str, ...]
    budget: int
    ways: list[Way]
    laws: dict[str, Law]

    @property
    def title(self) -> str:
        return f"{self.system}, " * bool(self.system) + f"{self.budget:,} rows"

    def predicted(self, way: Way) -> dict[str, float]:
        """Language → what its law says of the rows that it was trained on, and ``mean``; empty without laws."""
        if not self.laws or any(way.rows[lang] < 1 for lang in self.langs):
            return {}
        found = {lang: self.laws[lang].score(way.rows[lang]) for lang in self.langs}
        return {**found, MEAN: statistics.fmean(found.values())}


def unit(metric: str) -> int:
    """What a score is multiplied by to be on the scale to 100."""
    return 1 if percent(metric) else 100


def shared(run: FinishedRun) -> tuple[dict[str, Any], dict[str, int]]:
    """(the budget's settings as the stage of the training rows had them, rows of each language) out of receipts.json.

    Raises:
        XalignError: it does not say.
    """
    path = run.folder / "receipts.json"
    try:
        receipts = json.loads(path.read_text(encoding="utf-8"))
        stage = next(r for r in receipts if r["name"] == "rows" and "translation instructions" in r["facts"])
        return stage["params"]["budget"] or {}, stage["facts"]["translation instructions"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise XalignError(f"{path}: does not say how the translation rows were shared; repeat the run's command") from None


def gather(runs: Sequence[FinishedRun], task: str, metric: str) -> tuple[list[Split], list[str]]:
    """(splits by system and budget, notes on runs that are left out)."""
    systems: dict[str, dict[int, dict[str, Way]]] = {}
    first: dict[str, FinishedRun] = {}
    left = []
    for run in {r.name: r for r in runs}.values():
        scored = {lang: found for lang in run.langs for found in [_scored(run, lang, task, metric)] if found}
        settings, counts = shared(run)
        total = sum(counts.values())
        if len(scored) < len(run.langs) or not total:
            left.append(run.name)
            continue
        system = json.dumps([_identity(run), run.langs], sort_keys=True, default=str)
        first.setdefault(system, run)
        budgets = systems.setdefault(system, {})
        ways = budgets.setdefault(next((k for k in budgets if abs(k / total - 1) <= ROUNDED), total), {})
        key = json.dumps({k: v for k, v in settings.items() if k not in ("rows", "seed")}, sort_keys=True)
        laws = {lang: Law(**law) for lang, law in (settings.get("laws") or {}).items()}
        way = ways.setdefault(key, Way(_name(run, settings), counts, {lang: trained_rows(run, lang)[0] for lang in run.langs}, laws, []))
        way.runs.append(run)
        for lang, found in scored.items():
            way.scored.setdefault(lang, {})[run.seed] = found
    names, notes = tell_apart(["" for _ in first], [_identity(r) | {"lang": ",".join(r.langs)} for r in first.values()],
                              [r.folder for r in first.values()])
    splits = []
    for name, (system, budgets) in zip(names, systems.items(), strict=True):
        for _, ways in sorted(budgets.items()):
            every = [*ways.values(), *(way for others in budgets.values() for way in others.values())]
            splits.append(Split(name.strip(), first[system].langs, max(sum(way.counts.values()) for way in ways.values()), _named(ways),
                                next((way.laws for way in every if way.laws), {})))
    if left:
        notes.append(f"Left out, without this score in every language or without translation rows: {', '.join(left)}.")
    return splits, notes


def _identity(run: FinishedRun) -> dict[str, Any]:
    """What is the same in the runs of one system."""
    return {k: v for k, v in run.model("after").identity.items() if not k.startswith(SETTINGS)}


def _name(run: FinishedRun, settings: dict[str, Any]) -> str:
    if not settings:
        return "all there is"
    return Path(str(run.config.get("method.allocation_file"))).name if settings.get("given") else settings["strategy"]


def _named(ways: dict[str, Way]) -> list[Way]:
    """With distinct names, the uniform one first."""
    names = [way.name for way in ways.values()]
    for way in ways.values():
        if names.count(way.name) > 1:
            way.name += f" {way.runs[0].folder.name.rpartition('-')[2]}"
    return sorted(ways.values(), key=lambda way: way.name != UNIFORM)


def _scored(run: FinishedRun, lang: str, task: str, metric: str) -> tuple[Row, Scored | None] | None:
    """The run's row, and its per-example scores where they are there."""
    for row in run.rows:
        if row["when"] == "after" and row["lang"] == lang and is_number(row["value"]) and (
                as_roles(row["task"], row["source"], lang), as_roles(row["metric"], row["source"], lang)) == (task, metric):
            examples = run.model("after").examples.get((lang, row["task"], row["metric"]))
            return row, Scored(run.seed, True, examples, row) if examples else None
    return None


def compare_all(splits: Sequence[Split], metric: str) -> None:
    """Set the tests of every way against the uniform one of its budget; Holm's correction over all of them."""
    places = []
    for split in splits:
        base, *others = split.ways
        for way in others if base.name == UNIFORM else ():
            sides = [tuple({seed: s for seed, (_, s) in w.scored[lang].items() if s} for w in (base, way)) for lang in split.langs]
            if not all(a and b for a, b in sides):
                continue
            outcome, single = compare_over(metric, sides)  # type: ignore[arg-type]
            way.tests = {**dict(zip(split.langs, single, strict=True)), **({MEAN: outcome} if len(sides) > 1 else {})}
            places += [(way, lang, o.result.p_randomisation) for lang, o in way.tests.items() if o.result]
    for (way, lang, _), mark in zip(places, stars([p for *_, p in places]), strict=True):
        way.marks[lang] = mark
