"""A run's model is checked, listed and uploaded; what it saves loads without xalign."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import TINY, xalign

from xalign import push


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache, parallel_files) -> dict[str, Path]:
    """Three trained models from one process: causal, causal with LoRA merged, encoder (whose LoRA is refused)."""
    folder = tmp_path_factory.mktemp("push")
    argv = [a for a in TINY if a != "backbone=tiny"]
    done = xalign("-m", "method=sft", "lang=fin", "backbone=tiny,tiny_encoder", "trainer.adapter=none,lora", *argv,
                  f"parallel.path={parallel_files}", f"cache={cache}", cwd=folder)
    assert "1 of 4 jobs failed" in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Path] = {}
    for path in (folder / "runs").glob("sft-*"):
        config = (path / "config.yaml").read_text()
        found["encoder" if "tiny_encoder" in path.name else "lora" if "adapter: lora" in config else "causal"] = path
    assert set(found) == {"causal", "lora", "encoder"}
    return found


@pytest.fixture
def model(runs, tmp_path) -> Path:
    """A copy of the causal run, to be damaged."""
    shutil.copytree(runs["causal"], tmp_path / "run")
    return tmp_path / "run" / "model"


def test_a_dry_run_lists_files_sizes_and_metadata_and_needs_no_token(runs, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for kind, task in (("causal", "text-generation"), ("encoder", "text-ranking")):
        assert push.main([str(runs[kind]), "me/model", "--private", "--revision", "v2", "--dry-run"]) == 0
        out = capsys.readouterr().out
        size = push.size_of((runs[kind] / "model" / "model.safetensors").stat().st_size)
        for part in ("private model me/model, revision v2", "model.safetensors", size, f"task: {task}", "language: fi, en",
                     "licence: none named", "in model-index", "nothing was uploaded"):
            assert part in out, part
        assert "log.jsonl" not in out and "receipt.json" not in out


def test_what_it_saves_loads_and_answers_with_the_cards_own_code_and_without_xalign(runs):
    script = "import sys, os\nsys.modules['xalign'] = None\n"
    for kind in ("causal", "lora", "encoder"):
        card = (runs[kind] / "model" / "README.md").read_text(encoding="utf-8")
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace('["...", "..."]', '["Oslo", "Rooma"]')
        script += f"os.chdir({str(runs[kind] / 'model')!r})\nprint('KIND', {kind!r})\n{code}\nprint('END', type(model).__name__)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = dict(part.split("\n", 1) for part in done.stdout.split("KIND ")[1:])
    assert "END LlamaForCausalLM" in parts["causal"] and "END LlamaForCausalLM" in parts["lora"]
    assert parts["encoder"].splitlines()[0] in ("Oslo", "Rooma")
    names = {p.name for p in (runs["lora"] / "model").iterdir()}
    assert not any("adapter" in name for name in names)


def test_check_loads_the_model(runs, capsys):
    assert push.main([str(runs["causal"]), "me/model", "--dry-run", "--check"]) == 0
    assert "from_pretrained: LlamaForCausalLM" in capsys.readouterr().out


def damage_pickle(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def damage_weights(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(data[:-7])


def damage_shard(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))


def rewrite(name: str, old: str, new: str):
    def change(model: Path) -> None:
        text = (model / name).read_text(encoding="utf-8")
        assert old in text
        (model / name).unlink()
        (model / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    return change


DAMAGES = [
    (damage_pickle, "pytorch_model.bin: .bin is not published"),
    (damage_weights, "model.safetensors: is cut short"),
    (damage_shard, "model-00002-of-00002.safetensors: is missing"),
    (lambda m: (m / "tokenizer_config.json").unlink(), "tokenizer_config.json: is missing"),
    (lambda m: (m / "README.md").unlink(), "README.md: is missing"),
    (rewrite("README.md", "pipeline_tag: text-generation", "pipeline_tag: [oops"), "README.md: its first block is not valid metadata"),
    (rewrite("README.md", "pipeline_tag: text-generation\n", ""), "its metadata has no 'pipeline_tag'"),
    (rewrite("README.md", "pipeline_tag:", "base_model: org/model\npipeline_tag:"), "names no licence, and the model derives from org/m"),
    (rewrite("README.md", "# tiny", "hf_" + "a" * 34 + "\n# tiny"), "holds what looks like a secret key"),
    (rewrite("config.json", '"model_type"', '"_name_or_path": "/home/someone/models/x",\n "model_type"'), "names a folder of this mach"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[says[:40] for _, says in DAMAGES])
def test_what_must_not_be_published_is_refused_in_one_line(model, capsys, damage, says):
    damage(model)
    assert push.main([str(model.parent), "me/model", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err + captured.out and len(captured.err.strip().splitlines()) == 1
    assert "a" * 34 not in captured.err + captured.out  # a key is not repeated


@pytest.mark.parametrize(("argv", "says"), [
    (["nowhere", "me/model"], "nowhere: no such run folder"), (["RUN", "model"], "write USER/model"),
    (["RUN", "me/../x"], "not a name on the hub"), (["RUN", "me/model"], "set HF_TOKEN")])
def test_mistakes_are_one_line_and_exit_code_2(runs, tmp_path, capsys, monkeypatch, argv, says):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert push.main([str(runs["causal"]) if a == "RUN" else a for a in argv]) == 2
    assert says in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """The few endpoints of the hub that a small upload needs; keeps what it is sent."""

    asked: list[tuple[str, object]] = []

    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        self.asked.append((self.path, lines))
        url = f"http://{self.headers['Host']}/me/model"
        if self.path.endswith("/create"):
            answer = {"url": url, "id": "me/model"}
        elif "/preupload/" in self.path:
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]}
        else:
            answer = {"commitUrl": f"{url}/commit/abc", "commitOid": "abc", "success": True}
        self.reply(answer)

    def do_GET(self) -> None:
        self.asked.append((self.path, None))
        self.reply({"id": "me/model", "sha": "abc", "siblings": [], "tags": [], "modelId": "me/model"})

    def reply(self, answer: object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_an_upload_makes_the_repository_the_branch_and_one_commit_of_every_file(runs):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0",
           "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-m", "xalign.push", str(runs["causal"]), "me/model", "--private", "--revision", "v2"],
                          capture_output=True, text=True, env=env, timeout=60)
    server.shutdown()
    assert done.returncode == 0 and "uploaded to" in done.stdout and "me/model" in done.stdout, done.stdout + done.stderr + str(Hub.asked)
    made = next(lines[0] for path, lines in Hub.asked if path == "/api/repos/create")
    assert made["name"] == "model" and made.get("private", made.get("visibility") == "private")
    assert any(path.endswith("/branch/v2") for path, _ in Hub.asked)
    (commit,) = [lines for path, lines in Hub.asked if path == "/api/models/me/model/commit/v2"]
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == {p.name for p in (runs["causal"] / "model").iterdir()}
    assert "hf_test" not in done.stdout + done.stderr


def test_the_cards_metadata_is_what_the_hub_reads(runs):
    from huggingface_hub import ModelCard

    data = ModelCard((runs["causal"] / "model" / "README.md").read_text(encoding="utf-8")).data
    rows = [json.loads(line) for line in (runs["causal"] / "rows.jsonl").read_text().splitlines()]
    wanted = {(r["lang"], r["task"], r["metric"]): (round(r["value"], 4), r["n"]) for r in rows
              if r["when"] == "after" and r["value"] is not None and "." not in r["metric"]}
    assert len(data.eval_results) == len(wanted) > 10
    fin = next(e for e in data.eval_results if e.metric_type == "accuracy_pmi" and e.dataset_config == "fi")
    assert (fin.metric_value, fin.metric_args["n"]) == wanted["fin", "choice", "accuracy_pmi"] and fin.metric_args["signature"]
    text = (runs["causal"] / "model" / "README.md").read_text(encoding="utf-8")
    stages = json.loads((runs["causal"] / "run.json").read_text())["cost"]["stages"]
    facts = next(s["facts"] for s in stages if "train_rows" in s["facts"])
    assert f"training data: {facts['train_rows']} rows and {facts['valid_rows']} held out" in text
    assert "FLOPs of the model" in text and "energy" in text
