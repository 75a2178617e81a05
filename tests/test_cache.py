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


# several processes

def shared(marks: Path, name: str, inputs: tuple[Stage, ...] = (), seconds: float = 0.2) -> Stage:
    """A stage that notes each time that it is really made."""
    def work(folder: Path, found) -> dict:
        with open(marks, "a") as f:
            f.write(name + "\n")
        time.sleep(seconds)
        (folder / "out.txt").write_text(name)
        return {}

    return Stage(name, 1, {}, work, inputs=inputs)


def _job(root: str, marks: str, tops: tuple[str, ...], said: str) -> None:
    """One job: `a` ← `b`, `c` ← `left` and `right`, wanted in the given order."""
    a = shared(Path(marks), "a")
    b, c = shared(Path(marks), "b", (a,)), shared(Path(marks), "c", (a,))
    top = {"left": shared(Path(marks), "left", (b, c)), "right": shared(Path(marks), "right", (c, b))}
    with open(said, "a") as f:
        cache = Cache(root, say=lambda line: print(line, file=f, flush=True))
        for name in tops:
            assert cache.get(top[name]).file("out.txt").read_text() == name


def processes(jobs: list[tuple]) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("fork")
    found = [context.Process(target=_job, args=args) for args in jobs]
    for p in found:
        p.start()
    return found


def test_jobs_that_overlap_make_each_stage_once_and_never_wait_in_a_circle(tmp_path):
    marks = tmp_path / "marks"
    orders = [("left", "right"), ("right", "left"), ("left",), ("right",)]
    jobs = processes([(str(tmp_path / "c"), str(marks), tops, str(tmp_path / f"said{i}")) for i, tops in enumerate(orders)])
    for j in jobs:
        j.join(30)
    assert [j.exitcode for j in jobs] == [0] * 4
    assert sorted(marks.read_text().split()) == ["a", "b", "c", "left", "right"]
    said = [(tmp_path / f"said{i}").read_text() for i in range(4)]
    waits = [line for text in said for line in text.splitlines() if "another job makes it; waiting" in line]
    assert waits and all(text.count("a: another job makes it") <= 1 for text in said)


def test_what_a_killed_holder_leaves_is_taken_over(tmp_path):
    marks, root = tmp_path / "marks", str(tmp_path / "c")

    def hold() -> None:
        Cache(root).get(shared(marks, "slow", seconds=60))

    context = multiprocessing.get_context("fork")
    holder = context.Process(target=hold)
    holder.start()
    while not marks.is_file():
        time.sleep(0.02)
    waiter = context.Process(target=lambda: Cache(root, say=lambda line: (tmp_path / "said").open("a").write(line + "\n")).get(
        shared(marks, "slow", seconds=0)))
    waiter.start()
    while not (tmp_path / "said").is_file():
        time.sleep(0.02)
    holder.kill()
    waiter.join(30)
    said = (tmp_path / "said").read_text().splitlines()
    assert waiter.exitcode == 0 and marks.read_text().split() == ["slow", "slow"]
    assert said == ["slow: another job makes it; waiting …", "slow …"]
    assert [p.name for p in (tmp_path / "c" / "slow").iterdir() if p.is_dir()] == [shared(marks, "slow").key]


def test_a_stage_is_renewed_once_however_many_ask(tmp_path):
    log: list[str] = []
    stage = counted(log, "scores")
    one, two = Cache(tmp_path), Cache(tmp_path)
    path = one.get(stage).file("out.txt")
    one.renew(stage)
    two.renew(stage)
    assert not one.has(stage) and not two.has(stage) and path.is_file()
    one.get(stage)
    assert two.has(stage) and log == ["scores", "scores"]
    two.get(stage)
    assert log == ["scores", "scores"]


def test_readers_of_an_artifact_that_is_made_again_find_it_whole(tmp_path):
    """Its file is damaged: several processes open it at once, one makes it again, all get the good content."""
    marks, root = tmp_path / "marks", tmp_path / "c"
    stage = shared(marks, "data")
    Cache(root).get(stage).file("out.txt").write_text("dxta")
    module._verified.clear()

    def read() -> None:
        assert Cache(root).get(stage).file("out.txt").read_text() == "data"

    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=read) for _ in range(4)]
    for j in jobs:
        j.start()
    for j in jobs:
        j.join(30)
    assert [j.exitcode for j in jobs] == [0] * 4
    assert marks.read_text().split() == ["data", "data"]
