"""Our finished runs beside a paper's tables: numbers, what they are not the same in, and all of it as CSV. No torch."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xalign.report.against import Difference, Ours, System, Wanted, choose, from_experiment, from_paper, from_test, mean, minus, number_of
from xalign.report.facts import AVERAGE, Block, Part, blocks, facts
from xalign.report.runs import FinishedRun
from xalign.tables import is_number, write_csv


@dataclass
class Beside:
    """One block with ours beside it.

    Attributes:
        ours: (row, column) → our number.
        scored: row → the parts that it has numbers for, with those of single languages.
    """

    block: Block
    laboratory: bool
    systems: dict[str, System]
    ours: dict[tuple[str, str], Ours] = field(default_factory=dict)
    scored: dict[str, dict[Part, list[Ours]]] = field(default_factory=dict)

    def wanted(self, part: Part) -> Wanted | None:
        """What stands for a part here."""
        return part.laboratory if self.laboratory else part.paper

    @property
    def rows(self) -> list[str]:
        """The rows that have a number of ours."""
        return [r for r in self.block.rows if any((r, c) in self.ours for c in self.block.columns)]

    @property
    def shared(self) -> list[str]:
        """The columns in which every row that has a number of ours has one."""
        rows = self.rows
        return [c for c in self.block.singles if rows and all((r, c) in self.ours and c in self.block.rows[r] for r in rows)]

    def paper(self, row: str, columns: Sequence[str]) -> float:
        """The published values' mean over columns."""
        return math.fsum(self.block.rows[row][c] for c in columns) / len(columns)

    def mean(self, row: str, columns: Sequence[str]) -> Ours:
        return mean([self.ours[row, c] for c in columns])


def beside(name: str, runs: Sequence[FinishedRun]) -> list[Beside]:
    """The blocks of one experiment with our numbers, from whichever of `runs` stand for its rows."""
    known, tables = facts(name), blocks(name)
    lab = known["laboratory"]
    every = [w for b in tables for parts in b.parts.values() for p in parts for w in [p.laboratory if lab else p.paper] if w]
    systems: dict[str, System] = {}
    for row in dict.fromkeys(r for b in tables for r in (*b.rows, b.minus) if r):
        systems[row] = System(row, known["systems"].get(row, {"method": row}))
        choose(systems[row], runs, every, known["experiment"])
    out = []
    for block in tables:
        mine = {row: systems[row] for row in block.rows}
        found = Beside(block, lab, mine)
        for row, system in mine.items():
            base = _base(block.minus, system, runs, every, known["experiment"])
            for column in block.columns:
                value = _ours(found, column, system, base)
                if value is not None:
                    found.ours[row, column] = value
            if AVERAGE in block.columns[1:] and all((row, c) in found.ours for c in block.singles):
                found.ours[row, AVERAGE] = found.mean(row, block.singles)
        out.append(found)
    return out


def _base(method: str, system: System, runs: Sequence[FinishedRun], wanted: Sequence[Wanted], experiment: str) -> System | None:
    """The row that a difference is counted from: the same source language as the row's own."""
    if not method or system.spec is None:
        return None
    base = System(method, {"method": method, **{k: v for k, v in system.spec.items() if k == "source"}})
    choose(base, runs, wanted, experiment)
    return base


def _ours(t: Beside, column: str, system: System, base: System | None) -> Ours | None:
    """Our value of one cell; None where one of its parts has no number at all."""
    means = []
    for part in t.block.parts.get(column, ()):
        wanted, langs = t.wanted(part), part.langs
        if wanted is None:
            continue
        if t.laboratory and (column not in langs or len(t.block.columns) == 1):  # the laboratory has languages of its own
            langs = tuple(dict.fromkeys(lang for run in system.runs for lang in run.langs))
        found = {lang: number_of(system, wanted, lang, t.block.unit) for lang in langs}
        if base is not None:
            found = {lang: minus(o, number_of(base, wanted, lang, t.block.unit)) for lang, o in found.items()}
        there = [o for o in found.values() if o is not None]
        if not there:
            return None
        t.scored.setdefault(system.name, {}).setdefault(part, []).extend(there)
        means.append(mean(there, [lang for lang, o in found.items() if o is None]))
    return mean(means, dict.fromkeys(lang for m in means for lang in m.lacking)) if means else None


def corrected(known: Mapping[str, Any], block: str, row: str, column: str) -> float | None:
    """What an erratum puts in place of a published value; None without one."""
    mine = (e["corrected"] for e in known["errata"] if (e.get("block"), e.get("column")) == (block, column))
    return next((values[row] for values in mine if row in values), None)


def differences(t: Beside, row: str, known: Mapping[str, Any]) -> dict[str, list[Difference]]:
    """What keeps one row's numbers of ours from being the paper's: ``paper`` and ``experiment`` → differences."""
    system = t.systems[row]
    if not system.runs:
        return {}
    run = system.runs[0]
    paper = from_paper(run, known["setting"]) if run.config else [Difference("settings", "recorded", "no config.yaml")]
    for part, numbers in t.scored.get(row, {}).items():
        paper += from_test(part.paper, part.laboratory if t.laboratory else None, numbers)
    for part in dict.fromkeys(p for parts in t.block.parts.values() for p in parts if t.wanted(p) is None):
        paper.append(Difference("left out", f"{part.paper.benchmark} {part.paper.metric}", "nothing stands for it"))
    tasks = {w.benchmark for part in t.scored.get(row, {}) for w in [t.wanted(part)] if w}
    told = set() if t.laboratory else {d.what for d in paper}  # the laboratory is nobody's setting: both are worth knowing
    own = [d for d in from_experiment(run, known["experiment"], system.spec or {}, tasks) if d.what not in told]
    return {"paper": list(dict.fromkeys(paper)), "experiment": own}


def verdict(t: Beside, row: str, known: Mapping[str, Any]) -> str:
    """``yes``, or ``no:`` with everything that differs; empty for a row without a run."""
    found = differences(t, row, known)
    reasons = [str(d) for kind in ("paper", "experiment") for d in found.get(kind, [])]
    return "" if not found else "no: " + "; ".join(reasons) if reasons else "yes"


def cells_csv(path: Path, name: str, tables: Iterable[Beside]) -> None:
    """One line a cell, unrounded."""
    known = facts(name)
    body = []
    for t in tables:
        judged = {row: verdict(t, row, known) for row in t.block.rows}
        for row, values in t.block.rows.items():
            for column, value in values.items():
                fixed, ours = corrected(known, t.block.name, row, column), t.ours.get((row, column))
                diff = ours.value - (value if fixed is None else fixed) if ours and not t.laboratory else None
                within = abs(diff) <= 2 * ours.se if ours and diff is not None and is_number(ours.se) else None  # type: ignore[operator]
                score = " + ".join(dict.fromkeys(f"{w.task} {w.metric}" for p in t.block.parts.get(column, ()) for w in [t.wanted(p)] if w))
                mine = [ours.value, ours.se, ours.n, " ".join(map(str, ours.seeds)), ours.signature] if ours else [None] * 5
                body.append([name, t.block.name, score, row, column, t.block.unit, value, fixed, *mine, diff, within,
                             judged[row] if ours else ""])
    write_csv(path, ["experiment", "block", "score", "row", "column", "unit", "paper", "corrected", "ours", "se", "n", "seeds", "signature",
                     "difference", "within_2_se", "comparable"], body)
