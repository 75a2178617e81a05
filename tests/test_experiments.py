"""Every experiment: what its header says, and every job of its sweep as a checked run.

An experiment is composed twice by Hydra, as it stands and with the last job's overrides. The jobs between them are made from the first by
replacing the node of a swept group and setting swept keys; that this gives what Hydra gives is asserted for the last job of every sweep.
"""
from __future__ import annotations

import copy
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from xalign.compose import offered, package_folder
from xalign.config import ConfigError, Run, build, make_run
from xalign.languages import LANGUAGES

JOBS = {  # experiment → jobs of all its commands
    "mlipd_table1": 4, "mlipd_table1_lab": 4,
    "sdrrl_table2": 5 * 14, "sdrrl_table2_lab": 6, "sdrrl_table3": 5 * 14, "sdrrl_table4": 5 * 6, "sdrrl_table5": 5 * 9,
    "sdrrl_table6": 6 * 14, "sdrrl_table6_lab": 6, "sdrrl_table7": 5 * 3, "sdrrl_table8": 5 * 3, "sdrrl_table9": 5 * 2,
    "sdrrl_table10": 5 * 3, "sdrrl_table11": 5 * 2, "sdrrl_table12": 2 * 2 * 3, "sdrrl_table12_lab": 2 * 2,
    "sdrrl_table13": 3, "sdrrl_table13_lab": 2,
    "sdrrl_figure2": 2, "sdrrl_figure2_lab": 1, "sdrrl_figure3": 14, "sdrrl_figure3_lab": 1,
    "xllm_table2": 2 * 6, "xllm_table4": 2 * 2, "xllm_table4_lab": 2 * 2, "xllm_table6": 2 * 6,
    "xllm_figure3": 6 * 4, "xllm_figure3_lab": 14, "xllm_figure4": 7, "xllm_figure4_lab": 4, "xllm_figure5": 2, "xllm_figure5_lab": 2,
    "xllm_figure6": 7, "xllm_figure6_lab": 7, "xllm_figure7": 4, "xllm_figure7_lab": 2 * 4,
}
LAB = sorted(name for name in JOBS if name.endswith("_lab"))
FOLDER = package_folder("experiments")


def header(name: str) -> dict[str, list[str]]:
    """Field → its lines, of the comment at the top of an experiment."""
    found: dict[str, list[str]] = {}
    for line in itertools.takewhile(lambda line: line.startswith("#"), (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()):
        field, text = re.fullmatch(r"# ?(?:(\w+):)?\s*(.*)", line).groups()
        if field:
            found[field] = [text]
        elif found:
            found[list(found)[-1]].append(text)
    return found


def composed(name: str, *overrides: str) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(package_folder("conf")), version_base="1.3"):
        return compose("config", [f"experiments={name}", *overrides, f"hydra.searchpath=[file://{FOLDER.parent}]"],
                       return_hydra_config=True)


def expand(params: dict[str, str], given: list[str], variants: Sequence[str] = ("",)) -> list[list[str]]:
    """The overrides of every job, as Hydra's basic sweeper makes them from the file's parameters, each of its variants and the command
    line's overrides."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    listed = [[*(f"{k}={v}" for k, v in params.items()), *text.split(), *given] for text in variants]
    return [job for texts in listed for job in BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(texts), None)[0]]


def plain(config: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """(values with their interpolations, choices)."""
    values = OmegaConf.to_container(config, resolve=False)
    chosen = values.pop("hydra")["runtime"]["choices"]
    return values, chosen


def checked(values: dict[str, Any], chosen: dict[str, str]) -> Run:
    """The run that Hydra's values give."""
    return make_run(OmegaConf.to_container(OmegaConf.create(values), resolve=True), chosen)


def changed(base: tuple[dict[str, Any], dict[str, str]], overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """`base` with a job's overrides, without Hydra: groups first, then keys."""
    values, chosen = copy.deepcopy(base)
    for key, text in sorted((o.split("=", 1) for o in overrides), key=lambda kv: kv[0] not in Run.NODES):
        if key in Run.NODES:
            values[key] = OmegaConf.to_container(OmegaConf.load(package_folder("conf") / key / f"{text}.yaml"))
            chosen[key] = text
        else:
            *above, last = key.split(".")
            node = values
            for part in above:
                node = node[part]
            assert last in node, key
            node[last] = yaml.safe_load(text)
    return values, chosen


Job = tuple[list[str], dict[str, Any], dict[str, str]]


def jobs(name: str) -> list[Job]:
    """(overrides, values, choices) of every job of every command."""
    config = composed(name)
    sweeper, base = config.hydra.sweeper, plain(config)
    swept, variants = dict(sweeper.params or {}), sweeper.get("variants") or [""]
    groups = {k for k in swept if k in Run.NODES}
    assert not groups & set(OmegaConf.load(FOLDER / f"{name}.yaml")), f"{name}: sets keys of a group that it sweeps over"
    given = [shlex.split(command)[5:] for command in header(name)["command"]]
    return [(overrides, *changed(base, overrides)) for more in given for overrides in expand(swept, more, variants)]


@cache
def built(text: str) -> Any:
    """One node, from its key and values as JSON."""
    key, values = json.loads(text)
    return build(values, key)


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    """Nodes are frozen, so those with the same values are built once for all jobs: most of the time goes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xalign.config.build", lambda values, key: built(json.dumps([key, values])))
        yield


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a few lines in every file that the experiments name."""
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")

    for name in ("alpaca_data", "alpaca_eng", "alpaca_fra"):
        put(f"data/{name}.json", json.dumps([{"instruction": "Say one.", "input": "", "output": "One."}]))
    for source, lang in itertools.product(("eng", "fra"), LANGUAGES):
        put(f"data/muse/{source}-{lang}.txt", "one\tyksi\n")
        for corpus in ("opus100", "wikimatrix"):
            put(f"data/{corpus}/{source}-{lang}/{source}.txt", "One.\n")
            put(f"data/{corpus}/{source}-{lang}/{lang}.txt", "Yksi.\n")
    for lang, row in LANGUAGES.items():
        put(f"data/bactrian_x/{lang}.jsonl", '{"instruction": "Say one."}\n')
        put(f"data/flores200/devtest/{row.flores}.devtest", "One.\n" * 10)
        put(f"data/xglue/XNLI/{row.iso1}.dev", "A man sleeps.\tHe is awake.\tcontradiction\n")
        put(f"data/xglue/XNLI/{row.iso1}.test", "A man sleeps.\tHe rests.\tentailment\n")
    put("data/xglue/XNLI/multinli.train.en.tsv", "premise\thypo\tlabel\nA dog barks.\tA cat barks.\tcontradictory\n")
    put("data/mi_eval/mi_eval.jsonl", "".join(json.dumps({"instruction": "Say one.", "lang": lang}) + "\n" for lang in LANGUAGES))
    put("data/mc4/zho.txt", "一。\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_experiments_are_the_tables_and_figures_of_the_papers() -> None:
    assert set(offered("experiments")) == set(JOBS) and len(JOBS) == 36 and len(LAB) == 13
    assert sum(JOBS.values()) == 534


@pytest.mark.parametrize("name", sorted(JOBS))
def test_an_experiment(name: str, files: Path) -> None:
    """Its header, its command, and every job of its sweep as a checked run."""
    told = header(name)
    for field in ("source", "command", "hardware", "time", "expected"):
        assert told.get(field, [""])[0], f"{name}: the header lacks {field}"
    assert told["command"][0] == f"python -m xalign -m experiment={name}"
    assert all(c.startswith(told["command"][0]) for c in told["command"])
    made = jobs(name)
    for overrides, values, chosen in made:
        run = checked(values, chosen)
        langs = next((o.split("=", 1)[1] for o in overrides if o.startswith("lang=")), None)
        assert langs is None or list(run.lang) == langs.strip("[]").split(",")
    assert len(made) == len({tuple(overrides) for overrides, _, _ in made}) == JOBS[name]
    overrides, *config = made[-1]
    assert tuple(config) == plain(composed(name, *overrides)), f"{name}: {overrides} is not what Hydra makes of it"


def test_the_command_line_wins_over_the_file() -> None:
    params = {"method": "sft,sdrrl", "lang": "fin,jpn"}
    assert expand(params, ["lang=deu", "seed=1,2"]) == [[f"method={m}", "lang=deu", f"seed={s}"] for m in ("sft", "sdrrl") for s in (1, 2)]
    assert plain(composed("sdrrl_table2_lab", "lang=deu"))[0]["lang"] == "deu"
    assert plain(composed("sdrrl_table2_lab"))[0]["lang"] == "fin"


def test_a_job_that_lacks_its_file_says_which(files: Path) -> None:
    (files / "data/alpaca_data.json").unlink()
    with pytest.raises(ConfigError, match=r"data.path=data/alpaca_data.json: no such file"):
        checked(*plain(composed("sdrrl_table2", "lang=fin")))


def plan_all() -> None:
    """Make the plan of every laboratory job; torch must not come with it."""
    from xalign import config
    from xalign.plan import make_plan

    config.build = lambda values, key: built(json.dumps([key, values]))
    for name in LAB:
        keys = {make_plan(checked(values, chosen)).model.key for _, values, chosen in jobs(name)}
        assert len(keys) == JOBS[name], f"{name}: {len(keys)} different models"
    heavy = {"torch", "transformers", "deepspeed", "datasets", "wandb"} & set(sys.modules)
    assert not heavy, heavy


def test_the_laboratorys_plans_need_no_torch() -> None:
    code = "import conftest, test_experiments; test_experiments.plan_all()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_the_laws_of_table_4_are_the_papers_allocations() -> None:
    """x-LLM Table 4, from what there is in each language (Table 1)."""
    from xalign.analysis.allocation import allocate, read_laws

    available = {"ara": 1_097_200, "ell": 620_800, "hin": 234_233, "tur": 477_700, "vie": 1_073_800, "zho": 912_500}
    laws = read_laws(OmegaConf.to_container(OmegaConf.load(FOLDER / "xllm_table4.yaml").method.law), "method.law", tuple(available))
    for budget, published in ((300_000, (41842, 44953, 73002, 59652, 40731, 39816)),
                              (1_200_000, (183539, 189556, 234233, 242263, 175985, 174422))):
        assert tuple(allocate("optimised", budget, available, laws).values()) == pytest.approx(published, abs=2)
