"""From the command line to a composed configuration: where conf/ is, what it offers, what was misspelt."""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xalign.config import ConfigError, Run
from xalign.safe import secret_in
from xalign.values import among, nearest, shown

HELP = """xalign: cross-lingual alignment of language models; one command a method, one table a sweep

usage: python -m xalign [group=choice ...] [key=value ...]
       python -m xalign -m method=sft,t_sft,sdrrl lang=fin,jpn    a sweep: every combination, one table
       python -m xalign -m ... hydra/launcher=joblib hydra.launcher.n_jobs=2    the same, two at a time on this machine
       python -m xalign -m ... hydra/launcher=submitit_slurm_node  the same, each combination a job on a SLURM cluster
       python -m xalign mode=evaluate backbone.name=PATH 'task=[belebele,xquad]' 'lang=[deu,ara]'   scores of any model as it is
       python -m xalign plan=true                                 show the stages, keys and costs, and stop; with -m the jobs
       python -m xalign compare runs/A runs/B                     finished runs: differences, p-values, who wins where
       python -m xalign report runs/A runs/B                      finished runs in one table
       python -m xalign study scaling runs/                       an analysis of finished runs: a table, a picture
       python -m xalign allocate LAWS.yaml --budget 300000        a budget of translations shared by scaling laws
       python -m xalign contamination TRAIN.jsonl TEST.jsonl      which test items stand in training data
       python -m xalign push runs/A USER/NAME --dry-run           publish the trained model with its card
       python -m xalign dashboard --entity E --project P          the W&B dashboard: scores, curves, costs
"""

PLAIN = ("mode", "lang", "source", "seed", "plan", "runs", "cache")  # the keys that belong to no group
PLUGINS = {"submitit": "hydra-submitit-launcher>=1.2", "joblib": "hydra-joblib-launcher>=1.2"}


def package_folder(name: str) -> Path:
    """`conf` or `experiments`: inside an installed wheel, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    return here / name if (here / name).is_dir() else here.parent / name


def describe(path: Path) -> str:
    """A YAML's one-line description: its first comment that is not Hydra's package line."""
    with open(path, encoding="utf-8", errors="replace") as f:
        first = next((line.strip() for line in f if not line.startswith("# @package")), "")
    return first.lstrip("# ") if first.startswith("#") else ""


def offered(group: str, own: str = "") -> dict[str, str]:
    """Choice → description for one group of conf/ (or ``experiments``), and of `own`, the user's ``--config-dir``."""
    folders = [package_folder("experiments") if group == "experiments" else package_folder("conf") / group]
    folders += [Path(own) / group] if own else []
    return {p.stem: describe(p) for folder in folders for p in sorted(folder.glob("*.yaml"))}


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
            if key in PLAIN:
                value, _, text = line.split(":", 1)[1].partition("#")
                lines.append(f"    {key + '=' + value.strip():<44} {text.strip()}")
    lines.append("\nEvery key of a choice can be set: method.code_switch=0 trainer.epochs=2 data.questions=100. The keys, with their"
                 f"\nmeaning, stand in the YAML files under {package_folder('conf')}.\n--hydra-help shows Hydra's own options.")
    return "\n".join(lines)


def keys_of(group: str, name: str, own: str = "") -> list[str]:
    """Dotted keys that one YAML of a group defines, those of nodes inside it too."""
    import yaml

    def walk(prefix: str, values: dict[str, Any]) -> list[str]:
        own = [(f"{prefix}.{k}", v) for k, v in values.items() if k != "_target_"]
        return [key for k, v in own for key in (k, *(walk(k, v) if isinstance(v, dict) else ()))]

    folders = [package_folder("conf"), *([Path(own)] if own else [])]
    path = next((p for folder in folders if (p := folder / group / f"{name}.yaml").is_file()), None)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path else None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):  # of the user's own; `explain` says so
        values = None
    return walk(f"task.{name}" if group == "task" else group, values) if isinstance(values, dict) else []


def complete(overrides: list[str]) -> list[str]:
    """The command line's overrides in the form that the configuration has.

    ``task.KEY=V`` stands for ``task.NAME.KEY=V`` of every chosen task that has the key, ``experiment=`` for ``experiments=``,
    and ``backbone.name=`` alone chooses ``backbone=hf``.

    Raises:
        ConfigError: a secret, a key that no chosen task has, or one for a sweep over tasks.
    """
    for o in overrides:
        name, _, value = o.partition("=")
        if found := secret_in(value, shown(name)):  # before a sweep writes its commands down
            raise ConfigError(found)
    overrides = ["experiments" + o.removeprefix("experiment") if o.startswith("experiment=") else o for o in overrides]
    keys = {o.lstrip("+").split("=", 1)[0] for o in overrides}
    out = list(overrides)
    if "backbone.name" in keys and not keys & {"backbone", "experiments"}:
        out.insert(0, "backbone=hf")
    chosen = _chosen_tasks(overrides)
    for o in out:
        name = o.split("=", 1)[0].removeprefix("task.").split(".")[0] if o.startswith("task.") else ""
        if name in offered("task") and name not in chosen and "experiments" not in keys:  # which may be the user's own
            raise ConfigError(f"{o.split('=', 1)[0]}: {name} is not among the chosen tasks ({', '.join(chosen)}); add task={name}")
    short = [o for o in out if o.startswith("task.") and o.split("=", 1)[0].split(".")[1] not in offered("task")]
    if not short:
        return out
    text = _task_choice(overrides)
    if len(chosen) > 1 and not text.lstrip().startswith("["):
        raise ConfigError(f"{short[0]}: belongs to no one task of the sweep {text}; write 'task=[{text}]' (one run evaluates them all) or "
                          f"{short[0].replace('task.', f'task.{chosen[0]}.', 1)}")
    for o in short:
        key = o.split("=", 1)[0].removeprefix("task.")
        having = [n for n in chosen if n not in offered("task") or f"task.{n}.{key.split('.')[0]}" in keys_of("task", n)]
        if not having:
            every = [k.split(".")[-1] for name in chosen for k in keys_of("task", name)]
            raise ConfigError(f"task.{key}: unknown key{among(key, dict.fromkeys(every))}")
        at = out.index(o)
        out[at:at + 1] = [f"task.{name}.{o.removeprefix('task.')}" for name in having]
    return out


def read(overrides: Sequence[str]) -> list[Any]:
    """`overrides` as Hydra reads them.

    Raises:
        ConfigError: one that it cannot read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), list[Any]()
    for text in overrides:
        try:
            text.encode()
            found.append(parser.parse_override(text))
        except UnicodeEncodeError:
            raise ConfigError(f"{shown(text)}: is not UTF-8; type it in a UTF-8 terminal") from None
        except (HydraException, ValueError, RecursionError) as e:  # ValueError: a number of thousands of digits
            reason = shown(str(e).split(" expecting ")[0].splitlines()[0]) if isinstance(e, HydraException) else type(e).__name__
            raise ConfigError(f"{shown(text)}: cannot be read ({reason}); write key=value, lists as 'lang=[fin,jpn]', "
                              "text with other characters in quotes, as in \"key='a b: c'\"") from None
    return found


def _task_choice(overrides: list[str]) -> str:
    """The value of ``task=``: the command line's, the experiment's, or the default."""
    text = next((o.split("=", 1)[1] for o in reversed(overrides) if o.startswith("task=")), "")
    return text or _experiment_task(next((o.split("=", 1)[1] for o in overrides if o.startswith("experiments=")), "")) or defaults()["task"]


def _chosen_tasks(overrides: list[str]) -> list[str]:
    """The names in `_task_choice`; ConfigError if there is none."""
    text = _task_choice(overrides)
    names = [name.strip() for name in text.strip("[] ").split(",") if name.strip()]
    if not names:
        raise ConfigError(f"task={text}: name at least one task, e.g. task=belebele or 'task=[belebele,xquad]'")
    return names


def _experiment_task(name: str) -> str:
    """The task that an experiment's YAML chooses; empty if it leaves it."""
    import yaml

    path = package_folder("experiments") / f"{name}.yaml"
    listed = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", []) if name and path.is_file() else []
    found = next((e["override /task"] for e in listed if isinstance(e, dict) and "override /task" in e), "")
    return f"[{','.join(found)}]" if isinstance(found, list) else found


def check_launcher(overrides: list[str], multirun: bool) -> None:
    """Ask whether the chosen ``hydra/launcher`` can start anything here.

    Raises:
        ConfigError: it cannot.
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
    if kind in PLUGINS and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(f"{key}: starts the processes itself; leave torchrun out" +
                          (" and set hydra.launcher.tasks_per_node" if kind == "submitit" else ""))
    if name.startswith("submitit_slurm") and not shutil.which("srun"):
        raise ConfigError(f"{key}: there is no SLURM (srun) on this machine; repeat the command on a login node of the cluster, "
                          "or choose hydra/launcher=submitit_local")


def in_words(text: str) -> str:
    """An error's text with what the user calls it in place of OmegaConf's classes."""
    return text.replace("DictConfig", "keys").replace("ListConfig", "a list")


def unresolved(error: Exception) -> ConfigError:
    """What is wrong with a value that refers to another one."""
    key = "the configuration" if isinstance(error, RecursionError) else str(getattr(error, "full_key", None) or "the configuration")
    reason = str(error).splitlines()[0].split("interpolation: ")[-1]
    return ConfigError(f"{key}: {shown(reason)}; write the value itself, or one that ${{...}} can name")


def unreadable(error: Exception, own: str) -> ConfigError | None:
    """What is wrong with a YAML file that cannot be read, with file and line; None for another kind of `error`."""
    import yaml

    remedy = "mend the YAML (spaces instead of tabs, each key once, text with ': ' or '#' in quotes)"
    if isinstance(error, yaml.YAMLError):
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        return ConfigError(f"{f'{mark.name}:{mark.line + 1}' if mark else f'--config-dir={own}'}: {shown(what)}; {remedy}")
    if isinstance(error, UnicodeDecodeError):
        for path in sorted(Path(own).rglob("*.yaml")):
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError as e:
                return ConfigError(f"{path}: is not UTF-8 (byte {e.start}); save it as UTF-8")
    return None


def explain(error: Exception, overrides: list[str], own: str = "") -> ConfigError:
    """Hydra's error about `overrides` as one line that names the key, the value and the nearest name; `own`: the ``--config-dir``."""
    from hydra.errors import HydraException
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

    if broken := unreadable(error, own):
        return broken
    if isinstance(error, InterpolationResolutionError):
        return unresolved(error)
    chosen = dict[str, Any](defaults())
    try:
        parsed = read(overrides)
    except ConfigError as e:
        return e
    groups = {*Run.NODES, "experiments"}
    for o in parsed:
        if o.key_or_group in groups:
            values = list(o.sweep_string_iterator()) if o.is_sweep_override() else o.value() if isinstance(o.value(), list) else [o.value()]
            for value in map(str, values):
                names = offered(o.key_or_group, own)
                if value not in names:
                    what = f"{o.key_or_group}={shown(value)}: no such {o.key_or_group.removesuffix('s')}"
                    return ConfigError(what + among(value, names, "choices"))
            chosen[o.key_or_group] = [str(v) for v in values]
    known = [*PLAIN, *groups]
    for group, names in chosen.items():
        for name in names if isinstance(names, list) else [names]:
            known += keys_of(group, str(name), own)
    for o in parsed:
        key = o.key_or_group
        if key not in known and not key.startswith("hydra"):
            return ConfigError(f"{shown(key)}: unknown key{nearest(key, known) or '.'} See --help")
    for o in parsed:
        if o.key_or_group.startswith("hydra") and o.key_or_group in str(error):
            reason = str(error.__cause__).splitlines()[0] if error.__cause__ else str(error).split("Config search path")[0]
            return ConfigError(f"{o.input_line}: {' '.join(reason.split())}")
    if "Ambiguous value" in str(error) or any(o.is_sweep_override() for o in parsed):
        o = next((o for o in parsed if o.is_sweep_override()), None)
        if o is not None:
            return ConfigError(f"{o.input_line}: several values need -m (a sweep) or brackets, as in "
                               f"'{o.key_or_group}=[a,b]' (one run)")
    text = " ".join(re.split("Config search path|full_key:", str(error))[0].split())
    text = in_words(re.sub(r"\w+ raised while composing config: ", "", text))
    cause = in_words(str(error.__cause__ or "")).splitlines()
    if not text or not isinstance(error, (HydraException, OmegaConfBaseException)):
        return ConfigError(f"the YAML files cannot be put together ({shown(text or type(error).__name__)}); look into "
                           f"{', '.join(o.input_line for o in parsed if o.key_or_group in groups) or '--config-dir'}")
    if text.startswith("Cannot find primary config"):
        return ConfigError(f"--config-name: {text.split('.')[0]}; name a YAML file that stands in --config-dir, without .yaml")
    for o in parsed:
        if text == f"Error merging override {o.input_line}":
            return ConfigError(f"{o.input_line}: is no value of this key's kind{f' ({shown(cause[0])})' if cause else ''}; "
                               "its YAML file shows what it takes")
    return ConfigError(text[:400])
