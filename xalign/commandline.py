"""The command line: its flags, what is refused before anything is composed, and the one run it asks for. No torch."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from xalign.compose import explain, offered, package_folder, read, unresolved
from xalign.config import ConfigError, Run, make_run
from xalign.values import among, shown


@dataclass(frozen=True)
class Arguments:
    """A command line that can be read.

    Attributes:
        overrides: ``key=value``, as typed.
        flags: ``--config-dir`` and ``--config-name`` where they are given.
        multirun: a sweep.
        shows: Hydra is to print something (``--cfg job``, ``--info`` ...) instead of running.
    """

    overrides: list[str]
    flags: dict[str, str]
    multirun: bool
    shows: bool


def arguments(argv: Sequence[str]) -> Arguments:
    """The flags and overrides in `argv`.

    Raises:
        ConfigError: a flag that is not known, a word that is no override, or an override that `read` or `check` refuses.
    """
    from hydra._internal.utils import get_args_parser

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{shown(message)}; see --help and --hydra-help")

    parser = get_args_parser()
    parser.error = error  # type: ignore[method-assign]: argparse's prints a page
    parser.exit_on_error = False
    try:
        found = parser.parse_intermixed_args([a for a in argv if not a.startswith("~")])
    except argparse.ArgumentError as e:
        error(str(e))
    for flag in ("config_path", "experimental_rerun"):
        if getattr(found, flag):
            raise ConfigError(f"--{flag.replace('_', '-')}: cannot be used here; configuration files of your own stand in a folder that "
                              "--config-dir names")
    overrides = [*found.overrides, *(a for a in argv if a.startswith("~"))]
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"{shown(text)}: not understood; write key=value (see --help)")
    check(read(overrides))
    shows = bool(found.cfg or found.info or found.hydra_help or found.shell_completion)
    if shows and found.multirun:
        raise ConfigError("-m: --cfg, --info and their like print the configuration of one run; leave one of them out")
    if (found.resolve or found.package) and not found.cfg:
        raise ConfigError("--resolve and --package: belong to --cfg; write --cfg job --resolve")
    flags = {"--config-dir": found.config_dir, "--config-name": found.config_name}
    return Arguments(overrides, {k: v for k, v in flags.items() if v is not None}, found.multirun, shows)


MOST = 10_000  # jobs of a sweep: each is composed and planned before the first starts
SETTABLE = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.")  # the rest of Hydra's own is set here


def check(parsed: Sequence[Any]) -> None:
    """Refuse what Hydra would take and what means nothing, or something else than it seems to, here.

    Raises:
        ConfigError: the first of them.
    """
    from hydra.core.override_parser.types import Glob

    groups = {*Run.NODES, "experiments", "experiment"}
    jobs = 1
    for o in parsed:
        key, text = o.key_or_group, o.input_line
        jobs *= _count(o)
        if jobs > MOST:
            raise ConfigError(f"{shown(text)}: makes a sweep of more than {MOST:,} jobs; name fewer values, or start several sweeps")
        if o.is_delete():
            raise ConfigError(f"{shown(text)}: no key can be left out; give it another value (what it takes stands in its YAML file)")
        if not key:
            raise ConfigError(f"{shown(text)}: names no key; write key=value")
        if o.package is not None:
            raise ConfigError(f"{shown(text)}: a choice has one place here; write {key}={o.get_value_element_as_str()}")
        if key.startswith("hydra") and not key.startswith(SETTABLE):
            raise ConfigError(f"{shown(text)}: of Hydra's own, only hydra/launcher and hydra.launcher.KEY can be set; results go to "
                              "runs=FOLDER, a sweep takes -m, your own configuration files --config-dir FOLDER")
        if key.startswith("hydra/") and o.get_value_element_as_str() in ("null", ""):
            raise ConfigError(f"{shown(text)}: chooses nothing; name one (see --hydra-help), or leave it out")
        if key not in groups:
            if isinstance(o._value, Glob):
                raise ConfigError(f"{shown(text)}: glob stands for choices of a group, as in method=glob(*sft); write {key}=a,b")
            continue
        if o.is_add() or o.is_force_add():
            raise ConfigError(f"{shown(text)}: {key} is a choice that is there already; write {text.lstrip('+')}")
        choices = among("", offered("experiments" if key == "experiment" else key), "choices")
        for value in _values(o):
            if value is None and key in Run.NODES or value == "":
                raise ConfigError(f"{shown(text)}: chooses nothing{choices}")
            if isinstance(value, list) and key != "task":
                raise ConfigError(f"{shown(text)}: takes one choice; several are a sweep: -m {key}={','.join(map(shown, value))}")
            names = value if isinstance(value, list) else [value]
            if any(not isinstance(n, (str, int)) or n is True or n is False for n in names if value is not None):
                raise ConfigError(f"{shown(text)}: must be a name{choices}")
            if len(set(names)) < len(names):
                raise ConfigError(f"{shown(text)}: lists a task twice; name each once")


def _count(override: Any) -> int:
    """How many values a sweep's override has, 1 for any other; a range is counted without making its members."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    value = override._value
    if isinstance(value, RangeSweep):
        span, step = value.stop - value.start, value.step  # type: ignore[operator]
        return max(1, int(span / step) if step and abs(span / step) < 2**62 else 2**62)
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def _values(override: Any) -> list[Any]:
    """What a parsed override sets its key to: one value, or those of a sweep, without Hydra's quotes."""
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    def plain(value: Any) -> Any:
        return [plain(v) for v in value] if isinstance(value, list) else value.text if isinstance(value, QuotedString) else value

    value = override._value
    if isinstance(value, ChoiceSweep):
        return [plain(v) for v in value.list]
    return [] if override.is_sweep_override() else [plain(value)]


def search_path(own: str = "") -> str:
    """The override that shows Hydra the experiments, and `own`, the user's ``--config-dir``.

    Raises:
        ConfigError: `own` is no folder.
    """
    if own and not Path(own).is_dir():
        raise ConfigError(f"--config-dir={own}: no such folder; name the one that holds method/, task/, experiments/ ...")
    folders = [package_folder("experiments").parent, *([Path(own).resolve()] if own else [])]
    quoted = ["'file://" + str(f).replace("\\", "\\\\").replace("'", "\\'") + "'" for f in folders]
    return f"hydra.searchpath=[{','.join(quoted)}]"


def checked(config: Any, choices: dict[str, str]) -> Run:
    """A composed configuration, without Hydra's own part, as a `Run`.

    Raises:
        ConfigError: for the first unusable value, or one that refers to what is not there.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as e:
        raise unresolved(e) from None
    return make_run(plain, choices)  # type: ignore[arg-type]


def compose_run(overrides: list[str], flags: dict[str, str]) -> Run:
    """One run from the command line's completed overrides.

    Args:
        flags: ``--config-dir`` and ``--config-name`` where they are given.
    Raises:
        ConfigError: whatever is wrong with them.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import open_dict

    own = flags.get("--config-dir", "")
    with initialize_config_dir(version_base="1.3", config_dir=str(package_folder("conf")), job_name="xalign"):
        try:
            config = GlobalHydra.instance().config_loader().load_configuration(
                flags.get("--config-name", "config"), [*overrides, search_path(own)], RunMode.RUN)
        except Exception as e:  # Hydra, OmegaConf, yaml; and their plain errors for a file of an unforeseen shape
            raise explain(e, overrides, own) from None
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return checked(config, choices)


def show(argv: Sequence[str], overrides: list[str], flags: dict[str, str]) -> None:
    """What Hydra prints about the configuration (``--cfg job``, ``--info``, ``--hydra-help`` ...); nothing runs.

    Raises:
        ConfigError: the configuration cannot be composed.
    """
    import sys

    import hydra

    own = flags.get("--config-dir", "")
    sys.argv = ["xalign", *(a for a in argv if "=" not in a or a.startswith("-")), *overrides, search_path(own)]
    try:
        hydra.main(version_base="1.3", config_path=str(package_folder("conf")), config_name="config")(print)()
    except Exception as e:  # Hydra, OmegaConf, yaml; and their plain errors for a file of an unforeseen shape
        raise explain(e, overrides, own) from None
