"""The command line: compose, check, plan, run. Nothing here imports torch."""
from __future__ import annotations

import importlib
import os
import sys

from xalign.compose import check_launcher, complete, help_text
from xalign.terminal import guarded, prepare, reading, stoppable

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error",
         "TOKENIZERS_PARALLELISM": "false",
         "DS_LOG_LEVEL": "error", "HYDRA_FULL_ERROR": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


COMMANDS = {"compare": "xalign.compare", "report": "xalign.report.__main__", "contamination": "xalign.data.contamination",
            "study": "xalign.studies.__main__", "allocate": "xalign.studies.allocate",
            "push": "xalign.push", "dashboard": "xalign.dashboard"}


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m xalign`` and of the console script; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if code := guarded(prepare):
        return code
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
    if {"-h", "--help"} & set(argv):
        return reading(lambda: print(help_text()))
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)

    def work() -> None:
        from xalign.commandline import arguments, show

        given = arguments(argv)
        full = complete(given.overrides)
        check_launcher(full, given.multirun)
        if given.shows:
            show(argv, full, given.flags)
        elif given.multirun:
            from xalign.sweep import run_sweep

            run_sweep(full, given.flags)
        else:
            run_one(full, given.flags)

    from xalign.training import ranks

    code = guarded(ranks.place)  # variables that a launcher sets, and sets to nonsense when it is set up wrongly
    if code:
        return code
    if ranks.place()[1] == 1:
        with stoppable():
            return guarded(work)
    if ranks.is_helper():  # torchrun: the first process runs everything, the others help where they can
        return guarded(ranks.serve)
    try:
        with stoppable():
            code = guarded(work)
        return code
    finally:
        if code < 128:  # else they are stopped too
            ranks.release()


def run_one(overrides: list[str], flags: dict[str, str]) -> None:
    """One run, composed from the command line.

    Raises:
        XalignError: whatever the user can mend.
    """
    from xalign.commandline import compose_run

    run = compose_run(overrides, flags)
    from xalign.pipeline import execute

    folder = execute(run)
    if run.study.name and not run.study.sweeps and not run.plan:
        from xalign.studies.base import FOLDER, show_study

        show_study(run.study, [folder], folder / FOLDER / run.study.name)


if __name__ == "__main__":
    sys.exit(main())
