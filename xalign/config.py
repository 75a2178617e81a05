"""The configuration schema: every YAML node is a frozen dataclass, checked before torch is imported.

A YAML under ``conf/`` names its class with ``_target_``; `build` merges the YAML into that class, so a
misspelt key fails, and `Node.check` tests every declared range, so a wrong value fails too. Messages
name the key, the value and the remedy.
"""
from __future__ import annotations

import dataclasses
import difflib
import importlib
from dataclasses import dataclass, field
from typing import Any

from xalign.languages import LANGUAGES


class XalignError(Exception):
    """Anything the user can mend: shown as one line, exit code 2, never a traceback."""


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


def nearest(word: str, words: Any) -> str:
    """``; did you mean 'x'?`` when one of `words` is close to `word`, else an empty string."""
    hit = difflib.get_close_matches(str(word), [str(w) for w in words], n=1, cutoff=0.5)
    return f"; did you mean '{hit[0]}'?" if hit else ""


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
            if value is None or isinstance(value, str) and value == "auto" and "auto" in str(f.type) + str(f.default):
                continue
            if "options" in meta and value not in meta["options"]:
                raise ConfigError(f"{key}={value}: must be one of {', '.join(meta['options'])}{nearest(value, meta['options'])}{note}")
            if "members" in meta:
                for v in value:
                    if v not in meta["members"]:
                        raise ConfigError(f"{key}: '{v}' is not one of {', '.join(meta['members'])}{nearest(v, meta['members'])}{note}")
                if len(set(value)) < len(value):
                    raise ConfigError(f"{key}={list(value)}: lists a member twice; name each once")
            if "low" in meta:
                if isinstance(value, str):
                    raise ConfigError(f"{key}={value}: must be a number{note}")
                low, high, above = meta["low"], meta["high"], meta["above"]
                bad = value != value or (low is not None and value < low) or (high is not None and value > high) \
                    or (above is not None and value <= above)
                if bad:
                    span = f"greater than {above:g}" if above is not None and high is None else \
                        f"in ({above:g}, {high:g}]" if above is not None else \
                        f"at least {low:g}" if high is None else f"in [{low:g}, {high:g}]"
                    raise ConfigError(f"{key}={value}: must be {span}{note}")


def resolve(target: str, key: str) -> type:
    """The Node class that `target` ("package.module.Class") names."""
    module, _, name = str(target).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"{key}._target_={target}: cannot be imported ({e}); name a class as package.module.Class") from None
    if not (isinstance(cls, type) and issubclass(cls, Node)):
        raise ConfigError(f"{key}._target_={target}: is not a subclass of xalign.config.Node")
    return cls


def build(values: dict[str, Any], key: str) -> Any:
    """Turn one YAML node (a plain dict with ``_target_``) into its checked frozen dataclass."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = dict(values)
    if "_target_" not in values:
        raise ConfigError(f"{key}: the YAML names no class; add _target_: package.module.Class")
    cls = resolve(values.pop("_target_"), key)
    names = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in names:
            raise ConfigError(f"{key}.{name}: unknown key{nearest(name, names)} Keys: {', '.join(sorted(names))}")
    schema = OmegaConf.structured(cls)
    for name in names:  # frozen classes inside a frozen class are read-only to merge
        if OmegaConf.is_config(schema._get_node(name)):
            OmegaConf.set_readonly(schema[name], False)
    try:
        node = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as e:
        where = f"{key}.{e.full_key}" if getattr(e, "full_key", None) else key
        wrong: Any = values
        for part in (e.full_key or "").split("."):
            wrong = wrong.get(part, "") if isinstance(wrong, dict) else ""
        raise ConfigError(f"{where}={wrong}: {str(e).splitlines()[0]}") from None
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
    USED = {"evaluate": ("backbone", "task", "metric", "tracker", "study"), "study": ("backbone", "tracker", "study")}  # by mode

    @property
    def target(self) -> str:
        """The one target language; methods over several languages read `lang`."""
        return self.lang[0]

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The languages that are evaluated: the targets, and in training runs the source language too."""
        return self.lang if self.mode != "train" else (*self.lang, self.source)


def check_language(code: str, key: str) -> str:
    """Return `code` if it is a known ISO 639-3 code, else raise ConfigError with the nearest one."""
    if code not in LANGUAGES:
        by_name = {v.name.lower(): k for k, v in LANGUAGES.items()}
        close = difflib.get_close_matches(code.lower(), by_name, n=1, cutoff=0.7)
        hint = f"; did you mean '{by_name[close[0]]}'?" if close else nearest(code, LANGUAGES)
        raise ConfigError(f"{key}={code}: unknown language{hint} Languages (ISO 639-3): {' '.join(sorted(LANGUAGES))}")
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
        if key not in known:
            raise ConfigError(f"{key}: unknown key{nearest(key, known)}")
    lang = config.get("lang")
    langs = tuple(lang) if isinstance(lang, (list, tuple)) else (lang,)
    if not langs or any(not isinstance(code, str) or not code for code in langs):
        raise ConfigError(f"lang={lang}: name at least one target language, e.g. lang=jpn")
    for code in langs:
        check_language(code, "lang")
    source = check_language(str(config.get("source")), "source")
    if len(set(langs)) < len(langs):
        raise ConfigError(f"lang={list(langs)}: lists a language twice; name each once")
    mode = config.get("mode")
    modes = ("train", *Run.USED)
    if mode not in modes:
        raise ConfigError(f"mode={mode}: must be one of {', '.join(modes)}{nearest(mode, modes)}")
    if source in langs and mode == "train":
        raise ConfigError(f"lang={source}: is also the source language; choose another lang or source")
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed={seed}: must be a whole number in [0, 2147483647]")
    if not isinstance(config.get("plan"), bool):
        raise ConfigError(f"plan={config.get('plan')}: must be true or false")
    for key in ("runs", "cache"):
        if not isinstance(config.get(key), str) or not config[key]:
            raise ConfigError(f"{key}={config.get(key)}: must name a folder")
    nodes = {name: build(config[name], name) for name in Run.NODES if name != "task"}
    run = Run(lang=langs, source=source, seed=seed, plan=config["plan"], runs=config["runs"], cache=config["cache"], mode=mode,
              choices={k: ",".join(v) if isinstance(v, (list, tuple)) else v for k, v in chosen.items()},
              tasks=build_tasks(config.get("task")), **nodes)
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
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"task={values}: name at least one task, e.g. task=belebele or 'task=[belebele,xquad]'")
    if "_target_" in values:
        raise ConfigError("task: its YAML has no place of its own; make '# @package task.NAME' its first line")
    stray = [k for k, v in values.items() if not isinstance(v, dict)]
    if stray:
        raise ConfigError(f"task.{stray[0]}: unknown key; write task.NAME.{stray[0]}")
    return tuple(build(node, f"task.{name}") for name, node in values.items())
