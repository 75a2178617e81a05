"""The command line: compose, check, plan, run. Nothing here imports torch."""
from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from xalign.compose import check_launcher, complete, explain, help_text, package_folder
from xalign.config import XalignError, make_run
from xalign.terminal import guarded

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error",
         "TOKENIZERS_PARALLELISM": "false",
         "DS_LOG_LEVEL": "error", "HYDRA_FULL_ERROR": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


COMMANDS = {"compare": "xalign.compare", "report": "xalign.report.__main__", "contamination": "xalign.data.contamination",
            "study": "xalign.studies.__main__", "allocate": "xalign.studies.allocate",
            "push": "xalign.push", "dashboard": "xalign.dashboard"}

_raised: list[BaseException] = []


def job(config: Any) -> None:
    """Hydra's task function: one composed configuration."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    try:  # Hydra prints a line of its own about whatever passes through it
        run = make_run(OmegaConf.to_container(config, resolve=True), dict(HydraConfig.get().runtime.choices))  # type: ignore[arg-type]
        from xalign.pipeline import execute

        folder = execute(run)
        if run.study.name and not run.study.sweeps and not run.plan:
            from xalign.studies.base import FOLDER, show_study

            show_study(run.study, [folder], folder / FOLDER / run.study.name)
    except BaseException as e:
        _raised.append(e)


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """(overrides, hydra flags) of a command line."""
    overrides = [a for a in argv if "=" in a and not a.startswith("-") or a.startswith("~")]
    return overrides, [a for a in argv if a not in overrides]


def config_flags(flags: list[str]) -> dict[str, str]:
    """Of Hydra's flags those that say which configuration is read, by their long names.

    Raises:
        XalignError: something stands on the command line that is neither a flag nor an override.
    """
    names = {"-cd": "--config-dir", "-cn": "--config-name", "--config-dir": "--config-dir", "--config-name": "--config-name"}
    found, rest = {}, iter(flags)
    for flag in rest:
        name, _, value = flag.partition("=")
        if name in names:
            found[names[name]] = value or next(rest, "")
        elif not flag.startswith("-"):
            raise XalignError(f"{flag}: not understood; write key=value (see --help)")
    return found


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
    multirun = bool({"-m", "--multirun"} & set(flags))

    def work() -> None:
        config, full = config_flags(flags), complete(overrides)
        check_launcher(full, multirun)
        if multirun:
            from xalign.sweep import run_sweep

            run_sweep(full, config)
        else:
            run_one(full, flags)

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


def run_one(overrides: list[str], flags: list[str]) -> None:
    """One run, composed by Hydra from the command line.

    Raises:
        XalignError: whatever the user can mend.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    sys.argv = ["xalign", *flags, *overrides, f"hydra.searchpath=[file://{package_folder('experiments').parent}]"]
    try:
        hydra.main(version_base="1.3", config_path=str(package_folder("conf")), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as e:
        raise explain(e, overrides, config_flags(flags).get("--config-dir", "")) from None
    if _raised:
        raise _raised.pop()


if __name__ == "__main__":
    sys.exit(main())
