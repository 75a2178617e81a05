"""The schema: what is composed passes, what is wrong fails with key, value and remedy, before torch is imported."""
from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from xalign.compose import defaults, describe, offered, package_folder
from xalign.config import ConfigError, Node, Run, build, check_language, choice, choices, resolve, within


@dataclasses.dataclass(frozen=True)
class Sample(Node):
    share: float = within(0.15, 0, 1, note="the paper's value is 0.15")
    rate: float = within(1e-4, above=0)
    mode: str = choice("pooled", "pooled", "subset_mean")
    parts: list[str] = choices(("LL",), "LL", "TT")


TARGET = f"{Sample.__module__}.Sample"


def every_yaml() -> list[tuple[str, str]]:
    return [(g, name) for g in Run.NODES for name in offered(g)]


def test_every_yaml_lists_exactly_its_class_fields_and_describes_itself():
    found = every_yaml()
    assert len(found) >= 18
    for group, name in found:
        path = package_folder("conf") / group / f"{name}.yaml"
        values = OmegaConf.load(path)
        cls = resolve(values._target_, group)
        assert set(values) - {"_target_"} == {f.name for f in dataclasses.fields(cls)}, path
        assert len(describe(path)) > 10, f"{path}: the first line must describe the choice"


def test_every_default_is_a_choice():
    for group, name in defaults().items():
        if name is not None:
            assert name in offered(group)


@pytest.mark.parametrize("values, message", [
    ({"share": 1.5}, "method.share=1.5: must be in [0, 1]; the paper's value is 0.15"),
    ({"share": float("nan")}, "method.share=nan: must be a finite number, in [0, 1]"),
    ({"rate": 0.0}, "method.rate=0.0: must be greater than 0"),
    ({"mode": "subset_maen"}, "did you mean 'subset_mean'?"),
    ({"parts": ["LL", "XX"]}, "method.parts: 'XX' is not one of LL, TT"),
    ({"parts": ["LL", "LL"]}, "lists a member twice"),
    ({"shrae": 0.1}, "method.shrae: unknown key; did you mean 'share'?"),
    ({"share": "much"}, "method.share=much"),
])
def test_a_wrong_value_names_key_value_and_remedy(values, message):
    with pytest.raises(ConfigError) as e:
        build({"_target_": TARGET, **values}, "method")
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_right_node_is_frozen():
    node = build({"_target_": TARGET, "share": 0.5}, "method")
    assert node.share == 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.share = 1


def test_a_target_that_is_no_node_is_refused():
    with pytest.raises(ConfigError, match="not a subclass"):
        build({"_target_": "pathlib.Path"}, "method")
    with pytest.raises(ConfigError, match="cannot be imported"):
        build({"_target_": "nowhere.Class"}, "method")


def test_a_language_is_known_or_the_nearest_is_named():
    assert check_language("jpn", "lang") == "jpn"
    with pytest.raises(ConfigError, match="did you mean 'jpn'"):
        check_language("jpm", "lang")
    with pytest.raises(ConfigError, match="did you mean 'fin'"):
        check_language("Finnish", "lang")


def test_checking_imports_no_torch():
    code = ("import sys\nfrom xalign.compose import defaults, package_folder\nfrom xalign.config import make_run, Run\n"
            "from omegaconf import OmegaConf\nd = defaults()\n"
            "nodes = {g: OmegaConf.to_container(OmegaConf.load(package_folder('conf') / g / f'{d[g]}.yaml')) for g in Run.NODES}\n"
            "nodes['task'] = {d['task']: nodes['task']}\n"
            "run = make_run({**nodes, 'mode': 'train', 'lang': 'fin', "
            "'source': 'eng', 'seed': 0, 'plan': True, 'runs': 'runs', 'cache': 'c'}, d)\n"
            "from xalign.plan import make_plan\nassert len(make_plan(run).stages()) > 5\n"
            "heavy = {'torch', 'transformers', 'deepspeed', 'datasets', 'wandb'} & set(sys.modules)\nassert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
