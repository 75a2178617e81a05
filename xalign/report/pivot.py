"""Runs arranged in a table: systems × languages (or any other keys), one table a task and metric; means over seeds, tests, averages."""
from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from xalign.config import XalignError
from xalign.report.comparison import KEY_METRICS, has_head
from xalign.report.contenders import NO_RUN, NOT_SCORED, UNTRAINED, Contender, Member, Metric, check_keys, contenders, labelled, scored_runs
from xalign.report.marks import add_average, mark_cells, rivals
from xalign.report.runs import FinishedRun
from xalign.rows import LOWER_IS_BETTER, Row, as_roles
from xalign.tables import is_number


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        value: the mean over seeds; None where there is none.
        se: over seeds (standard deviation / sqrt(k)) where there are two or more, else over items; None if unknown.
        n: items a seed.
        seeds: those of the runs; empty for what is not trained.
        p: of the test against the baseline, uncorrected.
        mark: ``*`` for p < .05, ``**`` if it stays below after Holm's correction.
        reason: why there is no value.
    """

    value: float | None
    se: float | None = None
    n: int = 0
    seeds: tuple[int, ...] = ()
    p: float | None = None
    mark: str = ""
    reason: str = ""


@dataclass
class Pivot:
    """One task and metric of systems (rows) over languages or another key (columns).

    Attributes:
        role: ``target`` or ``source``: of which language the scores are; a source table's columns are still target languages.
        lang: the target language; empty where the languages are the columns.
        by: keys of the rows; `over`: key of the columns.
        cells: (row, column) → Cell, for every pair; average: row → Cell, empty where there is none.
        reference: rows that do not compete: baselines and the untrained model.
        baseline: the row that marks are against; empty without one.
        lower: lower is better.
        runs: row → the runs behind it.
        signatures: how the systems were scored, with languages as roles.
        tests: how many tests Holm's correction was over.
        transposed: asked for with the systems as columns.
    """

    role: str
    source: str
    lang: str
    task: str
    metric: str
    by: tuple[str, ...]
    over: str
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    average: dict[str, Cell] = field(default_factory=dict)
    reference: set[str] = field(default_factory=set)
    baseline: str = ""
    lower: bool = False
    runs: dict[str, list[FinishedRun]] = field(default_factory=dict, repr=False)
    signatures: tuple[str, ...] = ()
    tests: int = 0
    transposed: bool = False
    notes: list[str] = field(default_factory=list)


def pivots(runs: Sequence[FinishedRun], by: Sequence[str] = ("method", "lang"), metrics: Sequence[str] = ("accuracy",),
           tasks: Sequence[str] = (), baseline: str | None = None) -> list[Pivot]:
    """A table of the target languages and one of the source language for every task and metric that the runs were scored by.

    Args:
        by: the last key makes the columns, the others the rows; with ``lang`` first of two, rows and columns change places.
            Where the columns are something else than languages, every language has tables of its own.
        metrics: names, or first words of names (``accuracy``: accuracy_raw and accuracy_pmi); none: the key metrics.
        tasks: only these; a task without its part, ``flores``, is all its parts.
        baseline: the system that marks are against; None: each system's untrained model.
    Raises:
        XalignError: for a key, metric, task or baseline that the runs do not have.
    """
    by = tuple(by)
    check_keys(by, runs)
    swapped = len(by) == 2 and by[0] == "lang"
    keys, over = ([by[1]], "lang") if swapped else ([k for k in by[:-1] if k != "lang"], by[-1])
    rows, columns = contenders(runs, keys, over)
    out = []
    for metric in _chosen(rows, metrics, tasks):
        for lang in dict.fromkeys(c.lang for c in rows):
            for of_source in (False, True):
                pivot = _pivot([c for c in rows if c.lang == lang], columns, over, metric, of_source, baseline)
                if pivot:
                    out.append(replace(pivot, lang=lang, by=tuple(keys), transposed=swapped))
    if baseline and baseline != UNTRAINED and not any(p.baseline for p in out):
        labels = dict.fromkeys(label for p in out for label in p.rows if label not in p.reference)
        raise XalignError(f"--baseline {baseline}: is no system of these tables; there are {', '.join([UNTRAINED, *labels])}")
    return out


def _chosen(rows: Sequence[Contender], metrics: Sequence[str], tasks: Sequence[str]) -> list[Metric]:
    """The (task, metric) pairs asked for, in the order in which they were scored."""
    seen = {id(m.run): m for c in rows for ms in c.cells.values() for m in ms}.values()
    found: dict[Metric, bool] = {}  # → whether any run has a number
    for m in seen:
        for r in m.run.rows:
            for lang in m.run.langs if r["lang"] == r["source"] else [r["lang"]]:
                key = (as_roles(r["task"], r["source"], lang), as_roles(r["metric"], r["source"], lang))
                found[key] = found.get(key, False) or is_number(r["value"])
    for asked, place, what in ((metrics, 1, "metric"), (tasks, 0, "task")):
        names = list(dict.fromkeys(k[place] for k in found))
        for name in asked:
            if not any(_fits(n, name, what, names) for n in names):
                short = list(dict.fromkeys(n.partition(".")[0] for n in names)) if what == "metric" else names
                near = difflib.get_close_matches(name, names, 5, 0.5) or short
                raise XalignError(f"--{what} {name}: these runs were not scored by it; {'nearest' if near is not short else 'there are'}: "
                                  f"{', '.join(near[:20])}")
    names = [list(dict.fromkeys(k[place] for k in found)) for place in (0, 1)]
    out = [k for k, numbers in found.items() if numbers and (not tasks or any(_fits(k[0], t, "task", names[0]) for t in tasks))
           and any(_fits(k[1], m, "metric", names[1]) for m in metrics or KEY_METRICS)]
    if not out:
        asked = [*(f"--task {t}" for t in tasks), *(f"--metric {m}" for m in metrics)] or ["no --metric"]
        there = [f"{t} {m}" for (t, m), numbers in found.items() if numbers and "." not in m]
        raise XalignError(f"{' '.join(asked)}: no run has a number for it; there is {', '.join(there[:20])}{' ...' * (len(there) > 20)}")
    return out


def _fits(name: str, asked: str, what: str, names: Sequence[str]) -> bool:
    if asked in names:
        return name == asked
    return name.partition(":")[0] == asked if what == "task" else has_head(name, asked)


def _pivot(rows: Sequence[Contender], columns: Sequence[str], over: str, metric: Metric, of_source: bool,
           baseline: str | None) -> Pivot | None:
    """One table, marked; None where no system has a number."""
    notes: list[str] = []
    gathered = [(c, {x: scored_runs(c, x, metric, of_source, notes) for x in columns}) for c in rows]
    gathered = [(c, own) for c, own in gathered if any(runs or reason not in (NO_RUN, NOT_SCORED) for runs, reason in own.values())]
    if not any(runs for c, own in gathered if not c.reference for runs, _ in own.values()):
        return None
    labels, remarks = labelled([c for c, _ in gathered])
    shown = [replace(c, label=label) for (c, _), label in zip(gathered, labels, strict=True)]
    kept = [x for x in columns if any(own[x][0] for c, own in gathered if not c.reference)]
    found = {(label, x): own[x] for (_, own), label in zip(gathered, labels, strict=True) for x in kept}
    pivot = Pivot("source" if of_source else "target", shown[0].source, "", *metric, (), over, labels, kept,
                  {place: cell_of(*what) for place, what in found.items()}, lower=metric[1].startswith(LOWER_IS_BETTER),
                  reference={c.label for c in shown if c.reference}, runs={c.label: c.runs for c in shown}, notes=notes)
    signatures = (as_roles(r["signature"], m.run.source, m.lang) for c in shown if not c.reference for x in kept
                  for m, r in found[c.label, x][0] if r.get("signature"))
    pivot.signatures = tuple(dict.fromkeys(signatures))
    against = rivals(shown, baseline)
    mark_cells(pivot, shown, found, against)
    if over == "lang" and len(kept) > 1:
        add_average(pivot, shown, found, against)
    pivot.notes += remarks
    return pivot


def cell_of(found: Sequence[tuple[Member, Row]], reason: str) -> Cell:
    """The mean over a cell's runs."""
    if not found:
        return Cell(None, reason=reason)
    values = [r["value"] for _, r in found]
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else found[0][1].get("se")
    trained = found[0][0].when == "after" or len(values) > 1
    return Cell(statistics.fmean(values), se if is_number(se) else None, min(r["n"] for _, r in found),
                tuple(sorted(m.run.seed for m, _ in found)) if trained else ())
