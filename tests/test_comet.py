"""COMET in a process of its own: tiny checkpoints of every class, scored offline and compared with COMET's own predict."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.cache import Cache, Stage
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import Example, read_jsonl, write_jsonl
from xalign.data.filters import Filters
from xalign.digests import file_sha256
from xalign.metrics.comet import comet_scores, comet_version
from xalign.metrics.node import Comet, Metrics
from xalign.tasks.base import Evaluation
from xalign.tasks.learned import add_learned

SAMPLES = [
    {"src": "The lamp is on.", "mt": "Lamppu on päällä.", "ref": "Lamppu palaa."},
    {"src": "It rained a lot in Nairobi yesterday evening.", "mt": "Nairobissa satoi eilen paljon.", "ref": "Eilen satoi kovasti."},
    {"src": "x", "mt": "", "ref": "y"},
    {"src": "two\nlines", "mt": "ab\u2028c", "ref": "kaksi riviä"},
    {"src": "The lamp is on.", "mt": "Lamppu on päällä.", "ref": "Lamppu palaa."},
]
NODE = "xalign.metrics.node.Metrics"


@pytest.fixture(scope="session")
def python() -> str:
    """An interpreter with unbabel-comet."""
    named = os.environ.get("XALIGN_COMET_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("comet") is None:
        pytest.skip("no unbabel-comet: name an interpreter that has it in the environment variable XALIGN_COMET_PYTHON")
    return sys.executable


@pytest.fixture(scope="session")
def made(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and COMET's own scores, see tiny_comet.py."""
    folder = tmp_path_factory.mktemp("comet")
    (folder / "samples.json").write_text(json.dumps(SAMPLES), encoding="utf-8")
    subprocess.run([python, str(Path(__file__).with_name("tiny_comet.py")), str(folder)], check=True, capture_output=True,
                   env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=240)
    return folder


def checkpoint(folder: Path, name: str) -> str:
    return str(folder / name / "checkpoints" / "model.ckpt")


@pytest.mark.parametrize(
    "name, references, inputs",
    [
        ("referenceless", True, "src+mt"),  # is not given the reference that there is
        ("unified_full", True, "src+mt+ref"),
        ("unified_full", False, "src+mt"),
    ],
)
def test_scores_are_those_of_comet(made: Path, python: str, name: str, references: bool, inputs: str) -> None:
    wanted = json.loads((made / "expected.json").read_text())["unified_full without reference" if (name, references) == (
        "unified_full", False) else name]
    found = comet_scores(SAMPLES, checkpoint(made, name), references, python)
    assert found.scores == pytest.approx(wanted["scores"], abs=1e-5)
    assert sum(found.scores) / len(SAMPLES) == pytest.approx(wanted["system_score"], abs=1e-5)
    assert found.scores[0] == pytest.approx(found.scores[4], abs=1e-5) and len({round(s, 4) for s in found.scores}) == 4
    parts = dict(part.partition(":")[::2] for part in found.signature.split("|"))
    kind = "referenceless_regression_metric" if name == "referenceless" else "unified_metric"
    assert parts["model"] == name and parts["class"] == kind and parts["inputs"] == inputs
    assert parts["sha256"] == file_sha256(Path(checkpoint(made, name)))[:12]
    assert re.fullmatch(r"2\.2\.\d+", parts["v"]) and parts["transformers"].startswith("4.")
    assert parts["v"] == comet_version(python)


def evaluation(folder: Path, **comet: object) -> Evaluation:
    return Evaluation(folder, lambda: None, (), "fin", "eng", False, metric=Metrics(comet=Comet(**comet)))


def records(n: int = 5) -> list[dict]:
    return [{"id": str(i), "cluster": "ab"[i % 2], "text": s["src"], "prediction": s["mt"], "references": [s["ref"], "other"]}
            for i, s in enumerate(SAMPLES[:n])]


def test_rows_of_an_evaluation(made: Path, python: str, tmp_path: Path) -> None:
    ev = evaluation(tmp_path, model=checkpoint(made, "regression"), kiwi=checkpoint(made, "unified"), python=python, batch_size=2)
    own = [*records(), {"id": "open", "cluster": "c", "text": "", "prediction": "x", "references": []}]
    add_learned(ev, "flores:eng-fin", own, "fin")
    wanted = json.loads((made / "expected.json").read_text())
    for row, name, model in zip(ev.scores, ("comet", "cometkiwi"), ("regression", "unified"), strict=True):
        assert row["metric"] == name and row["task"] == "flores:eng-fin" and row["n"] == 5 and row["se"] > 0
        assert row["value"] == pytest.approx(wanted[model]["system_score"], abs=1e-5)
        assert row["signature"].startswith(f"{name}|model:{model}|") and row["signature"].endswith("|lang:fin")
    for written, model in zip(ev.examples, ("regression", "unified"), strict=True):
        ids, clusters, values = zip(*written["examples"])
        assert list(values) == pytest.approx(wanted[model]["scores"], abs=1e-5)
        assert [list(ids), list(clusters)] == [[r[key] for r in own[:5]] for key in ("id", "cluster")]


def test_absent_with_a_reason(made: Path, python: str, tmp_path: Path) -> None:
    """A model that COMET cannot fetch, a checkpoint that it cannot open, texts that it cannot read."""
    broken = tmp_path / "broken" / "checkpoints" / "model.ckpt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a checkpoint")
    (tmp_path / "broken" / "hparams.yaml").write_text("class_identifier: regression_metric\n")
    ev = evaluation(tmp_path, model=str(broken), kiwi=checkpoint(made, "unified"), python=python)
    add_learned(ev, "t", [{**r, "text": ""} for r in records()], "fin")
    ev.metric = Metrics(comet=Comet(model=str(broken), python=python))
    add_learned(ev, "t", records(), "fin")
    reasons = [(r["metric"], r["value"], r["n"], r["reason"]) for r in ev.scores[:3]]
    assert reasons[:2] == [("comet", None, 0, "no example has a source text and reference"),
                           ("cometkiwi", None, 0, "no example has a source text")]
    assert reasons[2][:3] == ("comet", None, 0)
    assert re.match(rf"metric.comet.model={re.escape(str(broken))}: could not be scored by {re.escape(python)} \(.+\); name a checkpoint",
                    reasons[2][3]) and "\n" not in reasons[2][3]
    assert len(ev.scores) == 3 and ev.examples == []


def test_nothing_is_asked_nothing_is_added(tmp_path: Path) -> None:
    ev = evaluation(tmp_path)
    add_learned(ev, "t", records(), "fin")
    assert ev.scores == [] and Metrics().params() == {}


def test_a_checkpoint_that_could_run_code_is_refused(made: Path, python: str, tmp_path: Path) -> None:
    evil = tmp_path / "evil" / "checkpoints" / "model.ckpt"
    evil.parent.mkdir(parents=True)
    (tmp_path / "evil" / "hparams.yaml").write_bytes((made / "regression" / "hparams.yaml").read_bytes())
    proof = tmp_path / "it ran"
    code = ("import os, sys, torch\n"
            "class Evil:\n    def __reduce__(self): return os.mkdir, (sys.argv[2],)\n"
            "torch.save({'state_dict': {}, 'hyper_parameters': {}, 'x': Evil()}, sys.argv[1])\n")
    subprocess.run([python, "-c", code, str(evil), str(proof)], check=True)
    with pytest.raises(XalignError, match="holds more than weights and could run code.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        comet_scores(SAMPLES, str(evil), True, python)
    assert not proof.exists()


def test_the_filter_drops_what_cometkiwi_rates_low(made: Path, python: str, tmp_path: Path) -> None:
    rows = [Example(str(i), "eng", s["src"], s["src"]) for i, s in enumerate(SAMPLES)]
    translated = [{"id": str(i), "prompt": s["mt"], "response": None if i == 1 else s["mt"], "failed": {}} for i, s in enumerate(SAMPLES)]
    wanted = json.loads((made / "expected.json").read_text())["referenceless"]["scores"]
    threshold = (min(wanted) + max(wanted)) / 2  # this model's scores are within (0, 1)
    node = Filters(langid=False, dedup=False, max_ratio=100, threshold=threshold, cometkiwi=checkpoint(made, "referenceless"),
                   comet_python=python)
    node.check_run(SimpleNamespace())

    def write(name: str, data: list) -> Stage:
        return Stage(name, 1, {}, lambda folder, inputs: {"n": write_jsonl(folder / "examples.jsonl", data)})

    artifact = Cache(tmp_path).get(node.stage(SimpleNamespace(source="eng"), write("rows", rows), write("translated", translated), "fin"))
    kept = list(read_jsonl(artifact.file("examples.jsonl")))
    low = [s < threshold for s in wanted]
    assert 0 < sum(low) < 5
    assert [r["failed"].get("prompt") for r in kept] == ["quality" if x else None for x in low]
    assert [r["response"] is None for r in kept] == [x or i == 1 for i, x in enumerate(low)]
    facts = artifact.receipt["facts"]
    assert facts["prompt"]["dropped"]["quality"] == sum(low) and facts["cometkiwi"].startswith("cometkiwi|model:referenceless|")
    assert node.params()["cometkiwi"]["sha256"] == file_sha256(Path(node.cometkiwi))
    broken = Filters(cometkiwi=node.cometkiwi, comet_python=interpreter(tmp_path, "exit 3"))
    with pytest.raises(XalignError, match=r"filter.cometkiwi=.*could not be scored by .*exit code 3.*filter.comet_python"):
        Cache(tmp_path).get(broken.stage(SimpleNamespace(source="eng"), write("rows", rows), write("translated", translated), "fin"))


def test_keys_follow_the_files_and_the_installation(made: Path, python: str, tmp_path: Path) -> None:
    model = checkpoint(made, "regression")
    same = tmp_path / "same" / "checkpoints" / "model.ckpt"
    same.parent.mkdir(parents=True)
    same.write_bytes(Path(model).read_bytes())
    hparams = (made / "regression" / "hparams.yaml").read_text()
    (tmp_path / "same" / "hparams.yaml").write_text(hparams)
    key = Metrics(comet=Comet(model=model, python=python)).params()
    assert Metrics(comet=Comet(model=str(same), python=python, batch_size=3)).params() == key
    (tmp_path / "same" / "hparams.yaml").write_text(hparams + "x: 1\n")
    assert Metrics(comet=Comet(model=str(same), python=python)).params() != key
    without = interpreter(tmp_path, "exit 1")
    assert comet_version(without) == "none" and Metrics(comet=Comet(model=model, python=without)).params() != key


def interpreter(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("body, reason", [("echo 'first' >&2; echo 'No module named comet' >&2; exit 1", r"\(No module named comet\)"),
                                          ("exit 3", r"\(exit code 3\)"), ("exit 0", r"\(exit code 0\)")])
def test_a_process_that_dies_is_one_line(tmp_path: Path, body: str, reason: str) -> None:
    python = interpreter(tmp_path, body)
    with pytest.raises(XalignError, match=rf"^metric.comet.model=x/y: could not be scored by .*{reason}; .*metric.comet.python, an"):
        comet_scores(SAMPLES, "x/y", True, python)


def test_wrong_values_are_refused_before_anything_runs(tmp_path: Path) -> None:
    def refused(match: str, **comet: object) -> None:
        with pytest.raises(ConfigError, match=match):
            build({"_target_": NODE, "comet": comet}, "metric")

    refused(r"metric.comet.batch_size=0: must be at least 1", batch_size=0)
    refused(r"metric.comet.python=/nowhere/python: no such interpreter", python="/nowhere/python")
    refused(r"metric.comet.model=/nowhere/model.ckpt: no such file", model="/nowhere/model.ckpt")
    path = tmp_path / "m" / "checkpoints" / "model.ckpt"
    path.parent.mkdir(parents=True)
    refused(rf"metric.comet.model={re.escape(str(tmp_path / 'm'))}: no such file", model=str(tmp_path / "m"))
    path.write_bytes(b"PK not a checkpoint")
    refused(r"metric.comet.model=.*model.ckpt: is no PyTorch checkpoint, or one that was cut short; name", model=str(path))
    zipfile.ZipFile(path, "w").close()
    refused(r"metric.comet.kiwi=.*model.ckpt: has no .*/m/hparams.yaml", kiwi=str(path))
    hparams = tmp_path / "m" / "hparams.yaml"
    for text, match in (("a: 1\n", "class_identifier None"), ("class_identifier: ranking_metric\n", "class_identifier ranking_metric"),
                        ("class_identifier: regression_metric\n", "needs references; COMETKiwi is")):
        hparams.write_text(text)
        refused(rf"metric.comet.kiwi=.*model.ckpt: .*{match}", kiwi=str(path))
    build({"_target_": NODE, "comet": {"model": str(path), "kiwi": "Unbabel/wmt22-cometkiwi-da"}}, "metric")
    with pytest.raises(ConfigError, match=r"metric.flores200=/nowhere: no such file"):
        build({"_target_": NODE, "flores200": "/nowhere"}, "metric")
