"""From the command line to a composed configuration: where conf/ is, what it offers, what was misspelt."""
from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xalign.config import ConfigError, Run, nearest

HELP = """xalign: cross-lingual alignment of language models; one command a method, one table a sweep

usage: python -m xalign [group=choice ...] [key=value ...]
       python -m xalign -m method=sft,t_sft,sdrrl lang=fin,jpn    a sweep: every combination, one table
       python -m xalign -m ... hydra/launcher=submitit_slurm_node  the same, each combination a job on a SLURM cluster
       python -m xalign plan=true                                 show the stages, keys and costs, and stop
       python -m xalign.report runs/A runs/B                      compare finished runs
"""

PLUGINS = {"submitit": "hydra-submitit-launcher>=1.2", "joblib": "hydra-joblib-launcher>=1.2"}


def package_folder(name: str) -> Path:
    """`conf` or `experiments`: inside an installed wheel, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    return here / name if (here / name).is_dir() else here.parent / name


def describe(path: Path) -> str:
    """A YAML's one-line description: its first comment that is not Hydra's package line."""
    with open(path, encoding="utf-8") as f:
        first = next((line.strip() for line in f if not line.startswith("# @package")), "")
    return first.lstrip("# ") if first.startswith("#") else ""


def offered(group: str) -> dict[str, str]:
    """Choice → description for one group of conf/ (or ``experiments``)."""
    folder = package_folder("experiments") if group == "experiments" else package_folder("conf") / group
    return {str(p.relative_to(folder).with_suffix("")): describe(p) for p in sorted(folder.rglob("*.yaml"))}


def defaults() -> dict[str, str]:
    """Group → choice that conf/config.yaml makes."""
    import yaml

    listed = yaml.safe_load((package_folder("conf") / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {k: v for entry in listed if not isinstance(entry, str) for k, v in entry.items() if " " not in k}


def help_text() -> str:
    """What ``--help`` prints: every group and choice with one line each, then the plain keys."""
    lines, chosen = [HELP], defaults()
    for group in (*Run.NODES, "experiments"):
        lines.append(f"{group}={chosen.get(group) or ''}".rstrip("="))
        lines += [f"    {name:<12} {text}" for name, text in offered(group).items()]
    lines.append("\nkeys")
    with open(package_folder("conf") / "config.yaml", encoding="utf-8") as f:
        for line in f:
            key = line.split(":")[0]
            if key in ("lang", "source", "seed", "plan", "runs", "cache"):
                value, _, text = line.split(":", 1)[1].partition("#")
                lines.append(f"    {key + '=' + value.strip():<44} {text.strip()}")
    lines.append("\nEvery key of a choice can be set: method.code_switch=0 trainer.epochs=2 data.questions=100. The keys, with their"
                 f"\nmeaning, stand in the YAML files under {package_folder('conf')}.\n--hydra-help shows Hydra's own options.")
    return "\n".join(lines)


def keys_of(group: str, name: str) -> list[str]:
    """Dotted keys that one YAML of a group defines."""
    import yaml

    path = package_folder("conf") / group / f"{name}.yaml"
    return [f"{group}.{k}" for k in yaml.safe_load(path.read_text(encoding="utf-8")) if k != "_target_"] if path.is_file() else []


def check_launcher(overrides: list[str], multirun: bool) -> str:
    """The chosen ``hydra/launcher``, empty if there is none.

    Raises:
        ConfigError: it cannot start anything here.
    """
    name = next((o.split("=", 1)[1] for o in overrides if o.startswith("hydra/launcher=")), "")
    kind, key = name.split("_")[0], f"hydra/launcher={name}"
    if name and not multirun:
        raise ConfigError(f"{key}: a launcher starts the jobs of a sweep; add -m")
    if kind in PLUGINS:
        try:
            found = find_spec(f"hydra_plugins.hydra_{kind}_launcher")
        except ModuleNotFoundError:
            found = None
        if not found:
            raise ConfigError(f'{key}: its plugin is not installed; pip install "{PLUGINS[kind]}"')
    if kind == "submitit" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{key}: starts the processes itself; leave torchrun out and set hydra.launcher.tasks_per_node")
    if name.startswith("submitit_slurm") and not shutil.which("srun"):
        raise ConfigError(f"{key}: there is no SLURM (srun) on this machine; repeat the command on a login node of the cluster, "
                          "or choose hydra/launcher=submitit_local")
    return name


def explain(error: Exception, overrides: list[str]) -> ConfigError:
    """Hydra's error about `overrides` as one line that names the key, the value and the nearest name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, chosen = OverridesParser.create(), defaults()
    parsed: list[Any] = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as e:
            return ConfigError(f"{text}: cannot be read ({str(e).splitlines()[0]}); write key=value, lists as 'lang=[fin,jpn]'")
    groups = {*Run.NODES, "experiments"}
    for o in parsed:
        if o.key_or_group in groups:
            values = [str(v) for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.value()]
            for value in values:
                names = offered(o.key_or_group)
                if value not in names:
                    return ConfigError(f"{o.key_or_group}={value}: no such {o.key_or_group}{nearest(value, names)} "
                                       f"Choices: {', '.join(names)}")
            chosen[o.key_or_group] = str(values[0])
    known = ["lang", "source", "seed", "plan", "runs", "cache", *groups]
    for group, name in chosen.items():
        known += keys_of(group, str(name))
    for o in parsed:
        key = o.key_or_group
        if key not in known and not key.startswith("hydra"):
            return ConfigError(f"{key}: unknown key{nearest(key, known)} See --help")
    for o in parsed:
        if o.key_or_group.startswith("hydra") and o.key_or_group in str(error):
            reason = str(error.__cause__).splitlines()[0] if error.__cause__ else str(error).split("Config search path")[0]
            return ConfigError(f"{o.input_line}: {' '.join(reason.split())}")
    if "Ambiguous value" in str(error) or any(o.is_sweep_override() for o in parsed):
        o = next((o for o in parsed if o.is_sweep_override()), None)
        if o is not None:
            return ConfigError(f"{o.input_line}: several values need -m (a sweep) or brackets, as in "
                               f"'{o.key_or_group}=[a,b]' (one run)")
    return ConfigError(" ".join(str(error).split())[:400])
