"""Finished runs beside each other: reference rows first, then one row a run. No torch."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xalign.languages import LANGUAGES
from xalign.rows import (
    STARS,
    Line,
    Row,
    absences,
    arrow,
    as_roles,
    flat_config,
    lines,
    lower_note,
    percent,
    read_cost,
    read_rows,
    score,
    stars,
)
from xalign.tables import MISSING, Grid, is_number, show, write_csv

# metrics of the comparison: first word of the metric's name, then only words that name a score or a direction
KEY_METRICS = ("accuracy", "f1", "seqeval_f1", "ndcg", "chrf", "bleu4", "rougeL", "comet", "judge_win_rate", "off_target")
PLAIN_WORDS = {"raw", "pmi", "tokens", "bytes", "to", "from", "src", "tgt", "source", "target", *LANGUAGES}


def has_head(metric: str, head: str) -> bool:
    """True for ``accuracy_raw`` and ``accuracy``: only words that name a score or a direction follow."""
    rest = metric[len(head):]
    return metric.startswith(head) and not re.match("[a-z0-9]", rest) and set(re.findall(r"[a-z0-9]+", rest)) <= PLAIN_WORDS


def is_key(metric: str) -> bool:
    """True for the metrics that the comparison of runs shows."""
    return any(has_head(metric, head) for head in KEY_METRICS)


@dataclass
class Entry:
    """One row of the comparison: a run after training, or what it is measured against."""

    label: str
    folder: Path
    row: Row
    reference: bool
    lines: list[Line]
    cost: Mapping[str, Any] = field(default_factory=dict)
    when: str = "after"
    columns: dict[tuple[bool, str, str], Line] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = {_column(line, self.row): line for line in self.lines if is_key(line.metric)}

    def cell(self, column: tuple[bool, str, str]) -> Row | None:
        """The row of one column: (of the source language?, task, metric)."""
        line = self.columns.get(column)
        if line is None:
            return None
        return getattr(line, self.when) if self.when in ("before", "after") else line.baselines.get(self.when)


def _column(line: Line, row: Row) -> tuple[bool, str, str]:
    """Language codes become roles, so that runs of different languages share columns."""
    task, metric = (as_roles(text, row["source"], row["lang"]) for text in (line.task, line.metric))
    return line.lang == row["source"], task, metric


def entries(folders: Sequence[Path]) -> list[Entry]:
    """Reference rows (baselines, the untrained model), once for each language and backbone, then one row a run.

    Raises:
        XalignError: for a folder that is no finished run.
    """
    runs: list[Entry] = []
    references: dict[tuple[Any, ...], Entry] = {}
    for folder in dict.fromkeys(folders):
        rows = read_rows(folder)
        trained = any(r["when"] == "after" for r in rows)
        langs = dict.fromkeys(r["lang"] for r in rows if not trained or r["lang"] != r["source"])
        for lang in langs:
            gathered = lines(r for r in rows if r["lang"] == lang or trained and r["lang"] == r["source"])
            row = {**rows[0], "lang": lang}
            own = "after" if trained else "before"
            runs.append(Entry(row["method"] if trained else row["backbone"], folder, row, False, gathered, read_cost(folder), own))
            for when in dict.fromkeys(r["when"].partition(":")[2] or r["when"] for r in rows if r["when"] != own):
                key = (lang, row["source"], row["backbone"], when)
                label = "untrained" if when == "before" else when
                references.setdefault(key, Entry(label, folder, row, True, gathered, when=when))
    same = [(e.label, e.row["lang"], e.row["source"], e.row["backbone"], e.row["seed"]) for e in runs]
    for e, identity in zip(runs, same, strict=True):
        if same.count(identity) > 1:
            e.label += " " + e.row["run"].rsplit("-", 1)[-1]
    order = sorted(references.values(), key=lambda e: e.when == "before")
    return [*order, *runs]


def compare(folders: Sequence[Path]) -> list[Grid]:
    """Finished runs beside each other: one table for the target languages, one for the source language."""
    rows = entries(folders)
    varied = [(key, head) for key, head in (("lang", "lang"), ("source", "from"), ("backbone", "backbone"), ("seed", "seed"))
              if len({e.row[key] for e in rows}) > 1]
    grids = [_role_grid(rows, is_source, varied) for is_source in (False, True) if key_columns(rows, is_source)]
    if grids:
        runs = [e for e in rows if not e.reference]
        grids[0].notes += ["train min = every training stage; all min = every stage of the run, those taken from the cache included."]
        grids[-1].notes += [*absences(line for e in runs for line in e.columns.values()), *_differences(runs)]
    return grids


def _role_grid(rows: Sequence[Entry], is_source: bool, varied: Sequence[tuple[str, str]]) -> Grid:
    """The table of the target languages or of the source language; `varied`: row keys worth a column, with headings."""
    columns = key_columns(rows, is_source)
    of = " / ".join(dict.fromkeys(e.row["source" if is_source else "lang"] for e in rows))
    marks = _comparison_marks(rows, columns)
    heads = ["run", *(head for _, head in varied), *(_head(rows, c) for c in columns)]
    heads += [] if is_source else ["train\nmin", "all\nmin"]
    grid = Grid(f"{'source' if is_source else 'target'} language: {of}", heads)
    known: set[tuple[str, ...]] = set()
    for i, e in enumerate(rows):
        hidden = ("seed", "lang") if is_source else ("seed",)  # a reference does not depend on these
        names = [e.label, *("" if e.reference and key in hidden else str(e.row[key]) for key, _ in varied)]
        scores = []
        for c in columns:
            first, *error = score(e.cell(c), percent(c[2])).split(" ")
            scores.append("\n".join([first + marks.get((i, c), ""), *error]))
        if e.reference and ({*scores} == {MISSING} or (*names, *scores) in known):
            continue
        known.add((*names, *scores))
        if e.reference:
            grid.dim.add(len(grid.rows))
        cost = [] if is_source else [f"{e.cost[k] / 60:.1f}" if is_number(e.cost.get(k)) else MISSING
                                     for k in ("train_seconds", "seconds")]
        grid.rows.append([*names, *scores, *cost])
    tests = sum(_tested(e, c) is not None for e in rows for c in columns)
    if tests:
        grid.notes.append(f"± standard error; {STARS.format(k=tests)}: paired test of each run against the untrained model. "
                          "Runs are not tested against each other here.")
    grid.notes += lower_note(c[2] for c in columns)
    return grid


def key_columns(rows: Sequence[Entry], is_source: bool) -> list[tuple[bool, str, str]]:
    """The comparison's columns for one role, in order of first appearance; what no run could be scored by is left out."""
    found = dict.fromkeys(c for e in rows for c in e.columns)
    return [c for c in found if c[0] == is_source and any(r and is_number(r["value"]) for e in rows for r in [e.cell(c)])]


def _head(rows: Sequence[Entry], column: tuple[bool, str, str]) -> str:
    """Task, metric and n on short lines."""
    counts = dict.fromkeys(r["n"] for e in rows if not e.reference for r in [e.cell(column)] if r and is_number(r["value"]))
    n = f"n {min(counts)}–{max(counts)}" if len(counts) > 1 else f"n {next(iter(counts), MISSING)}"
    return "\n".join([*re.split(r"[ _]|(?=→)", arrow(column[1])), *re.split(r"[ _]|(?=→)", column[2]), n])


def _tested(e: Entry, column: tuple[bool, str, str]) -> float | None:
    row = None if e.reference else e.cell(column)
    return row["p"] if row and is_number(row.get("p")) else None


def _comparison_marks(rows: Sequence[Entry], columns: Sequence[tuple[bool, str, str]]) -> dict[Any, str]:
    """(entry index, column) → stars."""
    places = [(i, c) for i in range(len(rows)) for c in columns]
    return dict(zip(places, stars([_tested(rows[i], c) for i, c in places]), strict=True))


def _differences(runs: Sequence[Entry]) -> list[str]:
    """What distinguishes runs of the same method: the configuration keys in which they differ, and every run's folder."""
    notes = []
    configs = {e.folder: flat_config(e.folder) for e in runs}
    for e in runs:
        alike = [configs[o.folder] for o in runs if o.row["method"] == e.row["method"]]
        keys = [k for k in configs[e.folder] if k.split(".")[0] not in ("lang", "seed", "source", "runs", "cache", "study", "choices")
                and len({json.dumps(c.get(k)) for c in alike}) > 1]
        notes.append(f"{e.label}: {e.folder}" + "".join(f" · {k}={configs[e.folder][k]}" for k in keys))
    return list(dict.fromkeys(notes))


def comparison_csv(folders: Sequence[Path], path: Path) -> None:
    """The comparison with unrounded numbers: one line a run or reference, four columns a metric."""
    rows = entries(folders)
    columns = [c for role in (False, True) for c in key_columns(rows, role)]
    heads = ["label", "run", "when", "method", "lang", "source", "backbone", "seed", "train_seconds", "seconds"]
    for of_source, task, metric in columns:
        name = f"{'source' if of_source else 'target'}/{task}/{metric}"
        heads += [name, f"{name} se", f"{name} n", f"{name} p"]
    body = []
    for e in rows:
        cells = [e.label, "" if e.reference else e.row["run"], e.when, "" if e.reference else e.row["method"], e.row["lang"],
                 e.row["source"], e.row["backbone"], "" if e.reference else e.row["seed"],
                 e.cost.get("train_seconds"), e.cost.get("seconds")]
        for c in columns:
            row = e.cell(c) or {}
            cells += [row.get("value"), row.get("se"), row.get("n"), row.get("p")]
        body.append(cells)
    write_csv(path, heads, body)


def print_comparison(folders: Sequence[Path]) -> None:
    """The comparison of finished runs."""
    show(compare([Path(f) for f in folders]))
