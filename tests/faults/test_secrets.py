"""Keys and passwords of the environment are in no file that a run leaves, and on no screen; as configuration values they are refused."""
from __future__ import annotations

import base64
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import TINY, xalign
from faultkit import forked, refusal

from xalign.config import XalignError
from xalign.safe import hide, secret_in

KEYS = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdefplanted1", "COMET_API_KEY": "plantedcomet0123456789abc",
        "HF_TOKEN": "hf_plantedABCDEFGHIJKLMNOPQRSTUVWXYZ01", "OPENAI_API_KEY": "sk-planted/judge+0123456789abcdef",
        "AWS_SECRET_ACCESS_KEY": "plantedaws0123456789abcdef", "DATABASE_PASSWORD": "planted-database"}
ADDRESSES = {"HTTPS_PROXY": ("proxy", "plantedproxy"), "PIP_INDEX_URL": ("index", "plantedindex"), "HF_ENDPOINT": ("hub", "plantedhub"),
             "PIP_EXTRA_INDEX_URL": ("extra", "plantedextra"), "WANDB_BASE_URL": ("wb", "plantedwb"),
             "COMET_URL_OVERRIDE": ("comet", "plantedserver")}
PLANTED = {**KEYS, **{name: password for name, (_, password) in ADDRESSES.items()}, "netrc": "plantednetrc0123456789abcdefabcdefabcdef",
           "hub file": "hf_plantedfileABCDEFGHIJKLMNOPQRSTUVWX"}


def forms(secret: str) -> set[bytes]:
    """A secret as it is, as an address writes it, and in base64 at each of the three places where it can begin."""
    found = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}
    for lead in range(3):
        coded = base64.b64encode(b"x" * lead + secret.encode()).decode()
        found.add(coded[4 * bool(lead):len(coded) - len(coded) % 4 - 4])
    return {f.encode() for f in found}


def held(data: bytes) -> set[str]:
    """Which of the planted secrets stand in `data`."""
    return {name for name, secret in PLANTED.items() if any(form in data for form in forms(secret))}


def leaks(folder: Path, *known: Path) -> dict[str, set[str]]:
    """File → secrets in it, also inside zip archives."""
    found = {}
    for path in (p for p in folder.rglob("*") if p.is_file() and p not in known):
        contents = {str(path): path.read_bytes()}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents |= {f"{path}!{name}": archive.read(name) for name in archive.namelist()}
        found |= {name: hit for name, data in contents.items() if (hit := held(data) | held(name.encode()))}
    return found


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """A judge that repeats the key it was sent, in every field of its replies."""
    class Parrot(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            sent = self.headers["Authorization"]
            reply = {"choices": [{"message": {"content": f"{sent}\nVERDICT: A"}, "finish_reason": f"stop {sent}"}], "model": f"m {sent}"}
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys wherever the packages look for them, and no server that answers."""
    home = tmp_path_factory.mktemp("home")
    (home / ".netrc").write_text(f"machine 127.0.0.1\nlogin user\npassword {PLANTED['netrc']}\n")
    (home / ".netrc").chmod(0o600)
    (home / "token").write_text(PLANTED["hub file"])
    addresses = {name: f"http://{user}:{password}@127.0.0.1:9/simple" for name, (user, password) in ADDRESSES.items()}
    return {**KEYS, **addresses, "HOME": str(home), "HF_TOKEN_PATH": str(home / "token"), "XALIGN_CACHE": str(home / "cache"),
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "XALIGN_WHEELS": str(home),
            "WANDB_MODE": "offline"}


@dataclass
class Left:
    """What a few commands left behind: files, and what they said."""

    folder: Path
    environment: dict[str, str]
    said: str = ""

    def command(self, *argv: str, code: int = 0) -> None:
        done = forked([*argv], self.folder, self.environment, before=lambda: os.umask(0o077) and None)
        self.said += done.stdout + done.stderr
        assert done.returncode == code, f"{argv}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], judge: str, parallel_files: Path) -> Left:
    """A run with its judge and its trackers, a sweep that fails, a model that is not published, reports."""
    made = Left(tmp_path_factory.mktemp("left"), environment)
    (made.folder / "mi_eval.jsonl").write_text("".join(json.dumps({"instruction": "Say one.", "id": 1, "lang": lang}) + "\n"
                                                       for lang in ("fin", "eng")))
    (made.folder / "theirs.jsonl").write_text(json.dumps({"id": "mi_eval/1", "prediction": "Another answer."}) + "\n")
    run = ["method=sft", "lang=fin",
           *[t for t in TINY if not t.startswith(("task", "tracker"))], f"parallel.path={parallel_files}",
           "task=mi_eval", "task.path=.", "task.max_new_tokens=4",
           f"metric.judge.url={judge}", "metric.judge.model=m", "metric.judge.against=theirs.jsonl"]
    made.command(*run, "tracker=none")
    made.command(*run, "tracker=both", "tracker.comet.artifacts=all")
    folder = str(next(p for p in (made.folder / "runs").iterdir() if p.name.startswith("sft")))
    made.command("-m", "method=sft", "lang=fin", "backbone=smollm2", "tracker=none", "task.phrases=0", "task.sentences=0", code=2)
    made.command("push", folder, "user/name", "--dry-run")
    made.command("push", folder, "user/name", code=2)  # the hub's address has a password
    made.command("report", folder, "--html", "r.html", "--csv", "r.csv", "--latex", "r.tex", "--markdown", "r.md")
    return made


def test_no_key_is_left_by_a_run_its_trackers_its_reports_and_its_failures(left: Left) -> None:
    verdicts = list((left.folder / "runs").rglob("verdicts.*.jsonl"))
    assert verdicts and b"Bearer ***" in verdicts[0].read_bytes()  # the judge did repeat the key
    assert list(left.folder.rglob("*.wandb")) and list(left.folder.rglob("comet/*.zip")) and "pip download" in left.said
    home = Path(left.environment["HOME"])
    assert not held(left.said.encode()), [line for line in left.said.splitlines() if held(line.encode())]
    assert not leaks(left.folder) and not leaks(home, home / ".netrc", home / "token")


def test_files_obey_the_umask(left: Left) -> None:
    """Nothing is opened to others that they could not read by the umask alone; a lock file is empty."""
    files = [p for root in (left.folder, Path(left.environment["HOME"]) / "cache") for p in root.rglob("*")]
    opened = [p for p in files if p.lstat().st_mode & 0o077 and not p.is_symlink() and not (p.suffix == ".lock" and not p.stat().st_size)]
    assert len(files) > 50 and [p for p in opened if p.name not in ("mi_eval.jsonl", "theirs.jsonl")] == []


@pytest.mark.long
def test_no_key_is_left_by_a_sweep_in_other_processes(tmp_path: Path, environment: dict[str, str], parallel_files: Path) -> None:
    done = xalign("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "method=sft", "seed=0,1", "lang=fin", *TINY,
                  f"parallel.path={parallel_files}", cwd=tmp_path, env=environment)
    assert done.returncode == 0 and list(tmp_path.rglob("job-001.log"))
    assert not held((done.stdout + done.stderr).encode()) and not leaks(tmp_path)


VALUES = {"a password in an address": "backbone.name=https://user:plantedpassword@host/m",
          "a key in an address": 'tracker.entity="https://host/v1?api_key=plantedpassword"',
          "a token": "tracker.entity=hf_plantedpasswordABCDEFGHIJKLMNOPQRS",
          "a key of a judge": "metric.judge.model=sk-plantedpassword0123456789",
          "what the environment holds": "tracker.project=plantedpassword-x", "in a list": "tracker.tags=[a,sk-plantedpassword0123456789]",
          "by name of its variable": "tracker.project=${oc.env:MY_SERVICE_TOKEN}", "of a launcher": "hydra.sweep.dir=plantedpassword-x",
          "under an unknown key": "tracker.api_key=plantedpassword-x", "not readable": "x?token=plantedpassword=[",
          "in one job of several": "tracker.entity=mine,hf_plantedpasswordABCDEFGHIJKLMNOPQRS",
          "a judge's address": "metric.judge.url=https://user:plantedpassword@host/v1"}


@pytest.mark.parametrize(("name", "sweep"), [*((name, False) for name in VALUES), ("a token", True), ("in one job of several", True)])
def test_a_secret_is_no_configuration_value(name: str, sweep: bool, tmp_path: Path) -> None:
    """Refused before torch is imported and before anything is written, and not repeated in the message."""
    argv = ["method=sft", "lang=fin", *(["-m", "seed=0,1"] if sweep else []), VALUES[name]]
    done = forked(argv, tmp_path, {"MY_SERVICE_TOKEN": "plantedpassword-x"}, without=("torch",))
    line = refusal(done)
    assert "plantedpassword" not in done.stdout + done.stderr
    assert VALUES[name].split("=")[0].split("?")[0] in line
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(("text", "shown"), [
    ("GET https://me:pass@host/x?api_key=abc&n=1 failed", "GET https://***@host/x?api_key=***&n=1 failed"),
    ("token hf_" + "a" * 34, "token ***"), ("a variable: plantedvalue1", "a variable: ***"), ("plantedvalue%2F2", "***"),
    ("http://host:8000/v1 and a@b.example", "http://host:8000/v1 and a@b.example"), ("EMPTY", "EMPTY")])
def test_messages_hide_secrets(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "plantedvalue1")
    monkeypatch.setenv("THIRD_SECRET", "plantedvalue/2")
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")  # what servers without keys are given
    assert hide(text) == str(XalignError(text)) == shown


def test_ordinary_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_FILE_KEY", "/home/me/key.json")  # a path, and none of a secret
    for value in ("http://localhost:8000/v1", "meta-llama/Llama-2-7b-hf", "/home/me/key.json", "s3://bucket/x", None, 3, True, "",
                  {"a": ["b", {"c": "sk-ip"}]}):
        assert not secret_in(value, "key"), value
