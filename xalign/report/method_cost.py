"""ML-IPD's cost table (its section 3.2) from measurements: every method's device-hours and accuracy beside ML-DFT and RL-IA."""
from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xalign.cost import few, stages_of
from xalign.report.comparison import has_head
from xalign.report.facts import facts
from xalign.report.runs import FinishedRun
from xalign.tables import MISSING, Grid, is_number, number

Spent = Sequence[tuple[FinishedRun, Sequence[Mapping[str, Any]]]]
Value = tuple[float, float | None]  # mean and standard error over seeds
SHOWN = {"ml_dft": "ML-DFT", "rl_ia": "RL-IA", "pl_bl": "PL-BL", "ml_ipd": "ML-IPD"}
PAPERS = tuple(SHOWN)  # the methods of ML-IPD's cost table
AGAINST = ("ml_dft", "rl_ia")


@dataclass(frozen=True)
class Group:
    """Runs that differ in seed and target language only.

    Attributes:
        hours, device_hours: of a run, as if alone: (all trainings, all stages).
    """

    method: str
    name: str
    runs: tuple[FinishedRun, ...]
    hours: tuple[Value, Value]
    device_hours: tuple[Value, Value]
    devices: str

    @property
    def targets(self) -> tuple[tuple[str, ...], ...]:
        return tuple(sorted({run.langs for run in self.runs}))


def method_grid(spent: Spent) -> Grid:
    """One line a method; `spent`: runs with their cost rows."""
    groups = _groups([(run, rows) for run, rows in spent if run.trained])
    task_names, metric = _accuracy([run for g in groups for run in g.runs])
    grid = Grid("cost by method, measured", ["method", "runs", "training\nhours", "all stages\nhours", "devices", "training\ndevice-hours",
                                             "all stages\ndevice-hours", *(f"against {SHOWN[m]}\ntraining / all" for m in AGAINST),
                                             "average\naccuracy"], left=(0, 1))
    for g in groups:
        langs, seeds = len(g.targets), len({run.seed for run in g.runs})
        what = f"{langs} × {seeds} seed{'s' * (seeds > 1)}"
        what += f", {len(g.targets[0])} languages" if len(g.targets[0]) > 1 else ""
        accuracy = _over_seeds(g.runs, [_mean_accuracy(run, task_names, metric) for run in g.runs])
        grid.rows.append([g.name, what, *map(_plus_minus, g.hours), g.devices, *map(_plus_minus, g.device_hours),
                          *(_against(g, groups, method) for method in AGAINST), _plus_minus(accuracy, number)])
    grid.notes.append("a run as if alone: mean over target languages and seeds, ± standard error over seeds; training = every training "
                      "that the method needs; all stages = data, translation, training and evaluation before and after")
    grid.notes.append("runs: target languages × seeds; against: change of the device-hours, negative = cheaper, where exactly one setting "
                      "of that method was run on the same target languages")
    if metric:
        grid.notes.append(f"accuracy: {metric} of {', '.join(task_names)} after training, mean over the target languages")
    if len({g.targets for g in groups}) > 1:
        grid.notes.append("the methods were not run on the same target languages: their lines are of different work")
    return grid


def papers_grid() -> Grid:
    """The paper's own figures, which are wall hours × GPUs and nothing measured here."""
    cost = facts("mlipd_table1")["cost"]
    known = {name: (m["hours"], m["gpus"]) for name, m in cost["methods"].items()}
    heads = [*(f"against {SHOWN[m]}" for m in AGAINST), *(f"claimed\nagainst {SHOWN[m]}" for m in AGAINST)]
    grid = Grid("cost by method, as the paper states it (not measured here)", ["method", "hours", "GPUs", "GPU-hours", *heads])
    for name in (m for m in PAPERS if m in known):
        hours, gpus = known[name]
        implied = [MISSING if name == m else _change(hours * gpus, known[m][0] * known[m][1]) for m in AGAINST]
        claimed = [f"-{cost['claimed'][m]:.0%}" if name == "ml_ipd" and m in cost["claimed"] else MISSING for m in AGAINST]
        grid.rows.append([SHOWN[name], f"{hours}", f"{gpus}", f"{hours * gpus:,}", *implied, *claimed])
    grid.notes.append(f"{cost['source']}; device: {cost['device']}. against = computed from hours × GPUs; claimed = the paper's text, "
                      "which these figures do not bear out.")
    return grid


def _groups(spent: Spent) -> list[Group]:
    """The runs by method and settings, the paper's methods first."""
    found: dict[tuple[str, str, int], list[int]] = {}
    for i, (run, _) in enumerate(spent):
        identity = json.dumps(run.model("after").identity, sort_keys=True, default=str)
        found.setdefault((run.method, identity, len(run.langs)), []).append(i)
    methods = [key[0] for key in found]
    groups = []
    for (method, *_), members in found.items():
        runs, rows = tuple(spent[i][0] for i in members), [spent[i][1] for i in members]

        def of(key: str, scale: float, rows: Any = rows, runs: Any = runs) -> tuple[Value, Value]:
            train, every = ([sum(r[key] for r in stages_of(own, kind)) / scale for own in rows] for kind in ("train", ""))
            return _over_seeds(runs, train), _over_seeds(runs, every)  # type: ignore[return-value]

        name = SHOWN.get(method, method) + (f" {runs[0].name.rsplit('-', 1)[-1]}" if methods.count(method) > 1 else "")
        devices = dict.fromkeys(str(r["devices"]) for own in rows for r in stages_of(own, "train"))
        groups.append(Group(method, name, runs, of("seconds", 3600), of("device_hours", 1), "/".join(devices)))
    return sorted(groups, key=lambda g: PAPERS.index(g.method) if g.method in PAPERS else len(PAPERS))


def _against(group: Group, groups: Sequence[Group], method: str) -> str:
    """``-75.0% / -60.0%``: training and all stages of `group` against those of `method`; ``–`` unless one was run on the same targets."""
    rivals = [g for g in groups if g.method == method and g.targets == group.targets]
    if len(rivals) != 1 or group.method == method:
        return MISSING
    return " / ".join(_change(mine[0], its[0]) for mine, its in zip(group.device_hours, rivals[0].device_hours, strict=True))


def _change(mine: float, its: float) -> str:
    """``-91.7%``, ``+12.0%``."""
    return f"{100 * (mine / its - 1):+.1f}%" if its else MISSING


def _over_seeds(runs: Sequence[FinishedRun], values: Sequence[float | None]) -> Value | None:
    """Mean over the seeds of the mean over a seed's runs, and its standard error; None if a run has no value."""
    if not runs or any(v is None for v in values):
        return None
    by_seed: dict[int, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        by_seed.setdefault(run.seed, []).append(float(value))  # type: ignore[arg-type]
    means = [statistics.fmean(v) for v in by_seed.values()]
    return statistics.fmean(means), statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else None


def _plus_minus(value: Value | None, form: Callable[[float], str] = few) -> str:
    if value is None:
        return MISSING
    return form(value[0]) + ("" if value[1] is None else f" ±{form(value[1])}")


def _accuracy(runs: Sequence[FinishedRun]) -> tuple[list[str], str]:
    """The accuracy that all runs have, and of which tasks; plain ``accuracy`` before its variants; ([], "") if there is none."""
    each = [dict.fromkeys((r["task"], r["metric"]) for r in _scores(run)) for run in runs]
    common = [pair for pair in each[0] if all(pair in other for other in each)] if each else []
    names = [m for _, m in common if has_head(m, "accuracy")]
    metric = "accuracy" if "accuracy" in names else next(iter(names), "")
    return sorted(task for task, m in common if m == metric), metric


def _scores(run: FinishedRun) -> list[Mapping[str, Any]]:
    return [r for r in run.rows if r["when"] == "after" and r["lang"] != r["source"] and is_number(r["value"])]


def _mean_accuracy(run: FinishedRun, tasks: Sequence[str], metric: str) -> float | None:
    values = [r["value"] for r in _scores(run) if r["task"] in tasks and r["metric"] == metric]
    return statistics.fmean(values) if values else None
