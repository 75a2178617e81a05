"""Trackers: one that fails, hangs or is missing never stops a run; names, keys and secrets."""
from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tracker_files import comet_record, wandb_record
from wandb_server import WandbServer

from xalign import tracking
from xalign.config import ConfigError, build
from xalign.tracking import Both, Comet, NoTracker, Package, Start, Tracker, Wandb, _Line, accounts, start, without_secrets
from xalign.tracking.record import Curves, same_task
from xalign.tracking.wandb_run import identifier

CONF = Path(__file__).parents[1] / "conf" / "tracker"
CONFIG = {"method": "sdrrl", "method.code_switch": 0.15, "hub.api_key": "hidden-value", "lang": "fin"}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No key, no settings of the machine's owner, no server."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "COMET_API_KEY", "NETRC", "COMET_CONFIG", "http_proxy",
                 "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("COMET_URL_OVERRIDE", "http://127.0.0.1:9/clientlib/")


def told(folder: Path, name: str = "sdrrl-fin-tiny-s0") -> Start:
    return Start(CONFIG, name, "sweep-1", folder, ("sdrrl", "fin", "tiny"), "train", "k" * 32)


def record(node, folder: Path) -> tuple[Tracker, list[str]]:
    """A short run: three steps, a table, a used package, a summary."""
    said: list[str] = []
    tracker = start(node, told(folder), said.append)
    for step in range(3):
        tracker.log({"loss": 3.0 - step, "name": "text is left out", "step": step}, step)
    tracker.summary({"after/fin": 0.25})
    tracker.table("scores", ["metric", "value"], [["accuracy", 0.5], ["bleu", None]])
    tracker.package(Package("answers-abc", "answers", {"receipt.json": "{}"}, {"label": "answers"}, used=True))
    tracker.finish()
    return tracker, said


def test_both_offline_hold_config_curves_tables_inputs_and_summary_and_no_secret(tmp_path):
    node = build(yaml.safe_load((CONF / "both.yaml").read_text()) | {"wandb": {"tags": ["mine"]}}, "tracker")
    tracker, said = record(node, tmp_path)
    found = wandb_record(tmp_path)
    assert (found.run.display_name, found.run.run_group, found.run.project, found.run.job_type, found.run.run_id) == \
        ("sdrrl-fin-tiny-s0", "sweep-1", "xalign", "train", "sdrrl-fin-tiny-s0")
    assert list(found.run.tags) == ["sdrrl", "fin", "tiny", "mine"]
    assert found.config["method.code_switch"] == 0.15 and found.config["method"] == "sdrrl"
    assert [(h["loss"], h["step"]) for h in found.history if "loss" in h] == [(3.0, 0), (2.0, 1), (1.0, 2)]
    assert found.table("scores")["data"] == [["accuracy", 0.5], ["bleu", None]]
    assert [(a.name, a.type, a.use_after_commit) for a in found.artifacts if a.type == "answers"] == [("answers-abc", "answers", True)]
    assert found.summary["after/fin"] == 0.25 and found.exit_code == 0
    comet = comet_record(tmp_path / "comet")
    assert comet.metrics("loss") == [(0, 3.0), (1, 2.0), (2, 1.0)] and comet.metrics("after/fin")[0][1] == 0.25
    for part in ("method.code_switch", "0.15", "sdrrl-fin-tiny-s0", "sweep-1", "answers/answers-abc/receipt.json"):
        assert part in comet.text, part
    assert any(b"accuracy,0.5" in data for data in comet.files.values())
    assert all(b"hidden-value" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()) and "hidden-value" not in comet.text
    assert len(said) == 2 and all("no key found" in line for line in said)
    assert f"wandb sync {tracker.where}" in said[0] and Path(tracker.where).is_dir() and "comet upload" in said[1]


def test_a_repeated_offline_record_replaces_the_unfinished_one(tmp_path):
    for _ in range(2):
        tracker, _ = record(Both(), tmp_path)
        assert all(line.complete for line in tracker.lines.values())
        time.sleep(1.1)  # W&B's folders are named by the second
    assert len(list(tmp_path.rglob("run-*.wandb"))) == len(list(tmp_path.rglob("comet/*.zip"))) == 1


def test_no_tracker_and_disabled_record_nothing(tmp_path):
    assert isinstance(build(yaml.safe_load((CONF / "none.yaml").read_text()), "tracker"), NoTracker)
    for node in (NoTracker(), Wandb(mode="disabled"), Comet(mode="disabled"), Both(Wandb(mode="disabled"), Comet(mode="disabled"))):
        tracker, said = record(node, tmp_path)
        assert (tracker.where, said, tracker.active) == ("", [], False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("node", "key"), [(Wandb(), "WANDB_API_KEY"), (Comet(), "COMET_API_KEY")])
def test_a_server_that_cannot_be_reached_means_offline(node, key, tmp_path, monkeypatch):
    monkeypatch.setenv(key, "a" * 40)
    tracker, said = record(node, tmp_path)
    assert len(said) == 1 and "127.0.0.1:9" in said[0] and "cannot be reached" in said[0] and Path(tracker.where).exists()


@pytest.mark.parametrize(("node", "says"), [(Wandb(mode="online"), "tracker.mode=online: no W&B key"),
                                            (Comet(mode="online"), "tracker.mode=online: no Comet key"),
                                            (Both(comet=Comet(mode="online")), "tracker.comet.mode=online: no Comet key")])
def test_online_without_a_key_fails_before_the_run(node, says, monkeypatch):
    with pytest.raises(ConfigError, match=says):
        node.check_run(None)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("COMET_API_KEY", "x")
    node.check_run(None)


def test_a_wrong_value_inside_both_is_named_by_its_whole_key():
    with pytest.raises(ConfigError, match=r"tracker.comet.artifacts=most: must be one of none, results, all"):
        build({"_target_": "xalign.tracking.Both", "comet": {"artifacts": "most"}}, "tracker")


def test_keys_are_found_in_the_packages_own_files(tmp_path):
    assert not accounts.wandb_key() and not accounts.comet_key()
    (tmp_path / ".netrc").write_text("machine 127.0.0.1\nlogin user\npassword abc\n")
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / ".comet.config").write_text("[comet]\napi_key = abc\n")
    assert accounts.wandb_key() and accounts.comet_key()


@pytest.fixture
def server(monkeypatch):
    """A W&B server and an account on it."""
    made: list[WandbServer] = []

    def make(known: dict | None = None) -> WandbServer:
        made.append(WandbServer(known))
        monkeypatch.setenv("WANDB_BASE_URL", made[-1].url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        return made[-1]

    yield make
    for one in made:
        one.close()


ONLINE = """
import sys, json, time
from pathlib import Path
from xalign.tracking import Start, Wandb, start
began = time.time()
begin = Start({}, "the-run", None, Path(sys.argv[1]))
tracker = start(Wandb(timeout=5, finish_timeout=3), begin, lambda line: print("SAID", line, flush=True))
for step in range(4):
    tracker.log({"loss": float(step)}, step)
if "hang" in sys.argv:
    time.sleep(0.5); print("HANG", flush=True); sys.stdin.readline()
tracker.summary({"score": 0.5})
tracker.finish()
print("DONE", json.dumps({name: line.complete for name, line in tracker.lines.items()}), flush=True)
"""


def test_a_run_that_is_at_the_server_goes_on_there_without_repeating_its_steps(server, tmp_path):
    there = server({"step": 1, "loss": 1.0})
    done = subprocess.run([sys.executable, "-c", ONLINE, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert 'DONE {"wandb": true}' in done.stdout and "SAID" not in done.stdout, done.stdout + done.stderr
    asked = dict(there.asked)
    assert asked["RunResumeStatus"]["name"] == "the-run"
    assert [(h["step"], h["loss"]) for h in there.history] == [(2, 2.0), (3, 3.0)]
    assert there.summary["score"] == 0.5


def test_a_server_that_goes_silent_in_the_middle_costs_one_line_and_bounded_time(server, tmp_path):
    there = server()
    run = subprocess.Popen([sys.executable, "-c", ONLINE, str(tmp_path), "hang"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True)
    while run.stdout.readline().strip() != "HANG":
        assert run.poll() is None
    there.hang()
    began = time.time()
    run.stdin.write("\n")
    run.stdin.flush()
    lines = [run.stdout.readline().strip() for _ in range(2)]
    assert time.time() - began < 10 and lines[1] == 'DONE {"wandb": false}'
    assert lines[0].startswith("SAID W&B: ") and "the run goes on without it" in lines[0] and "hidden" not in lines[0]
    run.kill()
    run.wait()
    run.stdin.close()
    run.stdout.close()


class Backend:
    """A tracker that fails or hangs where it is told to; its calls are kept."""

    where, id, later, resumed = "nowhere", "1", "send it", -1

    def __init__(self, **trouble):
        self.trouble, self.calls = trouble, []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            if name in self.trouble:
                self.trouble[name]()
        return call


def full():
    raise OSError(28, "No space left on device\nsecond line")


def lines_of(**backends) -> tuple[Tracker, list[str]]:
    said: list[str] = []
    return Tracker({name: _Line(name, lambda b=b: b, said.append, end=0.3) for name, b in backends.items()}), said


def drive(tracker: Tracker) -> None:
    tracker.log({"loss": 1.0}, 0)
    tracker.log({"loss": 1.0}, 1)
    tracker.image("curve", b"")
    tracker.table("scores", [], [])
    tracker.summary({})
    tracker.finish()


def test_trouble_is_said_once_and_ends_that_tracker_only():
    bad, good = Backend(log=full), Backend()
    tracker, said = lines_of(bad=bad, good=good)
    drive(tracker)
    assert said == ["bad: OSError: [Errno 28] No space left on device second line; the run goes on without it"]
    assert bad.calls == ["log"] and good.calls == ["log", "log", "image", "table", "summary", "finish"]
    assert (tracker.lines["bad"].complete, tracker.lines["good"].complete) == (False, True)


def test_a_table_or_picture_that_fails_is_left_out_and_the_rest_is_recorded():
    bad = Backend(image=full, table=full)
    tracker, said = lines_of(bad=bad)
    drive(tracker)
    assert len(said) == 1 and "image curve left out" in said[0]
    assert bad.calls[-2:] == ["summary", "finish"] and tracker.lines["bad"].complete


def test_a_tracker_that_hangs_holds_up_nothing():
    tracker, said = lines_of(bad=Backend(log=lambda: time.sleep(30)), good=Backend())
    began = time.time()
    drive(tracker)
    assert time.time() - began < 2
    assert said == ["bad: log is not finished after 0.3 s; what is missing can be sent later: send it; the run goes on without it"]
    assert tracker.lines["good"].complete and not tracker.lines["bad"].complete
    said.clear()
    began = time.time()
    line = _Line("slow", lambda: time.sleep(30), said.append, start=0.2)
    assert time.time() - began < 2 and line.over and said == ["slow: no answer in 0.2 s; the run goes on without it"]


def test_a_package_that_is_missing_or_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "comet").write_text("a file where the folder should be")
    tracker, said = record(Both(), tmp_path)
    assert not tracker.active and len(said) == 2 and "wandb is not installed" in said[0]
    assert all("goes on without it" in line for line in said)


def test_curves_of_two_stages_are_one_axis_and_nothing_is_sent_twice():
    sent = []

    class Keep(Tracker):
        def log(self, values, step):
            sent.append((step, values["loss"], values.get("stage")))

    curves = Curves(Keep())
    for step, loss, stage in ((1, 3.0, "e_im"), (2, 2.0, "e_im"), (1, 9.0, "train"), (1, 9.0, "train"), (2, 8.0, "train")):
        curves({"step": step, "loss": loss, "stage": stage})  # the third was in the log, the fourth is made again
    assert sent == [(1, 3.0, "e_im"), (2, 2.0, "e_im"), (3, 9.0, 1), (4, 8.0, 1)]


def test_names_that_trackers_take():
    assert identifier("sdrrl-fin-tiny-s0-1a2b") == "sdrrl-fin-tiny-s0-1a2b" and identifier("a/b:c") == "a_b_c"
    long = [identifier("x" * 140 + end) for end in "ab"]
    assert len(set(long)) == 2 and all(len(name) <= 128 for name in long)
    assert same_task("sentences:eng-fin", "fin", "eng") == "sentences:source-target" and same_task("open", "fin", "eng") == "open"


def test_secrets_are_dropped_and_tokens_are_not():
    config = {"a": [{"hf_token": 1, "max_new_tokens": 2}], "tokens_per_step": 3, "password": 4, "API_KEY": 5, "key": 6, "hub.token": 7}
    assert without_secrets(config) == {"a": [{"max_new_tokens": 2}], "tokens_per_step": 3, "key": 6}


def test_the_nodes_import_no_tracker():
    heavy = ("wandb", "comet_ml", "torch", "requests", "matplotlib")
    code = f"import sys, xalign.tracking.record; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert sorted(tracking.chosen(Both())) == ["comet", "wandb"]
