"""What a tracker wrote is read back from its own offline files; trouble never reaches the run."""
from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from xalign import tracking
from xalign.config import ConfigError, build
from xalign.tracking import Comet, NoTracker, Tracker, Wandb, start, without_secrets

CONF = Path(__file__).parents[1] / "conf" / "tracker"
CONFIG = {"method": {"code_switch": 0.15, "api_key": "hidden-value"}, "lang": ["fin"]}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No key, no settings of the machine's owner, no server."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "COMET_API_KEY", "NETRC", "COMET_CONFIG", "http_proxy", "all_proxy", "HTTP_PROXY",
                 "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("COMET_URL_OVERRIDE", "http://127.0.0.1:9/clientlib/")


def record(node, folder: Path) -> tuple[Tracker, list[str]]:
    """A short run: two stages that both start at step 0, a table, a summary."""
    said: list[str] = []
    tracker = start(node, CONFIG, "sdrrl-fin", "sweep-1", folder, said.append)
    for step in range(2):
        tracker.log({"loss": 3.0 - step, "name": "text is left out", "step": step}, step)
    tracker.log({"loss": 9.0}, 0)
    tracker.table("scores", ["metric", "value"], [["accuracy", 0.5], ["bleu", None]])
    tracker.summary({"after/fin": 0.25})
    tracker.finish()
    return tracker, said


def wandb_records(folder: Path) -> list:
    """The records of an offline run: W&B's 7-byte header, then LevelDB's log format (32 KiB blocks; each chunk has a
    CRC of 4 bytes, a length of 2, a type of 1: 1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("run-*.wandb")
    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4:at + 7])
        if left < 7 or kind == 0:
            at += left
            continue
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def items(entries) -> dict:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def test_wandb_offline_holds_config_curves_table_and_summary(tmp_path):
    tracker, said = record(build(yaml.safe_load((CONF / "wandb.yaml").read_text()), "tracker"), tmp_path)
    deadline = time.time() + 30  # its service may still be writing when finish returns
    while not {"run", "exit"} <= {r.WhichOneof("record_type") for r in wandb_records(tmp_path)}:
        assert time.time() < deadline
        time.sleep(0.2)
    records = wandb_records(tmp_path)
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (run.display_name, run.run_group, run.project) == ("sdrrl-fin", "sweep-1", "xalign")
    assert items(run.config.update)["method"] == {"code_switch": 0.15}
    history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    assert [(h["loss"], h["step"]) for h in history if "loss" in h] == [(3.0, 0), (2.0, 1), (9.0, 0)]
    assert next(h["scores/nrows"] for h in history if "scores/nrows" in h) == 2
    (table,) = tmp_path.rglob("scores*.table.json")
    assert json.loads(table.read_text())["data"] == [["accuracy", 0.5], ["bleu", None]]
    summary: dict = {}
    for r in records:
        if r.WhichOneof("record_type") == "summary":
            summary |= items(r.summary.update)
    assert summary["after/fin"] == 0.25
    assert len(said) == 1 and "no key" in said[0] and f"wandb sync {tracker.where}" in said[0]
    assert Path(tracker.where).is_dir() and tmp_path in Path(tracker.where).parents


def test_comet_offline_holds_config_curves_table_and_summary(tmp_path):
    tracker, said = record(build(yaml.safe_load((CONF / "comet.yaml").read_text()), "tracker"), tmp_path)
    assert len(said) == 1 and "no key" in said[0] and f"comet upload {tracker.where}" in said[0]
    with zipfile.ZipFile(tracker.where) as archive:
        text = archive.read("messages.json").decode() + archive.read("experiment.json").decode()
        lines = [json.loads(line) for line in archive.read("messages.json").decode().splitlines()]
        tables = [archive.read(name).decode() for name in archive.namelist() if not name.endswith(".json")]
    assert "hidden-value" not in text
    metrics = [m["payload"]["metric"] for m in lines if m["type"] == "metric_msg"]
    assert [float(m["metricValue"]) for m in metrics if m["metricName"] == "loss"] == [3.0, 2.0, 9.0]
    for part in ("code_switch", "0.15", "sdrrl-fin", "sweep-1", "after/fin"):
        assert part in text, part
    assert any("accuracy,0.5" in table for table in tables)


def test_no_tracker_and_disabled_record_nothing(tmp_path):
    assert isinstance(build(yaml.safe_load((CONF / "none.yaml").read_text()), "tracker"), NoTracker)
    for node in (NoTracker(), Wandb(mode="disabled"), Comet(mode="disabled")):
        tracker, said = record(node, tmp_path)
        assert (tracker.where, said) == ("", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("node", "key"), [(Wandb(), "WANDB_API_KEY"), (Comet(), "COMET_API_KEY")])
def test_a_server_that_cannot_be_reached_means_offline(node, key, tmp_path, monkeypatch):
    monkeypatch.setenv(key, "a" * 40)
    tracker, said = record(node, tmp_path)
    assert len(said) == 1 and "127.0.0.1:9" in said[0] and "cannot be reached" in said[0] and Path(tracker.where).exists()


@pytest.mark.parametrize(("node", "says"), [(Wandb(mode="online"), "wandb login"), (Comet(mode="online"), "COMET_API_KEY")])
def test_online_without_a_key_fails_before_the_run(node, says, monkeypatch):
    with pytest.raises(ConfigError, match=says):
        node.check_run(None)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("COMET_API_KEY", "x")
    node.check_run(None)


def test_keys_are_found_in_the_packages_own_files(tmp_path):
    assert not tracking.wandb_key() and not tracking.comet_key()
    (tmp_path / ".netrc").write_text("machine 127.0.0.1\nlogin user\npassword abc\n")
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / ".comet.config").write_text("[comet]\napi_key = abc\n")
    assert tracking.wandb_key() and tracking.comet_key()


def test_trouble_is_said_once_and_ends_the_tracking():
    class Broken:
        where = "nowhere"

        def log(self, values, step):
            raise RuntimeError("disk\nfull")

    said: list[str] = []
    tracker = Tracker(Broken(), said.append)
    tracker.log({"loss": 1.0}, 0)
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert said == ["tracker: RuntimeError: disk full; the run goes on without it"]


def test_a_package_that_is_missing_or_fails_does_not_stop_the_run(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert start(Wandb(), CONFIG, "r", None, tmp_path, said.append).where == ""
    (tmp_path / "comet").write_text("a file where the folder should be")
    assert start(Comet(), CONFIG, "r", None, tmp_path, said.append).where == ""
    assert len(said) == 2 and "wandb is not installed" in said[0] and all("goes on without it" in line for line in said)


def test_secrets_are_dropped_and_tokens_are_not():
    config = {"a": [{"hf_token": 1, "max_new_tokens": 2}], "tokens_per_step": 3, "password": 4, "API_KEY": 5, "key": 6}
    assert without_secrets(config) == {"a": [{"max_new_tokens": 2}], "tokens_per_step": 3, "key": 6}


def test_the_nodes_import_no_tracker():
    code = "import sys, xalign.tracking; print([m for m in ('wandb', 'comet_ml', 'torch', 'requests') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
