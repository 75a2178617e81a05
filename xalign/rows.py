"""A run's files, read, and its rows gathered by metric: what the tables and the model card are made of. No torch."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xalign.analysis.significance import holm
from xalign.config import XalignError
from xalign.data.examples import read_jsonl
from xalign.runfiles import AGAIN, FACTS, check, read_facts
from xalign.tables import MISSING, is_number, with_error

Row = Mapping[str, Any]
ALPHA = 0.05
REQUIRED = ("run", "method", "lang", "source", "backbone", "task", "metric", "value", "n", "seed", "when")
LOWER_IS_BETTER = ("off_target", "judge_unparsable")
STARS = "* p<.05; ** also after Holm's correction over the {k} tests of this table"


def percent(metric: str) -> bool:
    """True for metrics that run from 0 to 100."""
    return metric.lower().startswith(("bleu", "chrf", "rouge"))


def lower_note(metrics: Iterable[str]) -> list[str]:
    """A note that names the metrics of which less is better."""
    names = dict.fromkeys(m for m in metrics if m.startswith(LOWER_IS_BETTER))
    return [f"{', '.join(names)}: lower is better."] if names else []


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of one run folder, after its files were checked (`xalign.runfiles.check`): whoever reads a run begins here.

    Raises:
        XalignError: if the run is not finished, a file of it was changed, or a line of rows.jsonl is not a row.
    """
    path = folder / "rows.jsonl"
    if not path.is_file():
        what = "has no rows.jsonl; the run is not finished, repeat its command" if folder.is_dir() else "no such run folder"
        raise XalignError(f"{folder}: {what}")
    finished = os.path.lexists(folder / FACTS)
    if finished:
        check(folder)
    rows = []
    for number_, row in enumerate(read_jsonl(path), 1):
        lacking = [key for key in REQUIRED if key not in row]
        if lacking:
            raise XalignError(f"{path}: row {number_} has no '{lacking[0]}'; {AGAIN}")
        value, n = row["value"], row["n"]
        if value is not None and not is_number(value):
            raise XalignError(f"{path}: row {number_} has value={value!r:.40}, which is no finite number; {AGAIN}")
        if not isinstance(n, int) or isinstance(n, bool):
            raise XalignError(f"{path}: row {number_} has n={n!r:.40}, which is no whole number; {AGAIN}")
        rows.append(row)
    if not rows:
        raise XalignError(f"{path}: is empty; repeat the run's command")
    if not finished:
        raise XalignError(f"{folder}: has no {FACTS}; the run is not finished, repeat its command")
    return rows


def read_cost(folder: Path) -> dict[str, Any]:
    """The cost that run.json records; empty if it has none."""
    return dict(read_facts(folder).get("cost") or {})


def flat_config(folder: Path) -> dict[str, Any]:
    """A run's config.yaml as dotted keys; empty if it is not there."""
    import yaml

    def flat(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}

    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        return flat(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}, "")  # ten times as fast
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def arrow(task: str) -> str:
    """``sentences eng→fin`` for ``sentences:eng-fin``; any other task as it is."""
    return re.sub(r":(\w{3})-(\w{3})$", r" \1→\2", task)


def as_roles(text: str, source: str, target: str) -> str:
    """A task or metric with its languages as roles, ``sentences:src-tgt``: what is the same thing over languages."""
    for code, role in ((source, "src"), (target, "tgt")):
        text = re.sub(rf"(?<![a-z]){re.escape(code)}(?![a-z])", role, text) if code else text
    return text


@dataclass
class Line:
    """Everything known about one metric of one task in one language."""

    lang: str
    task: str
    metric: str
    before: Row | None = None
    after: Row | None = None
    baselines: dict[str, Row] = field(default_factory=dict)

    @property
    def task_name(self) -> str:
        """The task for people: ``sentences eng→fin`` for ``sentences:eng-fin``."""
        return arrow(self.task)

    @property
    def lower(self) -> bool:
        return self.metric.startswith(LOWER_IS_BETTER)

    @property
    def diff(self) -> float | None:
        """After minus before; from the paired comparison if there is one."""
        if self.after and is_number(self.after.get("diff")):
            return float(self.after["diff"])
        a, b = (row["value"] if row else None for row in (self.before, self.after))
        return b - a if is_number(a) and is_number(b) else None

    @property
    def p(self) -> float | None:
        p = self.after.get("p") if self.after else None
        return p if is_number(p) else None


def lines(rows: Iterable[Row]) -> list[Line]:
    """Rows gathered by language, task and metric, in order of first appearance, target languages first."""
    found: dict[tuple[str, str, str], Line] = {}
    rows = list(rows)
    for row in sorted(rows, key=lambda r: (r["lang"] == r["source"])):
        line = found.setdefault((row["lang"], row["task"], row["metric"]), Line(row["lang"], row["task"], row["metric"]))
        kind, _, name = row["when"].partition(":")
        if kind == "baseline":
            line.baselines[name] = row
        else:
            setattr(line, kind, row)
    return list(found.values())


def stars(ps: Sequence[float | None]) -> list[str]:
    """``*`` or ``**`` for each p-value, Holm's correction over those that are there."""
    tested = [p for p in ps if p is not None]
    adjusted = iter(holm(tested))
    return ["" if p is None else "**" if next(adjusted) < ALPHA else "*" if p < ALPHA else "" for p in ps] \
        if tested else [""] * len(ps)


def uneven(gathered: Iterable[Line]) -> list[str]:
    """A note on metrics whose tested difference is not after minus before: corpus scores, items without a score."""
    names = dict.fromkeys(line.metric for line in gathered if line.p is not None and line.before and line.after
                          and is_number(line.before["value"]) and is_number(line.after["value"])
                          and abs(line.after["value"] - line.before["value"] - (line.diff or 0.0)) > 1e-6)
    return [f"{', '.join(names)}: the difference is the mean over the items scored both times; it need not equal after - before."
            ] if names else []


def score(row: Row | None, pc: bool) -> str:
    """``.372 ±.024``; ``absent`` for a row without a value, ``–`` for no row."""
    if row is None:
        return MISSING
    return with_error(row["value"], row.get("se"), pc) if is_number(row["value"]) else "absent"


def absences(gathered: Iterable[Line]) -> list[str]:
    """One note a reason, naming the metrics that have no value for it."""
    notes: dict[str, dict[str, None]] = {}
    gathered = list(gathered)
    several = any(line.after for line in gathered)
    for line in gathered:
        rows = {"before": line.before, "after": line.after, **line.baselines}
        lacking = {when: row.get("reason") or "no reason given" for when, row in rows.items()
                   if row and not is_number(row["value"])}
        for reason in dict.fromkeys(lacking.values()):
            when = [w for w in lacking if lacking[w] == reason]
            which = "" if not several or len(when) == len(lacking) >= 2 else f" ({', '.join(when)})"
            notes.setdefault(reason, {})[f"{line.task_name} {line.metric}{which}"] = None
    return [f"absent: {', '.join(which)}: {reason}" for reason, which in notes.items()]


def signatures(gathered: Iterable[Line]) -> list[str]:
    """One note a distinct signature, naming the metrics that carry it (a metric's subsets share its signature)."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in gathered:
        row = line.after or line.before
        if row and row.get("signature") and "." not in line.metric:
            found.setdefault(row["signature"], {}).setdefault(line.task_name, []).append(line.metric)
    return ["; ".join(task + " " + ", ".join(dict.fromkeys(metrics)) for task, metrics in which.items()) + ": " + signature
            for signature, which in found.items()]
