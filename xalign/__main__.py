"""The command line: compose, check, plan, run. Nothing here imports torch."""
from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from xalign.cache import digest_of, disk_error, write_json
from xalign.compose import check_launcher, complete, explain, help_text, package_folder
from xalign.config import XalignError, make_run
from xalign.terminal import fail

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error",
         "TOKENIZERS_PARALLELISM": "false",
         "DS_LOG_LEVEL": "error", "HYDRA_FULL_ERROR": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


COMMANDS = {"compare": "xalign.compare", "report": "xalign.report.__main__", "contamination": "xalign.data.contamination"}

_raised: list[BaseException] = []


def guarded(work: Any) -> int:
    """Run `work` and turn whatever it raises into one line and an exit code (2: mend it; 130: Ctrl-C; 1: our bug)."""
    try:
        work()
        return 0
    except XalignError as e:
        fail(str(e))
        return 2
    except KeyboardInterrupt:
        fail("interrupted; finished stages are kept, repeat the command to continue")
        return 130
    except OSError as e:
        fail(str(disk_error(e, Path.cwd())))
        return 2
    except Exception as e:  # a bug of ours: the user gets a line, we get the traceback
        if "No space left on device" in str(e):  # torch and safetensors wrap the disk's error in their own types
            fail(str(disk_error(OSError(errno.ENOSPC, "No space left on device"), Path.cwd())))
            return 2
        log = Path("xalign-error.log")
        with contextlib.suppress(OSError):
            log.write_text(traceback.format_exc(), encoding="utf-8")
        if os.environ.get("XALIGN_DEBUG"):
            traceback.print_exc()
        fail(f"unexpected {type(e).__name__}: {e} (traceback in {log}; please report it)")
        return 1


def job(config: Any) -> None:
    """Hydra's task function: one composed configuration. In a sweep a failure is recorded, not raised."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from xalign.training import ranks

    hydra = HydraConfig.get()
    several = hydra.mode == RunMode.MULTIRUN and "submitit" in hydra.launcher._target_ and ranks.adopt_tasks()
    if several and ranks.is_helper():  # a job of several tasks calls this in each
        if code := guarded(ranks.serve):
            sys.exit(code)
        return

    def work() -> None:
        run = make_run(OmegaConf.to_container(config, resolve=True), dict(hydra.runtime.choices))  # type: ignore[arg-type]
        from xalign.pipeline import execute

        done["folder"] = str(execute(run))

    done: dict[str, Any] = {"overrides": list(hydra.overrides.task), "code": None, "error": None}
    if hydra.mode == RunMode.RUN:
        try:  # Hydra prints a line of its own about whatever passes through it
            work()
        except BaseException as e:
            _raised.append(e)
        return
    print(f"\n━━ job {hydra.job.num}: {' '.join(hydra.overrides.task)}", flush=True)

    def noted() -> None:
        try:
            work()
        except Exception as e:
            if type(e).__module__.startswith("submitit"):  # the job's time is up, and it is not queued again
                e = XalignError(f"{e} Repeat the command to continue.")
            done["error"] = str(e) if isinstance(e, XalignError) else f"unexpected {type(e).__name__}: {e}"
            raise e

    result = Path(hydra.sweep.dir) / f"job-{hydra.job.num:03d}.json"
    write_json(result, done)  # what is left of a job that is killed
    done["code"] = guarded(noted)
    write_json(result, done)
    if done["code"] == 130:
        raise KeyboardInterrupt
    if several and not ranks.release() and done["code"]:
        sys.exit(done["code"])  # what the others wait for will not come


def sweep_summary(folder: Path, again: str) -> None:
    """After a sweep: one comparison table, then the jobs that failed with the command that repeats each: `again` and its overrides."""
    from xalign.report.comparison import print_comparison

    jobs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("job-*.json"))]
    folders = [Path(j["folder"]) for j in jobs if j.get("folder") and (Path(j["folder"]) / "rows.jsonl").is_file()]
    if folders:
        print_comparison(folders)
    failed = [j for j in jobs if j["code"] != 0]
    for j in failed:
        reason = j["error"] or ("was killed, or still runs" if j["code"] is None else "see above")
        fail(f"failed: {reason}; repeat with: {again} {' '.join(j['overrides'])}")
    if failed:
        raise XalignError(f"{len(failed)} of {len(jobs)} jobs failed; the finished ones are kept")


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """(overrides, hydra flags) of a command line."""
    overrides = [a for a in argv if "=" in a and not a.startswith("-") or a.startswith("~")]
    return overrides, [a for a in argv if a not in overrides]


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m xalign`` and of the console script; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    overrides, flags = split_arguments(argv)
    try:
        overrides = complete(overrides)
    except XalignError as e:
        fail(str(e))
        return 2
    multirun = bool({"-m", "--multirun"} & set(flags))
    experiments = package_folder("experiments")
    sys.argv = ["xalign", *flags, *overrides, f"hydra.searchpath=[file://{experiments.parent}]"]
    if multirun:
        runs = next((o.split("=", 1)[1] for o in overrides if o.startswith("runs=")), "runs")
        sweep = Path(runs) / "sweeps" / digest_of(sorted(overrides))[:12]
        os.environ["XALIGN_SWEEP"] = str(sweep.resolve())

    def work() -> None:
        import hydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        for stray in flags:
            if not stray.startswith("-") and flags[flags.index(stray) - 1] not in ("--config-dir", "-cd", "--config-name", "-cn"):
                raise XalignError(f"{stray}: not understood; write key=value (see --help)")
        launcher = check_launcher(overrides, multirun)
        lost = None
        try:
            if multirun:
                for old in sweep.glob("job-*.json"):
                    old.unlink()
            if launcher.startswith("submitit"):
                print(f"the jobs start through {launcher} and write to {sweep / '.submitit'}", flush=True)
            hydra.main(version_base="1.3", config_path=str(package_folder("conf")), config_name="config")(job)()
        except (HydraException, OmegaConfBaseException) as e:
            raise explain(e, overrides) from None
        except Exception as e:
            if not type(e).__module__.startswith("submitit"):
                raise
            lost = e  # a job could not be started, or died without a word
        if _raised:
            raise _raised.pop()
        if multirun:
            again = ["-m", *(o for o in overrides if o.startswith("hydra"))] if launcher else []
            sweep_summary(sweep, " ".join(["python -m xalign", *again]))
        if lost:
            raise XalignError(f"hydra/launcher={launcher}: {lost}")

    from xalign.training import ranks

    if ranks.place()[1] == 1:
        return guarded(work)
    if ranks.is_helper():  # torchrun: the first process runs everything, the others help where they can
        return guarded(ranks.serve)
    code = 0
    try:
        code = guarded(work)
        return code
    finally:
        if code != 130:  # else they are interrupted too
            ranks.release()


if __name__ == "__main__":
    sys.exit(main())
