"""Open instructions: MI-Eval's lines, Vicuna's files, off-target rate, the judge (a small real HTTP server), bad lines."""
from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.backbones.causal import CausalBackbone
from xalign.backbones.node import Tiny
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Judge, Metrics
from xalign.tasks.base import Evaluation, Journal
from xalign.tasks.evaluate import evaluation
from xalign.tasks.files import json_lines
from xalign.tasks.openended import OpenTask, read_instructions

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
ROWS = [{"id": i, "instruction": text, "lang": lang} for i, pair in enumerate([("Nenne drei Flüsse.", "Name three rivers."),
        ("Schreibe ein Gedicht über Regen.", "Write a poem about rain.")], 1) for lang, text in zip(("de", "eng"), pair, strict=True)]
GERMAN = "Der Rhein, die Donau und die Elbe sind drei Flüsse in Mitteleuropa."
ENGLISH = "The Rhine, the Danube and the Elbe are three rivers in central Europe."


def make_run(task, *langs: str, metric=Metrics()) -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=Tiny(), lang=langs, target=langs[0], source="eng", seed=0, metric=metric,
                           evaluated=(*langs, "eng"))


def put(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_lines(rows), encoding="utf-8")
    return path


@pytest.fixture
def endpoint():
    """An OpenAI-compatible judge that prefers the answer with the Rhine in it, whichever place it stands in."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            asked.append(text)
            first, second = text.split("ANSWER A")[1].split("ANSWER B")
            verdict = "TIE" if ("Rhein" in first) == ("Rhein" in second) else "A" if "Rhein" in first else "B"
            data = json.dumps({"choices": [{"message": {"role": "assistant", "content": f"One names a river.\nVERDICT: {verdict}"},
                                            "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def judged(folder: Path, metric: Metrics, opponent: Path | None = None) -> dict[str, dict]:
    """The scores of two given answers in German, the second one in English."""
    folder.mkdir()
    Journal(folder / "predictions.mi_eval.jsonl").add(
        {"id": f"mi_eval/{n}", "task": "mi_eval", "lang": "deu", "cluster": str(n), "prompt": f"Frage {n}", "prediction": text,
         "references": [], "text": ""} for n, text in ((1, GERMAN), (2, ENGLISH)))
    ev = Evaluation(folder, lambda: pytest.fail("scoring needs no model"), (), "deu", "eng", True, metric=metric, out=folder,
                    opponent=opponent)
    OpenTask().score(ev)
    return {r["metric"]: r for r in ev.scores}


@pytest.mark.parametrize("name", ["mi_eval.jsonl", "deu.jsonl", "de.jsonl", "questions_German.jsonl", "mi_eval/mi_eval.jsonl"])
def test_instructions_come_from_one_file_or_one_for_each_language(tmp_path, name):
    put(tmp_path / name, ROWS if "mi_eval" in name else [r for r in ROWS if r["lang"] == "de"])
    task = OpenTask(path=str(tmp_path))
    _, items = task.load(task.root(), "deu", "eng")
    assert [(i.id, i.prompt, i.lang) for i in items] == [("mi_eval/1", "Nenne drei Flüsse.", "deu"),
                                                         ("mi_eval/2", "Schreibe ein Gedicht über Regen.", "deu")]
    assert task.lacks(make_run(task, "deu"), "deu") == ""
    assert task.lacks(make_run(task, "deu"), "fin").startswith(f"task.mi_eval.path={tmp_path}: ")


def test_an_instruction_may_have_an_input_and_no_id(tmp_path):
    rows = [{"instruction": "Käännä.", "input": "One.", "lang": "Finnish"}, {"instruction": "Laske.", "input": ""}]
    path = put(tmp_path / "fin.jsonl", rows)
    assert read_instructions(path, "fin") == [("1", "Käännä.\n\nOne."), ("2", "Laske.")]


def test_answers_keep_their_lines_and_without_an_endpoint_the_judge_is_absent(cache, tmp_path, monkeypatch):
    generate, asked = CausalBackbone.generate, []

    def recorded(self, *args, **how):
        asked.append(how)
        return generate(self, *args, **how)

    monkeypatch.setattr(CausalBackbone, "generate", recorded)
    put(tmp_path / "mi_eval.jsonl", ROWS)
    task = OpenTask(path=str(tmp_path), max_new_tokens=12)
    run = make_run(task, "deu")
    task.check_run(run)
    stage = evaluation(run, run.backbone.weights(run), task, "deu", True)
    artifact = Cache(cache).get(stage)
    scores = {(r["metric"], r["name"]): r for r in read_jsonl(artifact.file("scores.jsonl"))}
    records = list(read_jsonl(Cache(cache).get(stage.inputs[0]).file("predictions.mi_eval.jsonl")))
    assert {r["id"] for r in records} == {"mi_eval/1", "mi_eval/2"} and not any(how["stop_newline"] for how in asked) and asked
    assert all(r["raw"] == r["prediction"] and not r["references"] for r in records)
    assert set(scores) == {("off_target", "model"), ("judge_win_rate", "model")}
    absent = scores["judge_win_rate", "model"]
    assert absent["value"] is None and absent["n"] == 0 and "metric.judge.url names no endpoint" in absent["reason"]


def test_the_off_target_rate_is_that_of_the_answers(tmp_path):
    found = judged(tmp_path / "a", Metrics())["off_target"]
    assert (found["value"], found["n"]) == (1 / 2, 2)


def test_the_judge_compares_with_the_untrained_model_or_a_file_in_both_orders(tmp_path, endpoint):
    url, asked = endpoint
    opponent = tmp_path / "untrained"
    opponent.mkdir()
    theirs = [{"id": f"mi_eval/{n}", "prediction": text} for n, text in ((1, "Keine."), (2, GERMAN), (9, GERMAN))]
    Journal(opponent / "predictions.mi_eval.jsonl").add(theirs)
    metric = Metrics(judge=Judge(url=url, model="small"))
    rate = judged(tmp_path / "b", metric, opponent)["judge_win_rate"]
    # ours is right in the first question, theirs in the second: one win of two, each asked in both orders
    assert (rate["value"], rate["n"]) == (0.5, 2) and len(asked) == 4 and sum("Frage 1" in text for text in asked) == 2
    file = put(tmp_path / "other.jsonl", theirs[:1])
    won = judged(tmp_path / "c", replace(metric, judge=replace(metric.judge, against=str(file))))["judge_win_rate"]
    assert (won["value"], won["n"]) == (1, 1)
    none = judged(tmp_path / "d", metric)["judge_win_rate"]
    assert none["value"] is None and "no opponent" in none["reason"]


def test_the_opponent_s_answers_are_part_of_the_scores_key(tmp_path, endpoint):
    task = OpenTask(path=str(tmp_path))
    keys = []
    for answer in ("Keine.", GERMAN):
        file = put(tmp_path / "other.jsonl", [{"id": "mi_eval/1", "prediction": answer}])
        run = make_run(task, "deu", metric=Metrics(judge=Judge(url=endpoint[0], model="small", against=str(file))))
        keys.append(json.dumps(task.scoring(run, "deu")))
    keys.append(json.dumps(task.scoring(make_run(task, "deu"), "deu")))
    assert len(set(keys)) == 3


@pytest.mark.parametrize("name, change, what", [
    ("mi_eval.jsonl", {"instruction": " "}, "'instruction' is missing or empty"), ("mi_eval.jsonl", {"lang": None}, "'lang' is missing"),
    ("mi_eval.jsonl", {"id": 1, "lang": "eng"}, "id=1: occurs a second time in English"),
    ("eng.jsonl", {"lang": "deu"}, "lang=deu: is not English, which this file's name says"),
    ("questions_English.jsonl", {"question_id": 7}, "'text' is missing or empty"),
])
def test_a_bad_line_is_named(tmp_path, name, change, what):
    rows = [ROWS[1], ROWS[3], {"instruction": "More.", "lang": "eng", **change}]
    path = put(tmp_path / name, rows)
    task = OpenTask(path=str(tmp_path))
    with pytest.raises(XalignError) as e:
        task.check_run(make_run(task, "eng"))
    assert str(e.value).startswith(f"{path}:3: ") and what in str(e.value)


def test_a_folder_and_no_shots_are_needed(tmp_path):
    with pytest.raises(ConfigError, match="task.mi_eval.path: is empty, and MI-Eval is not on the hub"):
        OpenTask().check_run(make_run(OpenTask(), "deu"))
    with pytest.raises(ConfigError, match="task.mi_eval.shots=2: an open instruction has no right answer"):
        build({"_target_": "xalign.tasks.openended.OpenTask", "shots": 2}, "task.mi_eval")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the official files are not beside the repository")
def test_vicuna_s_files_can_be_read():
    task = OpenTask(path=str(SHARED / "vicuna80"))
    langs = ("ara", "zho", "hin", "ind", "jpn", "kor", "por")
    task.check_run(make_run(task, *langs))
    for lang in (*langs, "eng"):
        _, items = task.load(task.root(), lang, "eng")
        assert [i.id for i in items] == [f"mi_eval/{n}" for n in range(1, 81)]
    assert items[0].prompt == "How can I improve my time management skills?"
    assert "questions_Finnish.jsonl" in task.lacks(make_run(task, "fin"), "fin")
