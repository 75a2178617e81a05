"""A whole run in both trackers, read back; the same run under a sweep agent."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, xalign
from tracker_files import comet_record, wandb_record

from xalign.tracking.record import MARK, missing, summary

OFFLINE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "COMET_URL_OVERRIDE": "http://127.0.0.1:9/clientlib/", "COMET_API_KEY": "",
           "WANDB_API_KEY": ""}
AGENTS = [ROOT / "experiments" / "agents" / f"{name}.yaml" for name in ("method_grid", "sdrrl_bayes")]


@pytest.fixture(scope="module")
def work(tmp_path_factory, cache, parallel_files) -> tuple[Path, list[str]]:
    """A finished run with tracker=both, and its arguments."""
    folder = tmp_path_factory.mktemp("recorded")
    argv = ["method=sft", "lang=fin", *(a for a in TINY if a != "tracker=none"), f"parallel.path={parallel_files}", f"cache={cache}"]
    done = xalign(*argv, "tracker=both", "tracker.wandb.tags=[table2]", "tracker.wandb.artifacts=all", cwd=folder,
                  env=OFFLINE | {"HOME": str(folder)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("recorded offline") == 2 and "left out" not in done.stdout + done.stderr, done.stdout
    return folder, argv


@pytest.fixture(scope="module")
def run(work) -> Path:
    (folder,) = (work[0] / "runs").glob("sft-*")
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_wandb_has_configuration_curves_tables_pictures_and_lineage(run):
    found = wandb_record(run)
    assert (found.run.run_id, found.run.display_name, found.run.job_type) == (run.name, run.name, "train")
    assert list(found.run.tags) == ["sft", "fin", "tiny", "table2"]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (found.config["method"], found.config["backbone"], found.config["lang"]) == ("sft", "tiny", "fin")
    assert found.config["trainer.lr"] == saved["trainer"]["lr"] and found.config["task.lab.open_items"] == 4

    log = lines(run / "log.jsonl")
    for name in ("loss", "valid_loss"):
        wanted = [(r["step"], r[name]) for r in log if name in r]
        assert [(h["step"], h[name]) for h in found.history if name in h] == wanted and wanted

    rows, cost = lines(run / "rows.jsonl"), lines(run / "cost.jsonl")
    scores, stages = found.table("scores"), found.table("cost")
    assert len(scores["data"]) == sum(r["value"] is not None for r in rows)
    assert [row[stages["columns"].index("key")] for row in stages["data"]] == [r["key"] for r in cost]
    examples = found.table("examples")
    assert {"prompt", "before", "after"} <= set(examples["columns"]) and examples["data"]
    pictures = {k.removesuffix("/_type") for h in found.history for k, v in h.items() if v == "image-file"}
    assert "learning_curves" in pictures and any(p.startswith("bars/target_choice") for p in pictures)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in run.rglob("media/images/**/*.png"))

    by_kind = {a.type: a for a in found.artifacts}
    receipts = {r["key"]: r["name"] for r in json.loads((run / "receipts.json").read_text())}
    used = {a.name for a in found.artifacts if a.use_after_commit}
    assert used == {f"{name}-{key}" for key, name in receipts.items() if name == "questions"}
    files = {entry.path for entry in by_kind["results"].manifest.contents}
    assert {"rows.jsonl", "cost.jsonl", "run.json", "model/README.md", "predictions/after/fin/choice.jsonl"} <= files
    assert {"model.safetensors", "config.json", "README.md"} <= {entry.path for entry in by_kind["model"].manifest.contents}
    assert json.loads(by_kind["model"].metadata)["model"] in receipts


def test_final_scores_are_in_the_summary_under_names_that_do_not_depend_on_the_language(run):
    found, rows = wandb_record(run).summary, lines(run / "rows.jsonl")
    value = {(r["when"], r["lang"], r["task"], r["metric"]): r["value"] for r in rows}
    after, before = (value[when, "fin", "choice", "accuracy_pmi"] for when in ("after", "before"))
    assert found["target/choice/accuracy_pmi"] == found["after/fin/choice/accuracy_pmi"] == after
    assert found["gain/target/choice/accuracy_pmi"] == pytest.approx(after - before)
    assert found["source/choice/accuracy_pmi"] == value["after", "eng", "choice", "accuracy_pmi"]
    assert found["target/phrases:source-target/chrf"] == value["after", "fin", "phrases:eng-fin", "chrf"]
    assert found["cost/device_hours"] > 0 and found["cost/tokens"] > 0


def test_a_mean_needs_every_target_language(tmp_path):
    row = {"run": "r", "source": "eng", "task": "choice", "metric": "accuracy", "when": "after"}
    rows = [{**row, "lang": lang, "value": v} for lang, v in (("fin", 0.2), ("jpn", 0.4), ("eng", 0.9))]
    facts = {"mode": "train", "lang": ["fin", "jpn"], "cost": {"seconds": 1.5, "stages": []}}
    for third, wanted in ((rows, pytest.approx(0.3)), ([rows[0], {**rows[1], "value": None}, rows[2]], None)):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in third))
        (tmp_path / "run.json").write_text(json.dumps(facts))
        found = summary(tmp_path)
        assert found.get("target/choice/accuracy") == wanted
        assert found["source/choice/accuracy"] == 0.9 and found["cost/seconds"] == 1.5 and "gain/target/choice/accuracy" not in found


def test_comet_has_the_same(run):
    found = comet_record(run / "comet")
    log = lines(run / "log.jsonl")
    assert found.metrics("loss") == [(r["step"], r["loss"]) for r in log if "loss" in r]
    value = {(r["when"], r["lang"], r["task"], r["metric"]): r["value"] for r in lines(run / "rows.jsonl")}
    assert found.metrics("target/choice/mrr_raw")[0][1] == pytest.approx(value["after", "fin", "choice", "mrr_raw"])
    parameters = {m["param"]["paramName"]: m["param"]["paramValue"] for m in found.of("parameter_msg") if "param" in m}
    assert parameters["method"] == "sft" and parameters["trainer.lr"] == 0.0001
    for part in ("scores.csv", "cost.csv", "examples.csv", "learning_curves.png", "results/results-" + run.name + "/rows.jsonl"):
        assert part in found.text, part
    assert "model.safetensors" not in found.text  # artifacts: results
    assert any(data.startswith(b"\x89PNG") for data in found.files.values())


def test_every_name_on_the_dashboard_is_one_that_runs_write(run):
    pytest.importorskip("wandb_workspaces")
    from xalign import dashboard

    found = wandb_record(run)
    written = set(found.summary) | {k for h in found.history for k in h}
    section = dashboard.spec(dashboard.workspace("me", "p"))["spec"]["section"]
    configs = [p["config"] for s in section["panelBankConfig"]["sections"] for p in s["panels"]]
    names = {m for c in configs for m in c.get("metrics", [])} | {c[axis] for c in configs for axis in ("xAxis", "yAxis") if axis in c}
    names |= {column["accessor"] for c in configs for column in c.get("columns", [])}
    names |= set(section["runSets"][0]["runFeed"]["columnOrder"]) - {"run:displayName"}
    plain = {n.removeprefix("summary:") for n in names if not n.startswith("config:")}
    assert plain <= written and len(plain) > 10, plain - written
    assert {n.removeprefix("config:").removesuffix(".value") for n in names if n.startswith("config:")} <= set(found.config)
    shown = json.dumps(configs)
    assert all(f'"{table}"' in shown and f"{table}/nrows" in written for table in ("scores", "examples", "cost"))
    assert {key for c in configs for key in c.get("mediaKeys", [])} <= {k.removesuffix("/_type") for k in written}
    (pattern,) = {c["metricRegex"] for c in configs if "metricRegex" in c}
    assert re.fullmatch(pattern, "off_target_fin") and not re.fullmatch(pattern, "off_target_fin_n")


def test_repeated_it_records_nothing_again(work, run):
    before = {p: p.stat().st_mtime for p in run.rglob("*.wandb")} | {p: p.stat().st_mtime for p in run.rglob("*.zip")}
    assert all(mark["complete"] for mark in json.loads((run / MARK).read_text()).values())
    done = xalign(*work[1], "tracker=both", cwd=work[0], env=OFFLINE | {"HOME": str(work[0])})
    assert done.returncode == 0 and "finished earlier" in done.stdout and "recorded offline" not in done.stdout
    assert {p: p.stat().st_mtime for p in (*run.rglob("*.wandb"), *run.rglob("*.zip"))} == before


def command(path: Path, values: dict[str, object]) -> list[str]:
    """The command that W&B's agent starts for one combination, by its own functions."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    config = yaml.safe_load(path.read_text())
    args = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    made = {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [config["program"]], **args}
    return [word for part in utils.create_sweep_command(config["command"]) for word in made.get(part[2:-1], [part])]


def choose(parameter: dict) -> object:
    return parameter["value"] if "value" in parameter else parameter["values"][0] if "values" in parameter else parameter["min"]


@pytest.mark.parametrize("path", AGENTS, ids=lambda p: p.stem)
def test_an_agents_configuration_starts_xalign(path, tmp_path):
    config = yaml.safe_load(path.read_text())
    assert config["method"] in ("grid", "bayes") and config["metric"]["goal"] == "maximize" and config["program"]
    assert all({"value", "values", "distribution"} & set(p) for p in config["parameters"].values())
    chosen = {k: choose(v) for k, v in config["parameters"].items()}
    done = subprocess.run([*command(path, chosen), "plan=true", f"cache={tmp_path}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"{chosen['method']} eng → {chosen['lang']}"), done.stdout + done.stderr


def test_an_agents_run_has_the_agents_id_and_writes_the_metric_that_the_sweep_optimises(work, run, tmp_path):
    """The combination was finished before: the agent must get its score all the same."""
    path = next(p for p in AGENTS if p.stem == "method_grid")
    config = yaml.safe_load(path.read_text())
    values = {"method": "sft", "lang": "fin", "seed": 0}
    assert set(values) == set(config["parameters"]) and values["method"] in config["parameters"]["method"]["values"]
    parameters = tmp_path / "config.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, **{k: {"value": v} for k, v in values.items()}}))
    env = {**os.environ, **OFFLINE, "HOME": str(work[0]), "WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agents-run",
           "WANDB_SWEEP_PARAM_PATH": str(parameters)}
    shutil.rmtree(run / "wandb")
    rest = [a for a in work[1] if not a.startswith(("method=", "lang="))]
    done = subprocess.run([*command(path, values), *rest], cwd=work[0], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "recorded offline" in done.stdout, done.stdout + done.stderr
    found = wandb_record(run)
    assert (found.run.run_id, found.run.sweep_id) == ("agents-run", "sweep1")
    assert isinstance(found.summary[config["metric"]["name"]], float)
    assert found.config["method"] == "sft" and [h["loss"] for h in found.history if "loss" in h]


def test_what_is_not_recorded_yet_is_known(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from xalign.tracking import Both, Comet

    ask = SimpleNamespace(tracker=Both(comet=Comet(mode="disabled")))
    assert missing(ask, tmp_path) == ("wandb",)
    (tmp_path / MARK).write_text(json.dumps({"wandb": {"id": "a", "complete": True}}))
    assert missing(ask, tmp_path) == ()
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "b")
    assert missing(ask, tmp_path) == ("wandb",)


def test_what_a_killed_training_wrote_is_recorded_again(tmp_path):
    from types import SimpleNamespace

    from xalign.cache import Cache, Stage
    from xalign.tracking.record import recorded

    first = Stage("e_im", 1, {"trainer": {}}, lambda folder, inputs: None)
    second = Stage("train", 1, {"trainer": {}}, lambda folder, inputs: None, (first,))
    cache = Cache(tmp_path)
    for folder, text in ((cache.folder(first), '{"step": 1, "loss": 3.0}\n'),
                         (Path(f"{cache.folder(second)}.partial"), '{"step": 1, "loss": 2.0}\n{"step": 2, "lo')):
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text(text)
    assert list(recorded(SimpleNamespace(model=second), cache)) == [{"step": 1, "loss": 3.0, "stage": "e_im"},
                                                                    {"step": 1, "loss": 2.0, "stage": "train"}]
