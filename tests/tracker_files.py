"""Read back what the trackers wrote: W&B's offline file and Comet's zip."""
from __future__ import annotations

import json
import struct
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def records(path: Path) -> list[Any]:
    """The records of an offline run: W&B's 7-byte header, then LevelDB's log format (32 KiB blocks; each chunk has a
    CRC of 4 bytes, a length of 2, a type of 1: 1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4:at + 7])
        if left < 7 or kind == 0:
            at += left
            continue
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


@dataclass
class WandbRecord:
    """One offline run of W&B."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    def table(self, name: str) -> dict[str, Any]:
        (path,) = self.folder.rglob(f"{name}*.table.json")
        return json.loads(path.read_text())


def wandb_record(folder: Path, seconds: float = 30) -> WandbRecord:
    """The one offline run under `folder`; its service may still be writing when finish returns."""
    (path,) = folder.rglob("run-*.wandb")
    deadline = time.time() + seconds
    while "exit" not in {r.WhichOneof("record_type") for r in records(path)}:
        assert time.time() < deadline, "the record has no end"
        time.sleep(0.2)
    found = WandbRecord(path.parent)
    for r in records(path):
        kind = r.WhichOneof("record_type")
        if kind == "run":
            found.run = r.run
            found.config |= items(r.run.config.update)
        elif kind == "config":
            found.config |= items(r.config.update)
        elif kind == "history":
            found.history.append(items(r.history.item))
        elif kind == "summary":
            found.summary |= items(r.summary.update)
        elif kind == "artifact":
            found.artifacts.append(r.artifact)
        elif kind == "request" and r.request.WhichOneof("request_type") == "log_artifact":
            found.artifacts.append(r.request.log_artifact.artifact)
        elif kind == "exit":
            found.exit_code = r.exit.exit_code
    return found


@dataclass
class CometRecord:
    """One offline experiment of Comet."""

    messages: list[dict[str, Any]]
    files: dict[str, bytes]
    text: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [m["payload"] for m in self.messages if m["type"] == kind]

    def metrics(self, name: str) -> list[tuple[int | None, float]]:
        found = [m["metric"] for m in self.of("metric_msg")]
        return [(m.get("step"), float(m["metricValue"])) for m in found if m["metricName"] == name]


def comet_record(folder: Path) -> CometRecord:
    """The one zip in `folder`."""
    (path,) = folder.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    lines = files["messages.json"].decode().splitlines()
    return CometRecord([json.loads(line) for line in lines], files, files["messages.json"].decode() + files["experiment.json"].decode())
