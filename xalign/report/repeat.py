"""The command that repeats a run, from its configuration. No torch."""
from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import yaml

from xalign.compose import defaults, package_folder
from xalign.safe import printable

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

NOT_GROUPS = ("hydra/", "experiments", "tracker", "study")  # an experiment's values are given one by one; the others change no score
OF_EVALUATION = ("backbone", "task", "metric")  # what a run of mode=evaluate depends on


def repeat_command(run: FinishedRun) -> str:
    """``python -m xalign method=... lang=...``: the choices that are not the default and the keys that differ from their YAML.

    Empty for a run without config.yaml.
    """
    choices = {k.removeprefix("choices."): str(v) for k, v in run.config.items() if k.startswith("choices.") and v is not None}
    groups = [g for g in (["method"] if run.trained else []) + ["backbone"] + sorted(choices) if g in choices]
    groups = [g for g in dict.fromkeys(groups) if not g.startswith(NOT_GROUPS) and (run.trained or g in OF_EVALUATION)]
    if not groups:
        return ""
    usual, given, keys = defaults(), [] if run.trained else ["mode=evaluate"], []
    for group in groups:
        name, names = choices[group], choices[group].split(",")
        if name != usual.get(group) or group in ("method", "backbone"):
            given.append(f"{group}=[{name}]" if len(names) > 1 else f"{group}={name}")
        if group == "task":
            nodes = run.config.get("tasks") or [_part(run.config, "task")]
            for one, node in zip(names, nodes, strict=False):
                keys += _changed(f"task.{one}", f"task/{one}", _flat(node))
        else:
            keys += _changed(group, f"{group}/{name}", _part(run.config, group))
    plain = yaml.safe_load((package_folder("conf") / "config.yaml").read_text(encoding="utf-8"))
    langs = list(run.langs)
    given.append(f"lang={_value(langs[0] if len(langs) == 1 else langs)}")
    given += [f"{k}={getattr(run, k)}" for k in ("source", "seed") if getattr(run, k) != plain[k]]
    return printable(" ".join(["python -m xalign", *map(shlex.quote, [*given, *keys])]))


def _part(config: dict[str, Any], group: str) -> dict[str, Any]:
    return {k.removeprefix(f"{group}."): v for k, v in config.items() if k.startswith(f"{group}.")}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for name, part in node.items() for k, v in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}


def _changed(prefix: str, path: str, own: dict[str, Any]) -> list[str]:
    """``key=value`` for every key whose value is not the YAML's."""
    file = package_folder("conf") / f"{path}.yaml"
    if not file.is_file():
        return []
    usual = _flat(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    return [f"{prefix}.{k}={_value(v)}" for k, v in own.items() if k in usual and v != _number(usual[k])]


def _number(value: Any) -> Any:
    """YAML reads ``1e-4`` as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _value(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}: {_value(v)}" for k, v in value.items()) + "}"
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    text = str(value)
    plain = text and all(c.isalnum() or c in "_-./~:+@" for c in text)
    return text if plain else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
