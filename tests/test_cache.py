"""Stages and artifacts: keys, receipts, resume, damage, races."""
from __future__ import annotations

import errno
import json
import multiprocessing
import time
from pathlib import Path

import pytest

from xalign import cache as module
from xalign.cache import RECEIPT, Cache, Stage, disk_error
from xalign.config import XalignError


def counted(log: list[str], name: str, **more) -> Stage:
    def work(folder: Path, inputs) -> dict:
        log.append(name)
        text = name + "".join(a.file("out.txt").read_text() for a in inputs)
        (folder / "out.txt").write_text(text)
        return {"chars": len(text)}

    return Stage(name, 1, more.pop("params", {}), work, **more)


def test_a_key_depends_on_everything_that_decides_the_content():
    base = Stage("a", 1, {"x": 1}, lambda f, i: None)
    keys = {base.key, Stage("a", 2, {"x": 1}, base.work).key, Stage("a", 1, {"x": 2}, base.work).key,
            Stage("b", 1, {"x": 1}, base.work).key, Stage("a", 1, {"x": 1}, base.work, inputs=(base,)).key}
    assert len(keys) == 5
    assert Stage("a", 1, {"x": 1}, base.work, seconds=9, label="other").key == base.key


def test_inputs_run_first_and_everything_runs_once(tmp_path):
    log: list[str] = []
    first = counted(log, "first")
    second = counted(log, "second", inputs=(first,))
    third = counted(log, "third", inputs=(first, second))
    cache = Cache(tmp_path)
    artifact = cache.get(third)
    assert artifact.file("out.txt").read_text() == "thirdfirstsecondfirst"
    assert artifact.receipt["facts"] == {"chars": 21}
    assert log == ["first", "second", "third"]
    Cache(tmp_path).get(third)
    assert log == ["first", "second", "third"]
    assert [s.name for s in third.all()] == ["first", "second", "third"]


def test_a_failed_stage_leaves_no_artifact_and_a_resumable_one_its_files(tmp_path):
    attempts: list[int] = []

    def work(folder: Path, inputs) -> dict:
        seen = folder / "progress"
        attempts.append(int(seen.read_text()) if seen.is_file() else 0)
        seen.write_text(str(len(attempts)))
        if len(attempts) < 2:
            raise XalignError("stopped")
        return {}

    stage = Stage("slow", 1, {}, work, resumable=True)
    cache = Cache(tmp_path)
    with pytest.raises(XalignError):
        cache.get(stage)
    assert not cache.has(stage) and cache.started(stage)
    cache.get(stage)
    assert attempts == [0, 1] and cache.has(stage)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "receipt"])
def test_damage_is_detected_and_the_artifact_made_again(tmp_path, damage):
    log: list[str] = []
    stage = counted(log, "data")
    path = Cache(tmp_path).get(stage).file("out.txt")
    module._verified.clear()
    if damage == "flip":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "delete":
        path.unlink()
    else:
        (path.parent / RECEIPT).write_text("{")
    assert Cache(tmp_path).get(stage).file("out.txt").read_text() == "data"
    assert log == ["data", "data"]


def _race(root: str, marks: str) -> None:
    def work(folder: Path, inputs) -> dict:
        time.sleep(0.3)
        with open(marks, "a") as f:
            f.write("x")
        (folder / "out.txt").write_text("done")
        return {}

    assert Cache(root).get(Stage("raced", 1, {}, work)).file("out.txt").read_text() == "done"


def test_four_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_race, args=(str(tmp_path / "c"), str(tmp_path / "marks"))) for _ in range(4)]
    for j in jobs:
        j.start()
    for j in jobs:
        j.join(30)
    assert [j.exitcode for j in jobs] == [0] * 4
    assert (tmp_path / "marks").read_text() == "x"


def test_the_receipt_lists_digests_and_inputs(tmp_path):
    log: list[str] = []
    first = counted(log, "first", params={"n": 3})
    second = counted(log, "second", inputs=(first,))
    receipt = json.loads(Cache(tmp_path).get(second).file(RECEIPT).read_text())
    assert receipt["inputs"] == [first.key]
    # printf 'secondfirst' | sha256sum
    assert receipt["files"]["out.txt"]["sha256"] == "b105c9720c0c222a4535cc16499b248d3ab83db3b34db9238c41242d8e4e27a5"
    assert receipt["files"]["out.txt"]["bytes"] == 11


def test_a_full_disk_is_one_line_with_a_remedy():
    e = disk_error(OSError(errno.ENOSPC, "No space left on device", "/x/y"), Path("/x"))
    assert isinstance(e, XalignError) and "cache=DIR" in str(e) and "/x/y" in str(e) and "\n" not in str(e)
