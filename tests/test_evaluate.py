"""Several tasks in several languages, without training: the command line, what is absent and why, the hub's files, predictions kept."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import xalign

from xalign.cache import Cache
from xalign.compose import complete
from xalign.config import ConfigError, XalignError, build_tasks
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Metrics
from xalign.tasks.belebele import BelebeleTask
from xalign.tasks.files import HubFile, fetch


def belebele_file(folder: Path, code: str, rows: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    row = {"link": "", "question_number": 1, "dialect": code, "correct_answer_num": "2",
           **{f"mc_answer{k}": f"answer {k}" for k in range(1, 5)}}
    text = "".join(json.dumps({**row, "flores_passage": f"Passage {i // 2}.", "question": f"Question {i}?"}) + "\n" for i in range(rows))
    (folder / f"{code}.jsonl").write_text(text, encoding="utf-8")


def xcopa_file(folder: Path, code: str) -> None:
    (folder / code).mkdir(parents=True, exist_ok=True)
    rows = [{"premise": f"Glass {i} fell.", "choice1": "It broke.", "choice2": "It rained.", "question": "effect", "label": 0, "idx": i,
             "changed": False} for i in range(5)]
    (folder / code / f"test.{code}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    belebele_file(tmp_path / "data" / "belebele", "deu_Latn")
    xcopa_file(tmp_path / "data" / "xcopa", "tr")
    return tmp_path / "data"


COMMAND = ["mode=evaluate", "backbone=tiny", "task=[belebele,xcopa]", "lang=[deu,tur]", "tracker=none"]


def test_any_model_is_evaluated_without_training(cache, data, tmp_path):
    paths = [f"task.path={data}", f"cache={cache}"]
    done = xalign(*COMMAND, *paths, "task.belebele.limit=6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "XCOPA has no German (deu); it has ind tha tur vie zho" in done.stdout and "has no tur_Latn.jsonl for tur" in done.stdout
    folder = next((tmp_path / "runs").glob("evaluate-belebele-xcopa-deu_tur-tiny-s0-*"))
    rows = list(read_jsonl(folder / "rows.jsonl"))
    assert {r["when"].partition(":")[0] for r in rows} == {"before", "baseline"} and {r["method"] for r in rows} == {"none"}
    values = {(r["task"], r["lang"], r["metric"]): r for r in rows if r["when"] == "before"}
    assert values["belebele", "deu", "accuracy_raw"]["n"] == 6 and values["xcopa", "tur", "mrr_pmi"]["n"] == 5
    absent = values["xcopa", "deu", "accuracy_raw"]
    assert absent["value"] is None and absent["n"] == 0 and "XCOPA has no German" in absent["reason"]
    assert not (folder / "model").exists() and not list((folder / "predictions").glob("after"))
    records = list(read_jsonl(folder / "predictions" / "before" / "deu" / "belebele.jsonl"))
    assert len(records) == 6 and set(records[0]["scores"]) == {"accuracy_raw", "accuracy_pmi", "mrr_raw", "mrr_pmi"}
    mean = sum(r["scores"]["accuracy_raw"] for r in records) / 6
    assert values["belebele", "deu", "accuracy_raw"]["value"] == pytest.approx(mean)
    again = xalign(*COMMAND, *paths, "task.belebele.limit=6", cwd=tmp_path)
    assert "finished earlier; nothing to do" in again.stdout
    # another language of one of the tasks: what is there is not predicted again
    xcopa_file(data / "xcopa", "vi")
    more = xalign(*COMMAND, "lang=[deu,tur,vie]", *paths, "task.belebele.limit=6", cwd=tmp_path)
    assert more.returncode == 0 and "predict xcopa vie, untrained model …" in more.stdout
    assert "predict xcopa tur, untrained model …" not in more.stdout


@pytest.mark.parametrize("argv, message", [
    (["lang=[deu,fin]"], "lang=fin: no task of the run can evaluate it: task.belebele.path="),
    (["lang=deu"], "task.xcopa: XCOPA has no German (deu); it has ind tha tur vie zho"),
    (["task=[]"], "task=[]: name at least one task"),
    (["task.limit=-1"], "task.belebele.limit=-1: must be at least 0"),
    (["task.xquad.limit=3"], "task.xquad.limit: xquad is not among the chosen tasks (belebele, xcopa); add task=xquad"),
    (["metric.comet.batch_size=two"], "metric.comet.batch_size=two: must be a whole number"),
    (["lang=germn"], "lang=germn: unknown language; did you mean 'deu'?"),
    (["task.limt=3"], "task.limt: unknown key; did you mean 'limit'?"),
    (["task.path=/nowhere"], "task.belebele.path=/nowhere: no such folder"),
    (["mode=evalute"], "mode=evalute: must be one of train, evaluate, study; did you mean 'evaluate'?"),
    (["backbone=tiny_encoder", "task=[belebele,lab]", "task.belebele.scores=[bytes]"], "task.belebele.scores=['bytes']: bytes"),
])
def test_what_cannot_be_evaluated_is_one_line(data, tmp_path, argv, message):
    done = xalign(*COMMAND, *([] if any("path" in a for a in argv) else [f"task.path={data}"]), *argv, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_short_keys_belong_to_the_chosen_tasks():
    assert complete(["task=[belebele,xcopa]", "task.limit=3", "task.belebele.prompt=plain"]) == \
        ["task=[belebele,xcopa]", "task.belebele.limit=3", "task.xcopa.limit=3", "task.belebele.prompt=plain"]
    assert complete(["task=[belebele,xcopa]", "task.prompt=x"])[1:] == ["task.belebele.prompt=x", "task.xcopa.prompt=x"]
    assert complete(["task.shots=0"]) == ["task.lab.shots=0"]
    assert complete(["experiments=mlipd_table1_lab", "task.terms=5"])[1:] == ["task.lab.terms=5"]
    assert complete(["backbone.name=x"]) == ["backbone=hf", "backbone.name=x"]
    assert complete(["backbone=xlmr", "backbone.name=x"]) == ["backbone=xlmr", "backbone.name=x"]
    assert complete(["task=own", "task.words=3"])[1:] == ["task.own.words=3"]  # from a folder of the user's
    with pytest.raises(ConfigError, match=r"task.limit=3: belongs to no one task of the sweep .*; write 'task=\[belebele,xcopa\]'"):
        complete(["task=belebele,xcopa", "task.limit=3"])


def test_a_task_has_a_place_of_its_own():
    with pytest.raises(ConfigError, match="make '# @package task.NAME' its first line"):
        build_tasks({"_target_": "xalign.tasks.belebele.BelebeleTask"})
    with pytest.raises(ConfigError, match="task=null: name at least one task"):
        build_tasks(None)


@dataclass(frozen=True)
class Local(BelebeleTask):
    """BELEBELE from a local folder in the hub's layout."""

    place: str = ""

    def hub(self, lang: str, source: str) -> list[HubFile]:
        return [HubFile(f"{lang}_Latn.jsonl", self.place, None, "train")]


def test_official_files_are_written_from_the_hub_s_rows(cache, tmp_path):
    belebele_file(tmp_path / "hub", "data")
    task = Local(place=str(tmp_path / "hub"), limit=3)
    run = SimpleNamespace(tasks=(task,), lang=("deu",), source="eng", evaluated=("deu",), metric=Metrics(),
                          backbone=SimpleNamespace(kind="causal"))
    task.check_run(run)
    stage, = task.inputs(run, "deu")
    artifact = Cache(tmp_path / "cache").get(stage)
    assert artifact.receipt["facts"] == {"deu_Latn.jsonl": {"rows": 8, "commit": None}}
    assert [q.gold for q in task.load(artifact.path, "deu", "eng")[1]] == [1, 1, 1]
    with pytest.raises(XalignError, match=r"nowhere/at-all \(deu_Latn\): test could not be read from the hub .*task.path"):
        fetch(HubFile("x.jsonl", "nowhere/at-all", "deu_Latn", "test"), "main", tmp_path / "x.jsonl")


def test_a_metric_that_failed_is_tried_again_without_predicting_again(tmp_path):
    for code, text in (("eng", "The lamp {} is on."), ("fin", "Lamppu {} on päällä.")):
        (tmp_path / f"{code}.txt").write_text("".join(text.format(i) + "\n" for i in range(4)), encoding="utf-8")
    command = ["mode=evaluate", "backbone=tiny", "task=ntrex", "lang=fin", f"task.path={tmp_path}", "task.max_new_tokens=4", "tracker=none",
               f"cache={tmp_path / 'cache'}", "metric.comet.model=Unbabel/wmt22-comet-da"]  # no hub here, and perhaps no COMET
    for ran in ("predict", "score"):
        done = xalign(*command, cwd=tmp_path)
        assert done.returncode == 0 and f"{ran} ntrex fin, untrained model …" in done.stdout, done.stderr
    assert "predict ntrex fin, untrained model …" not in done.stdout and "finished earlier" not in done.stdout
    rows = [r for path in (tmp_path / "runs").glob("*/rows.jsonl") for r in read_jsonl(path) if r["when"] == "before"]
    comet = [r for r in rows if r["metric"] == "comet"]
    assert len(comet) == 2 and all(r["value"] is None and "could not be scored by" in r["reason"] for r in comet)
    assert all(r["value"] is not None for r in rows if r["metric"] in ("bleu", "chrf", "chrf++"))


def test_a_benchmark_without_the_target_language_scores_the_source_beside_another(cache, tmp_path):
    """In training: the two benchmarks of x-LLM's Table 2 and a sweep over languages of which one has no Greek."""
    plan = ["method=sft", "backbone=tiny", "data.questions=12", "plan=true", f"cache={cache}", "lang=ell"]
    done = xalign(*plan, "task=[xquad,mlqa]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "absent: task.mlqa" in done.stdout and "Greek (ell)" in done.stdout and "predict mlqa eng" in done.stdout
    done = xalign(*plan, "task=mlqa", cwd=tmp_path)
    assert done.returncode == 2 and "Greek (ell)" in done.stderr
