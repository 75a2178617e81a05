"""Sweeps: every combination is composed, checked and planned before the first one starts; what is finished is not started again.

The folder of a sweep, ``runs/sweeps/<digest of the command>``, holds ``sweep.json`` (the jobs' overrides) and ``job-NNN.json``
(how each ended). No torch here: jobs load it.
"""
from __future__ import annotations

import itertools
import json
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from xalign.cache import Cache, Stage, locked
from xalign.commandline import checked, search_path
from xalign.compose import explain, package_folder
from xalign.config import ConfigError, Run, XalignError
from xalign.digests import digest_of, write_json
from xalign.launch import launch, result_path, run_here
from xalign.plan import clock, console, finished, make_plan, run_folder
from xalign.terminal import fail

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class Job:
    """One combination of a sweep; `error` says why it cannot be composed or planned."""

    number: int
    overrides: list[str]
    name: str = ""
    error: str = ""
    run: Run | None = None
    folder: Path = Path()
    cache: Cache = field(default_factory=lambda: Cache("."))
    stages: list[Stage] = field(default_factory=list)
    done: bool = False

    def missing(self) -> dict[str, float]:
        """Key → estimated seconds of the stages that are not cached."""
        return {s.key: s.seconds for s in self.stages if not self.cache.has(s)}


def grid(texts: Sequence[str], loader: Any = None) -> list[list[str]]:
    """The combinations of a sweep's overrides, each as a list of overrides; of a key given twice the last value counts."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found: dict[str, list[str]] = {}
    for o in OverridesParser.create(config_loader=loader).parse_overrides(list(texts)):
        key = o.get_key_element()
        if not o.is_sweep_override():
            found[key] = [f"{key}={o.get_value_element_as_str()}"]
        elif o.is_discrete_sweep():
            found[key] = [f"{key}={value}" for value in o.sweep_string_iterator()]
        else:
            raise ConfigError(f"{o.input_line}: a sweep takes lists, as in {key}=1,2,3 or {key}=range(1,4)")
    return [list(c) for c in itertools.product(*found.values())]


def combinations(sweeper: Mapping[str, Any], given: Sequence[str], loader: Any = None) -> list[list[str]]:
    """The jobs of an experiment's sweep, each once: all combinations of its `params` with the first of its `variants`, then the next.

    Args:
        sweeper: the node ``hydra.sweeper``; a variant is a text of overrides as on a command line.
        given: the command line's overrides, which take the place of the file's.
    Raises:
        ConfigError: a variant cannot be read as overrides.
    """
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    found: dict[frozenset[str], list[str]] = {}
    for text in sweeper.get("variants") or [""]:
        try:
            own = shlex.split(text) if isinstance(text, str) else [""]
        except ValueError:  # a quotation mark too many
            own = [""]
        if any(part.find("=") < 1 for part in own):
            raise ConfigError(f"hydra.sweeper.variants: {text}: is no text of overrides, such as 'method.code_switch=0 seed=1'")
        for job in grid([*params, *own, *given], loader):
            found.setdefault(frozenset(job), job)
    return list(found.values())


def compose(overrides: list[str], flags: dict[str, str]) -> tuple[list[Job], DictConfig, Any]:
    """(jobs, the sweep's own configuration, Hydra's loader), inside Hydra's context.

    The sweep is the command line's over that of the experiment (``hydra.sweeper``, see `combinations`).
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    search = search_path(flags.get("--config-dir", ""))
    loader = GlobalHydra.instance().config_loader()
    try:
        main = loader.load_configuration(flags.get("--config-name", "config"), [*overrides, search], RunMode.MULTIRUN)
        jobs = [Job(i, c) for i, c in enumerate(combinations(main.hydra.sweeper, main.hydra.overrides.task, loader), 1)]
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, KeyError) as e:
        raise e if isinstance(e, XalignError) else explain(e, overrides, flags.get("--config-dir", "")) from None
    if not jobs:
        raise ConfigError("the sweep has no job: nothing matches its glob(...); write the values, as in method=sft,t_sft")
    same = set[str].intersection(*(set(job.overrides) for job in jobs))
    plans: dict[str, Cache] = {}
    for job in jobs:
        job.name = " ".join(o for o in job.overrides if o not in same) or " ".join(job.overrides)
        try:
            config = loader.load_sweep_config(main, job.overrides)
            if config.hydra.sweeper != main.hydra.sweeper:
                raise ConfigError(f"{job.name}: defines a sweep of its own (hydra.sweeper); sweep one such experiment at a time")
            HydraConfig.instance().set_config(config)
            choices = dict(config.hydra.runtime.choices)
            with open_dict(config):
                del config["hydra"]
            job.run = checked(config, choices)
            plan = make_plan(job.run)
            job.folder, job.stages = run_folder(job.run, plan), plan.stages()
            job.cache = plans.setdefault(job.run.cache, Cache(job.run.cache))
            job.done = finished(plan, job.cache, job.folder)
        except XalignError as e:
            job.error = str(e)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, KeyError) as e:
            job.error = str(explain(e, job.overrides, flags.get("--config-dir", "")))
    return jobs, main, loader


def refuse_useless(jobs: Sequence[Job]) -> None:
    """Raise the error of a value with which no job can run: it is misspelt, or fits nothing here.

    A value that fits some jobs stays: a method that refuses one backbone of two makes a job that fails, not a sweep that does.

    Raises:
        ConfigError: the first such error.
    """
    for bad in (job for job in jobs if job.error):
        for o in bad.overrides:
            if all(job.error for job in jobs if o in job.overrides):
                raise ConfigError(bad.error)


def seconds_left(jobs: Iterable[Job]) -> float:
    """Estimated seconds of what `jobs` still need, stages that they share counted once."""
    return sum({key: s for job in jobs for key, s in job.missing().items()}.values())


def overview(jobs: Sequence[Job]) -> str:
    """One line: jobs, stages, what is cached, the time of the rest and what it would be if each job ran alone."""
    every = [(s.key, job.cache.has(s)) for job in jobs for s in job.stages]
    distinct = dict(every)
    left, alone = seconds_left(jobs), sum(sum(job.missing().values()) for job in jobs)
    done = sum(job.done for job in jobs)
    parts = [f"{len(jobs)} job{'s' * (len(jobs) > 1)}: {len(every)} stages, {len(distinct)} distinct, {sum(distinct.values())} cached"]
    if left:
        parts.append(f"about {clock(left)} on two CPU cores" + f", {clock(alone)} if every job ran alone" * (clock(alone) != clock(left)))
    if done:
        parts.append(f"{done} job{'s' * (done > 1)} finished earlier")
    return "; ".join(parts)


def print_sweep(jobs: Sequence[Job]) -> None:
    """The plan of a sweep: one row a job. `new` are the stages that no job before it needs."""
    out, seen = console(), set[str]()
    table = Table(box=None, pad_edge=False)
    for column, justify in (("job", "right"), ("", "left"), ("stages", "right"), ("cached", "right"), ("new", "right"),
                            ("alone", "right"), ("in this sweep", "right"), ("results", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for job in jobs:
        missing = job.missing()
        new = {k: s for k, s in missing.items() if k not in seen}
        seen |= set(missing)
        if job.error:
            table.add_row(str(job.number), Text(job.name), "", "", "", "", "", "cannot run, see below")
            continue
        state = "finished" if job.done else "~" + clock(sum(new.values()))
        table.add_row(str(job.number), Text(job.name), str(len(job.stages)), str(len(job.stages) - len(missing)), str(len(new)),
                      "~" + clock(sum(missing.values())) if missing else "", state, job.folder.name)
    out.print(table)


def command(overrides: Iterable[str], flags: dict[str, str], launcher: Iterable[str] = ()) -> str:
    """What repeats one job, quoted for a shell; on a cluster through its launcher."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    program = ["torchrun", "--nproc-per-node", str(world), "-m", "xalign"] if world > 1 else ["python", "-m", "xalign"]
    more = [part for pair in flags.items() for part in pair]
    return shlex.join([*program, *more, *(["-m", *launcher] if launcher else []), *overrides])


@dataclass
class Sweep:
    """A sweep that is carried out: its folder, and its jobs as their files say."""

    folder: Path
    jobs: list[Job]
    flags: dict[str, str]
    began: float = field(default_factory=time.time)
    estimate: float = 0.0

    def path(self, number: int) -> Path:
        """The file that says how a job went."""
        return result_path(self.folder, number)

    def entry(self, job: Job) -> dict[str, Any]:
        """How a job went; empty if it was never started."""
        try:
            return dict(json.loads(self.path(job.number).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def begin(self) -> list[Job]:
        """Forget the last time, note what is finished and what cannot run; returns the jobs to start.

        A job that was killed the last time comes last: it may kill this process too, and the others come first.
        """
        last = {}
        for old in self.folder.glob("job-*.*"):
            with suppress(OSError, ValueError, TypeError, KeyError):  # a log, or damaged: it only says which jobs to start last
                told = json.loads(old.read_text(encoding="utf-8"))
                last[tuple(told["overrides"])] = told["code"]
            old.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", {"flags": [part for pair in self.flags.items() for part in pair], "jobs": [
            {"overrides": job.overrides, "name": job.name, "folder": str(job.folder)} for job in self.jobs]})
        for job in self.jobs:
            if job.done or job.error:
                write_json(self.path(job.number), {"overrides": job.overrides, "code": 2 if job.error else 0, "error": job.error or None,
                                                   "folder": str(job.folder) if job.done else None, "seconds": 0})
        self.estimate = seconds_left(self.jobs)
        waiting = [job for job in self.jobs if not (job.done or job.error)]
        return sorted(waiting, key=lambda job: last.get(tuple(job.overrides), 0) in (None, -9))

    def left(self) -> str:
        """``; about 20 min left``: the estimate for what is missing, at the pace of what this sweep has done."""
        missing = seconds_left(job for job in self.jobs if not job.done)
        done, spent = self.estimate - missing, time.time() - self.began
        pace = spent / done if done > 0.05 * self.estimate and spent > 20 else 1.0
        return f"about {clock(missing * pace)} left"

    def summary(self, again: Sequence[str]) -> None:
        """One comparison table, then the jobs that failed with the command that repeats each; `again`: the launcher's overrides.

        Raises:
            XalignError: a job failed.
        """
        from xalign.report.comparison import print_comparison

        entries = [(job, self.entry(job)) for job in self.jobs]
        folders = [Path(e["folder"]) for _, e in entries if e.get("code") == 0 and e.get("folder")]
        if folders:
            print_comparison(list(dict.fromkeys(folders)))
        failed = [(job, e) for job, e in entries if e.get("code") != 0]
        self.studied([(job.run, Path(e["folder"])) for job, e in entries if job.run and e.get("code") == 0 and e.get("folder")],
                     bool(failed))
        for job, e in failed:
            reason = "was never started" if not e else e["error"] or ("was killed, or still runs" if e["code"] is None else "see above")
            fail(f"job {job.number} failed: {reason}; repeat with: {command(job.overrides, self.flags, again)}")
        if failed:
            raise XalignError(f"{len(failed)} of {len(entries)} jobs failed; the finished ones are kept")


    def studied(self, runs: Sequence[tuple[Run, Path]], incomplete: bool) -> None:
        """What the chosen study makes of all finished jobs together, into the sweep's folder.

        Raises:
            XalignError: it cannot be made, and all jobs are there (else they come first).
        """
        from xalign.studies.base import show_study

        studies = {repr(run.study): run.study for run, _ in runs if run.study.name}
        for number, (key, study) in enumerate(studies.items(), 1):
            out = self.folder / (study.name if len(studies) == 1 else f"{study.name}-{number}")
            try:
                show_study(study, [folder for run, folder in runs if repr(run.study) == key], out)
            except XalignError as e:
                if not incomplete:
                    raise
                fail(str(e))


def run_sweep(overrides: list[str], flags: dict[str, str]) -> None:
    """Compose, check and plan all jobs, run those that are not finished, and print one table.

    Args:
        overrides: the command line's, completed.
        flags: ``--config-dir`` and ``--config-name`` where they are given.
    Raises:
        XalignError: a value that no job can use, before anything is started; or jobs that failed, after the others.
    """
    from hydra import initialize_config_dir

    folder = sweep_folder(overrides)
    os.environ["XALIGN_SWEEP"] = str(folder.resolve())
    with initialize_config_dir(version_base="1.3", config_dir=str(package_folder("conf")), job_name="xalign"):
        jobs, main, loader = compose(overrides, flags)
        refuse_useless(jobs)
        if any(job.run and job.run.plan for job in jobs):
            print_sweep(jobs)
            print(f"\n{overview(jobs)}")
            if bad := [job for job in jobs if job.error]:
                for job in bad:
                    fail(f"job {job.number} cannot run: {job.error}")
                raise XalignError(f"{len(bad)} of {len(jobs)} jobs cannot run; the others can")
            return
        print(overview(jobs), flush=True)
        for job in (job for job in jobs if job.error):
            print(f"left out: job {job.number}, {job.name}: {job.error}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", lambda: print("another process runs this sweep; waiting …", flush=True)):
            sweep = Sweep(folder, jobs, flags)
            waiting = sweep.begin()
            publish(job for job in jobs if job.done)
            if "basic" in main.hydra.launcher._target_:
                run_here(sweep, waiting)
            elif waiting:
                launch(sweep, waiting, main, loader)
            sweep.summary([o for o in overrides if o.startswith("hydra") and "submitit" in main.hydra.launcher._target_])


def sweep_folder(overrides: Sequence[str]) -> Path:
    """``runs/sweeps/<digest>``: the same for the same command."""
    runs = next((o.split("=", 1)[1] for o in overrides if o.startswith("runs=")), "runs")
    return Path(runs) / "sweeps" / digest_of(sorted(overrides))[:12]


def publish(jobs: Iterator[Job]) -> None:
    """Finished runs that the chosen tracker has not got yet."""
    from xalign.tracking import record

    for job in jobs:
        if job.run:
            record.publish(job.run, make_plan(job.run), job.cache, job.folder, lambda line: print(line, flush=True))
