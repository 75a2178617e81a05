"""Every field of every choice, and random text in its place: refused in one line that names key and value, or taken."""
from __future__ import annotations

import copy
import dataclasses
import math
import typing
from functools import cache

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xalign.commandline import arguments, compose_run
from xalign.compose import complete, offered, package_folder
from xalign.config import ConfigError, Run, XalignError, build, make_run, resolve

# fields that take values of several kinds
OPEN = {"trainer.lr", "method.lr", "data.questions", "data.terms", "task.lab.terms", "study.layer",
        "method.law", "study.gamma", "study.prompts"}
LATER = {"method.law", "study.gamma", "study.prompts"}  # looked at with the rest of the run, which says whether they are read
MANY = 2**31


@cache
def values_of(group: str, name: str) -> dict[str, typing.Any]:
    return yaml.safe_load((package_folder("conf") / group / f"{name}.yaml").read_text(encoding="utf-8"))


CHOICES = list({values_of(group, name)["_target_"]: (group, name) for group in Run.NODES for name in offered(group)}.values())


def fields_of(cls: type, key: str) -> list[tuple[str, dataclasses.Field, typing.Any]]:
    """(dotted key, field, annotation) of a node, and of the nodes inside it."""
    found = []
    for f in dataclasses.fields(cls):
        hint = typing.get_type_hints(cls)[f.name]
        found += fields_of(hint, f"{key}.{f.name}") if dataclasses.is_dataclass(hint) else [(f"{key}.{f.name}", f, hint)]
    return found


def wrong(f: dataclasses.Field, hint: typing.Any) -> list[typing.Any]:
    """Values just outside the declared range, and values of other kinds."""
    meta, kinds = f.metadata, typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    kind = next((k for k in kinds if k is not type(None)), None)
    base = typing.get_origin(kind) or kind
    bad: list[typing.Any] = [] if type(None) in kinds else [None]
    if base in (int, float):
        step = 1 if base is int else 1e-6
        bad += [meta[k] + d for k, d in (("low", -step), ("high", step), ("above", 0)) if meta.get(k) is not None]
        bad += ["many", "", "yes", True, [1], {"a": 1}, math.nan, math.inf, -math.inf, "1e400", "nan", "\u0661\u0662"]
        bad += [1.5, MANY, -MANY] if base is int else []
    elif base is bool:
        bad += ["yes", "no", "", 0, 1, 2, 0.0, [], [True], {}]
    elif base is str:
        bad += [True, False, 1e5, math.nan, [], ["a"], {"a": 1}, "a\0b", *(["no such option", ""] if "options" in meta else [])]
    elif base is list:
        bad += ["a", 3, True, {"a": 1}, [None], [["a"]], [{}], *([[], ["XX"], [meta["members"][0]] * 2] if "members" in meta else [])]
    elif base is dict:
        bad += ["a", 3, [1]]
    return bad


def test_every_number_declares_its_range():
    """Numbers without a declared range must be looked at by the node's own check; these are."""
    free = {f"{cls.__name__}.{f.name}" for group, name in CHOICES for cls in [resolve(values_of(group, name)["_target_"], group)]
            for key, f, hint in fields_of(cls, group) if hint in (int, float, int | None, float | None) and "low" not in f.metadata}
    assert free <= {"E5Small.dropout", "HubEncoder.dropout", "TinyEncoder.dropout"}


@pytest.mark.parametrize("group, name", CHOICES, ids=[f"{g}={n}" for g, n in CHOICES])
def test_every_field_refuses_what_it_cannot_take(group, name):
    values = values_of(group, name)
    root = f"task.{name}" if group == "task" else group
    for key, f, hint in fields_of(resolve(values["_target_"], group), root):
        if hint is typing.Any:
            assert key in OPEN, f"{key}: add it here, and a test of what it takes"
            bad = [] if key in LATER else ["no such value", math.nan, -7.5, [[]], {"a": 1}, True, MANY * 10]
        else:
            bad = wrong(f, hint)
        for value in bad:
            changed = copy.deepcopy(values)
            *inside, last = key.removeprefix(f"{root}.").split(".")
            node = changed
            for part in inside:
                node = node[part]
            node[last] = value
            with pytest.raises(ConfigError) as e:
                pytest.fail(f"{key}={value!r} was taken: {build(changed, root)}")
            said = str(e.value)
            assert said.startswith(key) and "\n" not in said and len(said) < 500, said
            assert any(w in said for w in (": must be ", ": must name ", "is not one of", "lists a member twice", "NUL")), said
            assert not any(w in said for w in ("<class", "Config", "None", "Error", "omegaconf")), said
            assert key in OPEN or "True" not in said, said
        # and every unknown key beside it
    with pytest.raises(ConfigError, match=f"{root}.no_such_key: unknown key"):
        build({**values, "no_such_key": 1}, root)


@cache
def plain_run() -> tuple[dict[str, typing.Any], dict[str, str]]:
    """The default configuration of a tiny backbone as a plain mapping, and its choices."""
    chosen = {"method": "sdrrl", "backbone": "tiny", "data": "lab", "parallel": "lab", "dictionary": "default", "filter": "default",
              "translator": "lab", "metric": "default", "trainer": "lab", "tracker": "none", "study": "none"}
    nodes = {group: values_of(group, name) for group, name in chosen.items()}
    rest = {"mode": "train", "lang": "jpn", "source": "eng", "seed": 0, "plan": True, "runs": "runs", "cache": "cache"}
    return {**nodes, "task": {"lab": values_of("task", "lab")}, **rest}, {**chosen, "task": "lab"}


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["auto", "eng", "[a]"])
ANYTHING = st.recursive(SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                        max_leaves=5)
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


def refused_or_taken(work: typing.Callable[[], object]) -> None:
    try:
        work()
    except XalignError as e:
        said = str(e)
        assert said.strip() and "\n" not in said, said
        said.encode()


@given(data=st.data())
@QUICK
def test_any_value_anywhere_is_refused_or_taken(data):
    config, chosen = plain_run()
    config = copy.deepcopy(config)
    node, key = config, data.draw(st.sampled_from(sorted(config)))
    while isinstance(node[key], dict) and data.draw(st.integers(0, 9)):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node)))
    node[key] = data.draw(ANYTHING)
    refused_or_taken(lambda: make_run(config, chosen))


PIECES = st.sampled_from(["lang", "seed", "method", "task", "task.lab", "trainer.lr", "hydra", "range(0,1e9)", "glob(*)", "null", "nan",
                          "true", *"+~=@:,./[]{}'\"\\ \t\n0", "${", "1e9", "-m", "-", "--config-dir"])
OVERRIDE = st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join)


@given(st.lists(OVERRIDE, min_size=1, max_size=3))
@QUICK
def test_any_text_on_the_command_line_is_refused_or_read(words):
    refused_or_taken(lambda: complete(arguments([w for w in words if w not in ("-h", "--help", "--version")]).overrides))


@given(key=st.sampled_from(["lang", "seed", "runs", "method", "task", "trainer.lr", "method.subsets", "task.prompt", "hydra.launcher.x"]),
       value=OVERRIDE)
@settings(QUICK, max_examples=12)
def test_any_value_on_the_command_line_is_refused_or_composed(key, value):
    refused_or_taken(lambda: compose_run(complete(arguments([f"{key}={value}"]).overrides), {}))
