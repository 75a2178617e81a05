"""The configuration schema: every YAML node is a frozen dataclass, checked before torch is imported.

A YAML under ``conf/`` names its class with ``_target_``; `build` merges the YAML into that class, so a
misspelt key fails, and `Node.check` tests every declared range, so a wrong value fails too. Messages
name the key, the value and the remedy.
"""
from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xalign.languages import LANGUAGES
from xalign.safe import hide, printable, secret_in
from xalign.values import LARGEST, among, expected, nearest, shown, span


class XalignError(Exception):
    """Anything the user can mend: shown as one line, exit code 2, never a traceback. It repeats no secret, nothing a terminal obeys."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(hide(str(message))))


class ConfigError(XalignError):
    """A configuration value that cannot be used."""


def within(default: Any, low: float | None = None, high: float | None = None, note: str = "", above: float | None = None) -> Any:
    """A numeric field with an inclusive range [low, high], or strictly greater than `above`."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, "note": note})


def choice(default: str, *options: str, note: str = "") -> Any:
    """A string field that takes one of `options`."""
    return field(default=default, metadata={"options": options, "note": note})


def choices(default: tuple[str, ...], *options: str, note: str = "") -> Any:
    """A list field whose members, without repeats, come from `options`."""
    return field(default_factory=lambda: list(default), metadata={"members": options, "note": note})


def _check_kinds(cls: Any, values: dict[str, Any], key: str) -> None:
    """Raise ConfigError for the first of `values` that `cls` has no field for, or whose kind is not the field's."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"{key}.{shown(name)}: unknown key{among(name, sorted(fields)) if fields else '; this choice takes none'}")
        meta, hint, where = fields[name].metadata, hints[name], f"{key}.{name}={shown(value)}"
        if wanted := expected(hint, value):
            note = f"; {meta['note']}" if meta.get("note") else ""
            options = meta.get("options") or meta.get("members")
            if options:
                wanted = f"{'a list of' if 'members' in meta else 'one of'} {', '.join(options)}{nearest(value, options)}"
            elif "low" in meta and not isinstance(value, (list, dict)):
                wanted += f", {span(meta)}"
            raise ConfigError(f"{where}: must be {wanted}{note}")
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            _check_kinds(hint, value, f"{key}.{name}")


@dataclass(frozen=True)
class Node:
    """Base of every configuration node.

    Subclasses declare fields with `within`, `choice` or `choices` and may extend `check` for rules
    that span fields. They import nothing heavy at module level.
    """

    def check(self, path: str) -> None:
        """Raise ConfigError for the first value out of range; `path` is the node's key, e.g. ``method``."""
        for f in dataclasses.fields(self):
            value, meta, key = getattr(self, f.name), f.metadata, f"{path}.{f.name}"
            note = f"; {meta['note']}" if meta.get("note") else ""
            for v in value if isinstance(value, list) else (value,):
                if isinstance(v, float) and not math.isfinite(v) and f.type != "Any":
                    raise ConfigError(f"{key}={shown(value)}: must be a finite number{f', {span(meta)}' if 'low' in meta else ''}{note}")
                if isinstance(v, int) and abs(v) > LARGEST:
                    raise ConfigError(f"{key}={shown(value)}: must be at most {LARGEST}{note}")
                if isinstance(v, str) and "\0" in v:
                    raise ConfigError(f"{key}={shown(value)}: holds a NUL character; take it out")
            if value is None or isinstance(value, str) and value == "auto" and "auto" in str(f.type) + str(f.default):
                continue
            if "options" in meta and value not in (options := meta["options"]):
                raise ConfigError(f"{key}={shown(value)}: must be one of {', '.join(options)}{nearest(value, options)}{note}")
            if "members" in meta:
                members = meta["members"]
                if not value:
                    raise ConfigError(f"{key}=[]: must name some of {', '.join(members)}{note}")
                for v in value:
                    if v not in members:
                        raise ConfigError(f"{key}: '{shown(v)}' is not one of {', '.join(members)}{nearest(v, members)}{note}")
                if len(set(value)) < len(value):
                    raise ConfigError(f"{key}={shown(value)}: lists a member twice; name each once")
            if "low" in meta:
                if isinstance(value, str):
                    raise ConfigError(f"{key}={shown(value)}: must be a number{note}")
                low, high, above = meta["low"], meta["high"], meta["above"]
                if (low is not None and value < low) or (high is not None and value > high) or (above is not None and value <= above):
                    raise ConfigError(f"{key}={shown(value)}: must be {span(meta)}{note}")


def resolve(target: str, key: str) -> type:
    """The Node class that `target` ("package.module.Class") names."""
    where = f"{key}._target_={shown(target)}"
    module, _, name = str(target).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as e:  # a module of the user's own may raise anything
        raise ConfigError(f"{where}: cannot be imported ({type(e).__name__}: {shown(e)}); name a class as package.module.Class") from None
    if not (isinstance(cls, type) and issubclass(cls, Node) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}: is not a subclass of xalign.config.Node; name a class as the YAML files under conf/ do")
    return cls


def build(values: dict[str, Any], key: str) -> Any:
    """Turn one YAML node (a plain dict with ``_target_``) into its checked frozen dataclass."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(values, dict):
        raise ConfigError(f"{key}={shown(values)}: must be a group of keys; in a YAML file, choose one under defaults: "
                          f"- override /{key.split('.')[0]}: {shown(values)}")
    values = dict(values)
    if "_target_" not in values:
        raise ConfigError(f"{key}: the YAML names no class; add _target_: package.module.Class")
    cls = resolve(values.pop("_target_"), key)
    _check_kinds(cls, values, key)
    schema = OmegaConf.structured(cls)
    for f in dataclasses.fields(cls):  # frozen classes inside a frozen class are read-only to merge
        if OmegaConf.is_config(schema._get_node(f.name)):
            OmegaConf.set_readonly(schema[f.name], False)
    try:
        node = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as e:
        where = f"{key}.{e.full_key}" if getattr(e, "full_key", None) else key
        raise ConfigError(f"{where}: {str(e).splitlines()[0]}") from None
    node.check(key)
    return node


@dataclass(frozen=True)
class Run:
    """One checked run: what `python -m xalign` composes and every stage reads.

    The nodes' classes live beside their code (`xalign.methods`, `xalign.data` ...); this module only
    knows that each is a `Node`. With ``mode="evaluate"`` only the backbone, the tasks, the metrics, the
    tracker and the study are used, with ``mode="study"`` neither tasks nor metrics.
    """

    method: Any
    backbone: Any
    data: Any
    parallel: Any
    dictionary: Any
    filter: Any
    translator: Any
    tasks: tuple[Any, ...]
    metric: Any
    trainer: Any
    tracker: Any
    study: Any = None
    mode: str = "train"
    lang: tuple[str, ...] = ("jpn",)
    source: str = "eng"
    seed: int = 0
    plan: bool = False
    runs: str = "runs"
    cache: str = ""
    choices: dict[str, str] = field(default_factory=dict)

    NODES = ("method", "backbone", "data", "parallel", "dictionary", "filter", "translator", "task", "metric", "trainer", "tracker",
             "study")
    PARTS = {"method": "model_stage", "backbone": "weights", "data": "questions_stage", "parallel": "stage", "dictionary": "stage",
             "filter": "rule", "translator": "check_source", "task": "lacks", "metric": "params", "trainer": "zero_stage",
             "study": "findings"}  # what every class of a group has, and no other group's
    USED = {"evaluate": ("backbone", "task", "metric", "tracker", "study"), "study": ("backbone", "tracker", "study")}  # by mode

    @property
    def target(self) -> str:
        """The one target language; methods over several languages read `lang`."""
        return self.lang[0]

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The languages that are evaluated: the targets, and in training runs the source language too."""
        return self.lang if self.mode != "train" else (*self.lang, self.source)


def check_language(code: Any, key: str) -> str:
    """Return `code` if it is a known ISO 639-3 code, else raise ConfigError with the nearest one."""
    if not isinstance(code, str) or code not in LANGUAGES:
        by_name, word = {v.name.lower(): k for k, v in LANGUAGES.items()}, shown(code)
        close = difflib.get_close_matches(word.lower(), by_name, n=1, cutoff=0.7)
        hint = f"; did you mean '{by_name[close[0]]}'?" if close else nearest(word, LANGUAGES) or ";"
        raise ConfigError(f"{key}={word}: unknown language{hint} Languages (ISO 639-3): {' '.join(sorted(LANGUAGES))}")
    return code


def make_run(config: dict[str, Any], chosen: dict[str, str]) -> Run:
    """Check a composed configuration and return it as a `Run`.

    Args:
        config: the composed YAML as a plain dict.
        chosen: the YAML picked for each group, e.g. ``{"method": "sdrrl"}``.
    Raises:
        ConfigError: for the first unusable key, naming key, value and remedy.
    """
    config = dict(config)
    known = {f.name for f in dataclasses.fields(Run)} - {"choices", "tasks"} | {"task"}
    for key in config:
        if key == "experiments":
            raise ConfigError("experiments: the YAML has no place of its own; make '# @package _global_' its first line")
        if key not in known:
            raise ConfigError(f"{shown(key)}: unknown key{among(key, sorted(known))}")
    lang = config.get("lang")
    langs = tuple(lang) if isinstance(lang, (list, tuple)) else (lang,)
    if not langs or any(not isinstance(code, str) or not code for code in langs):
        raise ConfigError(f"lang={shown(lang)}: name at least one target language, e.g. lang=jpn")
    for code in langs:
        check_language(code, "lang")
    source = check_language(config.get("source"), "source")
    if len(set(langs)) < len(langs):
        raise ConfigError(f"lang={shown(langs)}: lists a language twice; name each once")
    mode = config.get("mode")
    modes = ("train", *Run.USED)
    if mode not in modes:
        raise ConfigError(f"mode={shown(mode)}: must be one of {', '.join(modes)}{nearest(mode, modes)}")
    if source in langs and mode == "train":
        raise ConfigError(f"lang={source}: is also the source language; choose another lang or source")
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed={shown(seed)}: must be a whole number in [0, 2147483647]")
    if not isinstance(config.get("plan"), bool):
        raise ConfigError(f"plan={shown(config.get('plan'))}: must be true or false")
    for key in ("runs", "cache"):
        if not isinstance(config.get(key), str) or not config[key].strip() or "\0" in config[key]:
            raise ConfigError(f"{key}={shown(config.get(key))}: must name a folder")
        if Path(config[key]).expanduser().is_file():
            raise ConfigError(f"{key}={shown(config[key])}: is a file; name a folder")
    for name in Run.NODES:
        if config.get(name) is None:
            raise ConfigError(f"{name}: nothing is chosen; name one, as in {name}=NAME (see --help)")
    nodes = {name: build(config[name], name) for name in Run.NODES if name != "task"}
    tasks = build_tasks(config["task"])
    for name, node in [*nodes.items(), *(("task", t) for t in tasks)]:
        if not hasattr(node, Run.PARTS.get(name, "check")):
            raise ConfigError(f"{name}: {type(node).__module__}.{type(node).__name__} is no class of this group; _target_ names one as the "
                              f"YAML files under conf/{name} do")
    run = Run(lang=langs, source=source, seed=seed, plan=config["plan"], runs=config["runs"], cache=config["cache"], mode=mode,
              choices={k: ",".join(v) if isinstance(v, (list, tuple)) else v for k, v in chosen.items()},
              tasks=tasks, **nodes)
    if found := secret_in(config):
        raise ConfigError(found)
    for name in Run.USED.get(mode, (*Run.NODES[1:], "method")):  # the method last: it asks whether the others fit
        for node in run.tasks if name == "task" else (nodes[name],):
            hook = getattr(node, "check_run", None)
            if hook:
                hook(run)
    if mode == "study" and not run.study.alone:
        raise ConfigError(f"mode=study: study={run.choices.get('study')} asks nothing of a backbone as it is; choose one that "
                          "does (study=representations, study=similarity), or leave mode=study out")
    return run


def build_tasks(values: Any) -> tuple[Any, ...]:
    """The checked nodes of all chosen tasks, from name → YAML node."""
    if isinstance(values, str):
        raise ConfigError(f"task={shown(values)}: in a YAML file, choose tasks under defaults: - override /task: [{shown(values)}]")
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"task={shown(values)}: name at least one task, e.g. task=belebele or 'task=[belebele,xquad]'")
    if "_target_" in values:
        raise ConfigError("task: its YAML has no place of its own; make '# @package task.NAME' its first line")
    stray = [k for k, v in values.items() if not isinstance(v, dict)]
    if stray:
        raise ConfigError(f"task.{stray[0]}: unknown key; write task.NAME.{stray[0]}")
    return tuple(build(node, f"task.{name}") for name, node in values.items())
