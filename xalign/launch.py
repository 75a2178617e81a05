"""How the jobs of a sweep are started: one after the other here, or through Hydra's launchers (joblib, submitit).

Each job writes ``job-NNN.json`` when it starts and when it ends, so a job that is killed leaves word too. No torch here.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.commandline import checked
from xalign.config import XalignError
from xalign.digests import write_json
from xalign.safe import hide
from xalign.terminal import Stopped, guarded, mendable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xalign.sweep import Job, Sweep


def result_path(folder: Path, number: int) -> Path:
    """``job-007.json``: how job 7 of a sweep went."""
    return folder / f"job-{number:03d}.json"


def run_here(sweep: Sweep, jobs: Sequence[Job]) -> None:
    """One job after the other in this process; a failure is noted, not raised."""
    from xalign.pipeline import execute

    for job in jobs:
        print(f"\n━━ job {job.number} of {len(sweep.jobs)}: {job.name} ({sweep.left()})", flush=True)
        code = attempt(sweep.path(job.number), job.overrides, lambda run=job.run: execute(run))  # type: ignore[misc]
        job.done = True
        if code > 128:
            raise Stopped(code - 128, told=True)


def attempt(path: Path, overrides: list[str], work: Callable[[], Path]) -> int:
    """Run `work`, which returns a run's folder, and write to `path` how it went; returns the exit code."""
    entry = started(path, overrides)

    def noted() -> None:
        try:
            entry["folder"] = str(work())
        except Exception as e:
            if type(e).__module__.startswith("submitit"):  # the job's time is up, and it is not queued again
                e = XalignError(f"{e} Repeat the command to continue.")
            entry["error"] = str(mendable(e) or hide(f"unexpected {type(e).__name__}: {e}"))
            raise e
        except BaseException as e:  # Ctrl-C, or a signal; rich's end when nobody reads its output
            number = getattr(e, "number", signal.SIGINT)
            entry["error"] = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
            raise

    entry["code"] = guarded(noted)
    return ended(path, entry)


def started(path: Path, overrides: list[str], pid: int | None = None) -> dict[str, Any]:
    """The entry of a job that begins, in process `pid` (this one), written to `path`: all that is left of a job that is killed."""
    entry = {"overrides": overrides, "code": None, "error": None, "folder": None, "began": time.time(), "pid": pid or os.getpid()}
    write_json(path, entry)
    return entry


def ended(path: Path, entry: dict[str, Any]) -> int:
    """Write how a job went to `path`; returns its exit code."""
    entry["seconds"] = round(time.time() - entry["began"], 1)
    write_json(path, entry)
    return int(entry["code"])


def job(config: Any) -> None:
    """Hydra's task function: one job of a sweep in a process that a launcher started."""
    from hydra.core.hydra_config import HydraConfig

    from xalign.training import ranks

    hydra = HydraConfig.get()
    several = "submitit" in hydra.launcher._target_ and ranks.adopt_tasks()
    if several and ranks.is_helper():  # a job of several tasks calls this in each
        if code := guarded(ranks.serve):
            sys.exit(code)
        return
    folder, overrides = Path(hydra.sweep.dir), list(hydra.overrides.task)
    sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    number, facts = next((i, j) for i, j in enumerate(sweep["jobs"], 1) if j["overrides"] == overrides)
    if "joblib" in hydra.launcher._target_:
        watched_child(folder, number, [*sweep["flags"], *overrides], facts)
        return

    def work() -> Path:
        from xalign.pipeline import execute

        return execute(checked(config, dict(hydra.runtime.choices)))

    print(f"\n━━ job {number} of {len(sweep['jobs'])}: {facts['name']}", flush=True)
    code = attempt(result_path(folder, number), overrides, work)
    if code > 128:
        raise Stopped(code - 128, told=True)
    if several and not ranks.release() and code:
        sys.exit(code)  # what the others wait for will not come


def watched_child(folder: Path, number: int, argv: list[str], facts: dict[str, Any]) -> None:
    """The job in a process of its own, its output in ``job-NNN.log``.

    Not in joblib's worker: when one worker is killed (out of memory), joblib kills the others and their jobs too.
    """
    path = result_path(folder, number)
    log = path.with_suffix(".log")
    with open(log, "wb") as out, subprocess.Popen([sys.executable, "-m", "xalign", *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                                  env={**os.environ, "PYTHONUNBUFFERED": "1"}) as child:
        entry = started(path, facts["overrides"], child.pid)
        entry["code"] = child.wait()
    if entry["code"] == 0:
        entry["folder"] = facts["folder"]
    elif entry["code"] < 0:
        entry["error"] = killed(-entry["code"])
    else:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith("xalign: ")]
        entry["error"] = said[-1].removeprefix("xalign: ") if said else f"ended with exit code {entry['code']}, see {log}"
    ended(path, entry)


def killed(number: int) -> str:
    """Why a job is gone, from the signal that ended it."""
    return f"was killed by {signal.Signals(number).name}" + (" (out of memory?)" if number == signal.SIGKILL else "")


def launch(sweep: Sweep, jobs: Sequence[Job], main: DictConfig, loader: Any) -> None:
    """Start `jobs` through the launcher of `main` and wait for them, with a line whenever one starts or ends.

    Raises:
        XalignError: the launcher could start none of them.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    name = main.hydra.runtime.choices["hydra/launcher"]
    try:
        launcher = Plugins.instance().instantiate_launcher(HydraContext(config_loader=loader, callbacks=Callbacks()), job, main)
    except Exception as e:  # of many types: no plugin's class, a value that it does not take
        raise XalignError(f"hydra/launcher={name}: Hydra cannot make it ({type(e).__name__}: {e}); leave hydra.launcher._target_ as it is, "
                          "and set only keys that the launcher has") from None
    if "submitit" in main.hydra.launcher._target_:
        how = f"write to {sweep.folder / '.submitit'}"
    else:
        at_once = main.hydra.launcher.get("n_jobs", -1)
        how = f"run {'one a core' if at_once == -1 else f'{at_once} at once'} and write to {sweep.folder / 'job-NNN.log'}"
    print(f"the jobs start through {name} and {how}", flush=True)
    waiting, error = list(jobs), None
    with watching(sweep, jobs):
        while waiting:
            try:
                with patient_submitit(sweep, waiting):
                    launcher.launch([j.overrides for j in waiting], initial_job_idx=0)
                break
            except Exception as e:  # joblib: a worker was killed, and it gave up on all jobs
                left = [j for j in waiting if not sweep.entry(j)]
                if len(left) == len(waiting):
                    error = e
                    break
                waiting = left
    if error and not any(sweep.entry(j) for j in jobs):
        raise XalignError(f"hydra/launcher={name}: {error}")


@contextmanager
def patient_submitit(sweep: Sweep, jobs: Sequence[Job]) -> Iterator[None]:
    """Within this, submitit's jobs are all waited for: one that died is noted. (The launcher gives up on all at the first.)"""
    try:
        import submitit
    except ModuleNotFoundError:
        yield
        return

    def outcome(one: Any, job: Job) -> list[Any]:
        try:
            return [one.submitted_results()[0]]
        except Exception:
            entry = sweep.entry(job) or started(sweep.path(job.number), job.overrides)
            if entry["code"] is None:
                entry |= {"code": 1, "error": f"was killed, or could not start ({one.state.lower()}), see {one.paths.stderr}"}
                ended(sweep.path(job.number), entry)
            return [None]

    class Executor(submitit.AutoExecutor):
        def map_array(self, *args: Any) -> list[Any]:
            found = super().map_array(*args)
            for one, job in zip(found, jobs, strict=True):
                one.submitted_results = one.results
                one.results = lambda one=one, job=job: outcome(one, job)
            submitted.extend(found)
            return found

    submitted: list[Any] = []
    original, submitit.AutoExecutor = submitit.AutoExecutor, Executor
    try:
        yield
    except KeyboardInterrupt:
        for one in submitted:
            if type(one).__name__ == "LocalJob":  # a cluster's jobs go on
                one.cancel()
        raise
    finally:
        submitit.AutoExecutor = original


@contextmanager
def watching(sweep: Sweep, jobs: Sequence[Job]) -> Iterator[None]:
    """Within this, a thread prints a line whenever a job starts or ends."""
    stop = threading.Event()

    def watch() -> None:
        open_jobs, known = list(jobs), set[int]()
        while open_jobs:
            last = stop.is_set()
            for job in list(open_jobs):
                entry = sweep.entry(job)
                if entry and job.number not in known:
                    known.add(job.number)
                    print(f"job {job.number} of {len(sweep.jobs)} starts: {job.name}", flush=True)
                if entry and entry["code"] is not None:
                    job.done = True
                    open_jobs.remove(job)
                    how = "failed: " + " ".join(entry["error"].split()) if entry["code"] else f"done in {entry['seconds']:.0f} s"
                    count = sum(j.done for j in sweep.jobs)
                    rest = f", {sweep.left()}" if count < len(sweep.jobs) else ""
                    print(f"job {job.number} of {len(sweep.jobs)} {how} ({count} ended{rest})", flush=True)
            if last:
                return
            stop.wait(0.5)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
