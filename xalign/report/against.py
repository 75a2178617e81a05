"""Our finished runs as the counterpart of a published table: which run stands for which row, its numbers, and what it did differently.

No torch: runs are read from their folders, experiments are composed with Hydra.
"""
from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from xalign.compose import package_folder
from xalign.config import XalignError
from xalign.report.runs import FinishedRun
from xalign.rows import Row, percent
from xalign.tables import is_number

GROUPS = ("backbone", "data", "translator", "trainer", "method", "filter", "parallel", "dictionary")  # parts of a run that make its scores
# keys, without their group, that say where and how fast something is computed, not what
NOT_THE_RESULT = {"path", "revision", "device", "engine", "micro_tokens", "zero", "offload", "attention", "compile", "packing",
                  "trust_remote_code", "activation_checkpointing", "checkpoint_every", "batch_tokens", "comet_python", "probe_prompts",
                  "probe_tokens"}
NAMED = {"backbone": "backbone.name", "translator": "translator.name"}  # groups whose model has a name of its own


@dataclass(frozen=True)
class Wanted:
    """What one published number is a score of; the fields are those of `score` in papers.yaml."""

    role: str
    task: str
    metric: str
    n: int = 0
    signature: str = ""
    theirs: str = ""

    def row(self, run: FinishedRun, lang: str) -> Row | None:
        """The run's row for a column `lang`: of that language, or of the source language after training for it."""
        if self.role == "source" and lang not in run.langs:
            return None
        task = self.task.replace("src", run.source).replace("tgt", lang)
        of, when = run.source if self.role == "source" else lang, "after" if run.trained else "before"
        return next((r for r in run.rows if (r["lang"], r["task"], r["metric"], r["when"]) == (of, task, self.metric, when)), None)

    @property
    def benchmark(self) -> str:
        return self.task.partition(":")[0]


@dataclass(frozen=True)
class Ours:
    """Our number beside a published one, in its unit.

    Attributes:
        se: over seeds (standard deviation / sqrt(k)) where there are two or more, else over items; None if unknown.
        n: items a seed (of several languages: the fewest).
        langs: the languages it is the mean of; `lacking`: those it ought to be the mean of too.
    """

    value: float
    se: float | None
    n: int
    seeds: tuple[int, ...]
    signature: str
    langs: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


@dataclass
class System:
    """One published row and the runs that stand for it.

    Attributes:
        spec: its `method` and the configuration keys that make it this row; None: no method of ours trains it.
        left_out: names of the runs of other configurations of the same row.
    """

    name: str
    spec: Mapping[str, Any] | None
    runs: list[FinishedRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """One thing that a run did not do as the paper or the experiment's file says."""

    what: str
    theirs: str
    ours: str

    def __str__(self) -> str:
        return f"{self.what} {self.ours} instead of {self.theirs}"


def fits(run: FinishedRun, spec: Mapping[str, Any]) -> bool:
    """True if a run is of this row: its method and every configuration key; from English, where the row does not say otherwise."""
    known = {"source": run.source, "method": run.method}
    return all(_same(known.get(key, run.config.get(key)), value) for key, value in {"source": "eng", **spec}.items())


def _same(a: Any, b: Any) -> bool:
    """Equal as configuration values: 2e-5 and 0.00002, [mt, comp] and [comp, mt]."""
    if isinstance(a, list) and isinstance(b, list):
        return sorted(map(str, a)) == sorted(map(str, b))
    return math.isclose(a, b) if is_number(a) and is_number(b) else str(a).lower() == str(b).lower()


def choose(system: System, runs: Sequence[FinishedRun], wanted: Sequence[Wanted], experiment: str) -> None:
    """Find the runs of one row. Of several configurations the one nearest to the experiment's file is taken."""
    if system.spec is None:
        return
    tasks = {w.benchmark for w in wanted}
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        if fits(run, system.spec) and any(r["task"].partition(":")[0] in tasks for r in run.rows):
            identity = run.model("after" if run.trained else "before").identity
            groups.setdefault(json.dumps(identity, sort_keys=True, default=str), []).append(run)
    order = sorted(groups.values(), key=lambda g: (len(from_experiment(g[0], experiment, system.spec, tasks)), -len(g)))
    system.runs = order[0] if order else []
    system.left_out = [r.folder.name for g in order[1:] for r in g]


def number_of(system: System, wanted: Wanted, lang: str, unit: str) -> Ours | None:
    """The mean over seeds of one row's runs in one column; None where no run has it."""
    by_seed: dict[int, list[Row]] = {}
    for run in system.runs:
        row = wanted.row(run, lang)
        if row is not None and is_number(row["value"]):
            by_seed.setdefault(run.seed, []).append(row)
    if not by_seed:
        return None
    scale = (1 if percent(wanted.metric) else 100) * (1 if unit == "percent" else 0.01)
    values = [statistics.fmean(r["value"] for r in rows) for rows in by_seed.values()]
    first = next(iter(by_seed.values()))[0]
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else first.get("se")
    n = min(r["n"] for rows in by_seed.values() for r in rows)
    return Ours(statistics.fmean(values) * scale, se * scale if is_number(se) else None, n, tuple(sorted(by_seed)),
                first.get("signature") or "", (lang,))


def minus(a: Ours | None, b: Ours | None) -> Ours | None:
    """a - b; the two errors as if independent, which is too large where the items are the same."""
    if a is None or b is None:
        return None
    se = math.hypot(a.se, b.se) if a.se is not None and b.se is not None else None
    return Ours(a.value - b.value, se, min(a.n, b.n), tuple(sorted({*a.seeds, *b.seeds})), a.signature, a.langs)


def mean(parts: Sequence[Ours], lacking: Sequence[str] = ()) -> Ours:
    """The mean of independent numbers."""
    se = math.sqrt(sum(p.se**2 for p in parts)) / len(parts) if all(p.se is not None for p in parts) else None  # type: ignore[operator]
    return Ours(statistics.fmean(p.value for p in parts), se, min(p.n for p in parts), tuple(sorted({s for p in parts for s in p.seeds})),
                parts[0].signature, tuple(dict.fromkeys(lang for p in parts for lang in p.langs)), tuple(lacking))


def from_paper(run: FinishedRun, setting: Mapping[str, Any]) -> list[Difference]:
    """Where a run leaves the setting that the paper states: `backbone`, `translator` (part of the model's name), `data` and plain keys."""
    found = []
    for key, theirs in setting.items():
        ours = _named(run, key) if key in NAMED else run.config.get(f"choices.{key}" if key in GROUPS else key)
        same = str(theirs).lower() in str(ours).lower() if key in NAMED else _same(ours, theirs)
        if not same and ours is not None:
            found.append(Difference(key, str(theirs), str(ours)))
    return found


def _named(run: FinishedRun, group: str) -> str:
    """The model's name, or the choice where the model is known by that."""
    choice = run.backbone if group == "backbone" else run.config.get(f"choices.{group}", "not recorded")
    return str(run.config.get(NAMED[group]) or choice)


def from_experiment(run: FinishedRun, experiment: str, spec: Mapping[str, Any], tasks: Collection[str]) -> list[Difference]:
    """Where a run leaves what experiments/EXPERIMENT.yaml composes to; empty where there is no such file or the run has no config.yaml."""
    composed = compose(experiment, tuple(sorted((k, json.dumps(v)) for k, v in spec.items())))
    if not composed or not run.config:
        return []
    found = []
    for group in GROUPS:
        a, b = composed.get(f"choices.{group}"), run.config.get(f"choices.{group}")
        model = NAMED.get(group, "")
        if a != b and b is not None:
            found.append(Difference(group, str(composed.get(model) or a), str(run.config.get(model) or b)))
            continue
        found += _keys(composed, run.config, f"{group}.")
    for task in sorted(tasks):
        found += _keys(composed, run.config, f"task.{task}.")
    return found


def _keys(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str) -> list[Difference]:
    """Differences among the keys that both have."""
    found = []
    for key in theirs:
        if key.startswith(prefix) and key in ours and key.rpartition(".")[2] not in NOT_THE_RESULT and not _same(theirs[key], ours[key]):
            a, b = str(theirs[key]), str(ours[key])
            if key not in NAMED.values() or a.rpartition("/")[2].lower() != b.rpartition("/")[2].lower():  # a local copy of the same model
                found.append(Difference(key, a, b))
    return found


@lru_cache(maxsize=64)
def compose(experiment: str, spec: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """An experiment's configuration for one row as dotted keys; empty if it has no file. ``lang`` are all languages of its sweep.

    Raises:
        XalignError: the file, or the row's keys with it, cannot be composed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    folder = package_folder("experiments")
    if not (folder / f"{experiment}.yaml").is_file():
        return {}
    keys = [f"{key}={value}".replace('"', "") for key, value in spec]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(package_folder("conf")), version_base="1.3"):
            overrides = [f"experiments={experiment}", *keys, f"hydra.searchpath=[file://{folder.parent}]"]
            config = hydra_compose("config", overrides, return_hydra_config=True)
        out = _flat(OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "hydra"])), "")
    except (HydraException, OmegaConfBaseException, YAMLError) as e:
        with_keys = f" with {' '.join(keys)}" if keys else ""
        raise XalignError(f"experiments/{experiment}.yaml: cannot be composed{with_keys} ({' '.join(str(e).split())[:300]})") from None
    chosen = {f"choices.{k}": v for k, v in config.hydra.runtime.choices.items()}
    return out | chosen | {"lang": (config.hydra.sweeper.get("params") or {}).get("lang") or out["lang"]}


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, part in value.items() for k, v in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}


def from_test(wanted: Wanted, laboratory: Wanted | None, ours: Sequence[Ours]) -> list[Difference]:
    """Where the scores themselves are not of the same kind: other items, another metric, another recipe.

    Args:
        wanted: what the paper measured; `laboratory`: what stands for it, None where it is the same task.
    """
    counts = dict.fromkeys(o.n for o in ours)
    n = "–".join(f"{c:,}" for c in (sorted(counts) if len(counts) < 2 else (min(counts), max(counts))))
    said = f"{wanted.benchmark}{f', {wanted.n:,} items' if wanted.n else ''}"
    if laboratory is not None:
        return [Difference("test", said, f"{laboratory.benchmark} of the laboratory, {n} items"),
                Difference("metric", wanted.theirs or wanted.metric.removesuffix("_raw"), laboratory.metric)]
    found = [Difference("test", said, f"{n} items")] if wanted.n and set(counts) != {wanted.n} else []
    if wanted.theirs:
        found.append(Difference(f"{wanted.benchmark} metric", wanted.theirs, wanted.metric))
    other = next((o.signature for o in ours if wanted.signature and wanted.signature not in o.signature), "")
    return [*found, Difference(f"{wanted.metric} signature", wanted.signature, other)] if other else found
