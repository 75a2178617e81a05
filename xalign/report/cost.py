"""What runs cost: stage by stage, alone and together, and ML-IPD's cost table from measurements. No torch."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xalign.cost import ORDER, cost_rows, few, stages_of, totals
from xalign.data.examples import read_jsonl
from xalign.report.method_cost import PAPERS, method_grid, papers_grid
from xalign.report.runs import FinishedRun
from xalign.tables import MISSING, Grid, is_number, show

Row = Mapping[str, Any]
COLUMNS = ["stages", "n", "wall", "device-hours", "tokens", "FLOPs", "MFU", "memory\nGiB", "energy\nWh"]
SMALL = 1.0  # seconds; shared stages below share a line
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_grids(runs: Sequence[FinishedRun]) -> list[Grid]:
    """A table for each run; of several runs what each would cost alone and what they share; ML-IPD's table where its methods are."""
    found = [(run, stage_rows(run)) for run in runs]
    spent = [(run, rows) for run, rows in found if rows]
    grids = [run_grid(f"cost of {run.name}", rows) for run, rows in spent]
    if len(spent) > 1:
        grids = [stages_grid(spent), together(spent), shared_stages(spent)]
    methods = {run.method for run, _ in spent if run.trained}
    if len(methods) > 1 and methods & set(PAPERS):
        grids += [method_grid(spent), papers_grid()]
    lacking = [run.name for run, rows in found if not rows]
    if lacking and grids:
        grids[-1].notes.append(f"without cost.jsonl: {', '.join(lacking)}")
    return [grid for grid in grids if grid.rows or grid.notes]


def stage_rows(run: FinishedRun) -> list[Row]:
    """The run's cost rows; of an older version's run from its receipts, [] without them."""
    path = run.folder / "receipts.json"
    if run.cost or not path.is_file():
        return list(run.cost)
    of = {"run": run.name, "method": run.method, "lang": ",".join(run.langs), "source": run.source, "backbone": run.backbone,
          "seed": run.seed}
    return cost_rows(json.loads(path.read_text(encoding="utf-8")), of)


def print_cost(folder: Path) -> None:
    """The cost table of one finished run; nothing where it has no cost.jsonl."""
    path = Path(folder) / "cost.jsonl"
    if path.is_file():
        show([run_grid("cost", list(read_jsonl(path)))])


def run_grid(title: str, rows: Sequence[Row]) -> Grid:
    """One line a kind of stage, and their sum."""
    grid = Grid(title, COLUMNS, _lines(rows))
    reused = [r for r in rows if r["reused"]]
    if reused:
        grid.notes.append(f"{len(reused)} of {len(rows)} stages were taken from the cache, and are counted with what they took when they "
                          f"were made: {wall(sum(r['seconds'] for r in reused))}")
    grid.notes += _notes(rows)
    return grid


def stages_grid(spent: Sequence[tuple[FinishedRun, Sequence[Row]]]) -> Grid:
    """`run_grid` of several runs, one under the other."""
    grid = Grid("cost of each run, as if alone", COLUMNS)
    for name, (_, rows) in zip(labels([run for run, _ in spent]), spent, strict=True):
        grid.rows += [[name], *_lines(rows)]
    grid.notes += _notes([s.row for s in distinct(spent)])
    return grid


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line each kind of stage, and all together."""
    kinds = [(kind, stages_of(rows, kind)) for kind in ORDER]
    return [[kind, *_cells(own)] for kind, own in (*kinds, ("all", rows)) if own]


def _cells(rows: Sequence[Row]) -> list[str]:
    """n, wall, device-hours, tokens, FLOPs, MFU, memory, energy of some stages together."""
    sums = totals(rows)

    def text(name: str, form: Callable[[float], str]) -> str:
        return ("≥ " if f"{name}_reason" in sums else "") + form(sums[name]) if name in sums else MISSING

    timed = [r for r in rows if r.get("mfu") and r.get("flops")]
    mfu = f"{sum(r['flops'] for r in timed) / sum(r['flops'] / r['mfu'] for r in timed):.0%}" if timed else MISSING
    peak = sums.get("peak_gpu_gib", sums.get("peak_gib"))
    return [str(len(rows)), wall(sums["seconds"]), few(sums["device_hours"]), text("tokens", count), text("flops", count), mfu,
            MISSING if peak is None else f"{peak:.1f}", text("energy_kwh", lambda kwh: few(1000 * kwh))]


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the numbers are of, and why some are absent."""
    devices = dict.fromkeys((r["devices"], r["device"]) for r in rows if r.get("device"))
    notes = [f"measured on {', '.join(f'{n} × {name}' for n, name in devices)}; device-hours = devices × wall"] if devices else []
    meters = dict.fromkeys(r["energy_meter"] for r in rows if r.get("energy_meter"))
    notes += [f"energy: {', '.join(meters)}; whoever else uses it is in the number"] if meters else []
    for name, what in (("tokens", "tokens"), ("flops", "FLOPs"), ("energy_kwh", "energy"), ("peak_gib", "memory")):
        lacking = [r for r in rows if r.get(name) is None]
        reasons = dict.fromkeys(str(r.get(f"{name}_reason", "no reason given")) for r in lacking)
        if reasons:
            which = "" if len(lacking) == len(rows) else f" of {len(lacking)} of {len(rows)} stages"
            notes.append(f"absent: {what}{which}: {'; '.join(reasons)}")
    slow = [r for r in rows if r.get("flops")]
    if reasons := dict.fromkeys(str(r.get("mfu_reason", "no reason given")) for r in slow if r.get("mfu") is None):
        notes.append(f"absent: MFU of {sum(r.get('mfu') is None for r in slow)} of {len(slow)} stages with a model: {'; '.join(reasons)}")
    killed = [r["stage"] for r in rows if r.get("incomplete")]
    notes += [f"killed and continued, the last seconds before are not counted: {', '.join(killed)}"] if killed else []
    return notes


@dataclass(frozen=True)
class Used:
    """A stage and the runs that need it (their places in the list)."""

    row: Row
    runs: tuple[int, ...]


def distinct(spent: Sequence[tuple[FinishedRun, Sequence[Row]]]) -> list[Used]:
    """Every stage once, by its key, with what it took in the run that made it."""
    found: dict[str, list[tuple[int, Row]]] = {}
    for i, (_, rows) in enumerate(spent):
        for row in rows:
            found.setdefault(row["key"], []).append((i, row))
    return [Used(next((r for _, r in users if not r["reused"]), users[0][1]), tuple(i for i, _ in users)) for users in found.values()]


def together(spent: Sequence[tuple[FinishedRun, Sequence[Row]]]) -> Grid:
    """Each run alone, its own stages, and its share of those that others need too; the total counts every stage once."""
    stages, names = distinct(spent), labels([run for run, _ in spent])
    grid = Grid("cost of the runs together", ["run", "alone", "its own", "shared", "share of\nshared", "own +\nshare",
                                              "device-hours\nalone", "device-hours\nown + share"])
    sums = [0.0] * 2
    for i, name in enumerate(names):
        mine = [s for s in stages if i in s.runs]

        def add(key: str, chosen: Sequence[Used], shared: bool = False) -> float:
            return sum(s.row[key] / (len(s.runs) if shared else 1) for s in chosen)

        own, common = [s for s in mine if len(s.runs) == 1], [s for s in mine if len(s.runs) > 1]
        seconds = [*(add("seconds", chosen) for chosen in (mine, own, common)), add("seconds", common, True), add("seconds", mine, True)]
        hours = [add("device_hours", mine), add("device_hours", mine, True)]
        sums = [sums[0] + seconds[0], sums[1] + hours[0]]
        grid.rows.append([name, *map(wall, seconds), *map(few, hours)])
    total, device_hours = (sum(s.row[key] for s in stages) for key in ("seconds", "device_hours"))
    grid.rows.append(["all, each stage once", wall(sums[0]), "", "", "", wall(total), few(sums[1]), few(device_hours)])
    if total:
        grid.notes.append(f"alone = every stage that the run needs; share = a shared stage divided by the runs of this table that need it; "
                          f"together the runs took {total / sums[0]:.0%} of what they would have taken alone.")
    twice = sum(len({r["seconds"] for j in s.runs for r in spent[j][1] if r["key"] == s.row["key"]}) > 1 for s in stages)
    if twice:
        grid.notes.append(f"{twice} stage{'s' * (twice > 1)} made more than once (several caches): counted once, as first made.")
    return grid


def shared_stages(spent: Sequence[tuple[FinishedRun, Sequence[Row]]]) -> Grid:
    """The stages that several of the runs need, the longest first."""
    names = labels([run for run, _ in spent])
    found = sorted((s for s in distinct(spent) if len(s.runs) > 1), key=lambda s: -s.row["seconds"])
    grid = Grid("shared stages, each made once", ["stage", "kind", "runs", "used by", "wall", "device-hours", "energy\nWh"], left=(0, 1, 3),
                wrap=(0, 3))
    for s in (s for s in found if s.row["seconds"] >= SMALL):
        users, row = "all" if len(s.runs) == len(names) else ", ".join(names[i] for i in s.runs), s.row
        energy = few(1000 * row["energy_kwh"]) if is_number(row.get("energy_kwh")) else MISSING
        grid.rows.append([row["stage"], row["kind"], str(len(s.runs)), users, wall(row["seconds"]), few(row["device_hours"]), energy])
    if small := [s for s in found if s.row["seconds"] < SMALL]:
        grid.notes.append(f"and {len(small)} of less than {SMALL:.0f} s each, together {wall(sum(s.row['seconds'] for s in small))}")
    return grid


def labels(runs: Sequence[FinishedRun]) -> list[str]:
    """A short name for each run: the method, and as much besides as tells it from the others."""
    parts: list[Callable[[FinishedRun], str]] = [
        lambda r: r.method if r.trained else f"evaluate {r.backbone}",
        lambda r: ",".join(r.langs) if len(r.langs) < 4 else f"{len(r.langs)} languages",
        lambda r: f"from {r.source}", lambda r: r.backbone, lambda r: f"s{r.seed}", lambda r: r.name.rsplit("-", 1)[-1]]
    names = [parts[0](r) for r in runs]
    for part in parts[1:]:
        alike = [{part(r) for r, other in zip(runs, names, strict=True) if other == name} for name in names]
        names = [f"{name} {part(r)}" if len(parts_) > 1 else name for name, r, parts_ in zip(names, runs, alike, strict=True)]
    return names


def wall(seconds: float) -> str:
    """``<0.1 s``, ``0.4 s``, ``38 s``, ``12.5 min``, ``3.2 h``."""
    if 0 < seconds < 0.05:
        return "<0.1 s"
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 9.95 or not seconds else 1}f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def count(value: float) -> str:
    """``812``, ``1.24 M``, ``3.10 P``."""
    size, unit = next(((size, unit) for size, unit in UNITS if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g} {unit}".strip() if unit else f"{value:.0f}"
