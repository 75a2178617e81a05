"""Damage to artifacts: not one byte can change, go missing or be added unnoticed."""
from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xalign import cache as module
from xalign import digests
from xalign.cache import RECEIPT, Artifact, Cache, Stage
from xalign.config import XalignError
from xalign.digests import files_below, read_sealed, write_sealed

CONTENT = {"words.jsonl": b'{"id": "a", "text": "p\xc3\xa4iv\xc3\xa4"}\n{"id": "b", "text": ""}\n', "deep/er/table.tsv": b"1\t2\n",
           "empty": b""}


def small(name: str = "small", **facts) -> Stage:
    """A stage of three little files; its facts hold what JSON has: numbers of all kinds, text, nesting."""
    def work(folder: Path, inputs: list[Artifact]) -> dict:
        for path, content in CONTENT.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return {"n": 2, "share": 1e-07, "by": {3: "ä\u2028", "none": None}, **facts}

    return Stage(name, 1, {"seed": 0}, work)


def damages(content: bytes) -> Iterator[bytes]:
    """Every byte with one bit flipped (which one goes round), then every truncation."""
    for i, byte in enumerate(content):
        yield content[:i] + bytes([byte ^ 1 << i % 8]) + content[i + 1:]
    yield from (content[:i] for i in range(len(content)))


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except XalignError as e:
        return str(e)
    return ""


def test_every_flipped_byte_and_every_truncation_of_an_artifact_is_noticed(tmp_path):
    cache, stage = Cache(tmp_path), small()
    folder = cache.get(stage).path
    checked = 0
    for path in files_below(folder):
        content = path.read_bytes()
        for damaged in damages(content):
            path.write_bytes(damaged)
            module._verified.clear()
            assert cache.find(stage) is None and cache.has(stage), (path, damaged)
            checked += 1
        path.write_bytes(content)
    assert checked > 2 * 900  # the receipt alone has more than 900 bytes
    assert Cache(tmp_path).sound(stage) and cache.find(stage)


def test_facts_come_back_as_they_are_given_out_the_first_time(tmp_path):
    first = Cache(tmp_path).get(small())
    assert first.receipt == Cache(tmp_path).get(small()).receipt and first.receipt["facts"]["by"] == {"3": "ä\u2028", "none": None}


def reseal(folder: Path, change: Callable[[dict], object]) -> None:
    value = read_sealed(folder / RECEIPT)
    change(value)
    write_sealed(folder / RECEIPT, value)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    digests.remove(path)
    make(path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a receipt that is a list": (lambda f: (f / RECEIPT).write_text("[]\n"), "receipt is damaged"),
    "a receipt without files": (lambda f: (f / RECEIPT).write_text('{"facts": {}}\n'), "receipt is damaged"),
    "a receipt of an older version": (lambda f: (f / RECEIPT).write_text(json.dumps(read_sealed(f / RECEIPT))), "receipt is damaged"),
    "an empty receipt": (lambda f: (f / RECEIPT).write_bytes(b""), "receipt is damaged"),
    "nested without end": (lambda f: (f / RECEIPT).write_text("[" * 200_000), "receipt is damaged"),
    "the receipt of another stage": (lambda f: reseal(f, lambda v: v.update(key="0" * 20)), "receipt is damaged"),
    "a folder for the receipt": (lambda f: replaced(f / RECEIPT, Path.mkdir), "receipt is damaged"),
    "no receipt": (lambda f: (f / RECEIPT).unlink(), ""),
    "a missing file": (lambda f: (f / "empty").unlink(), "file empty is missing or changed"),
    "a folder for a file": (lambda f: replaced(f / "words.jsonl", Path.mkdir), "file words.jsonl is missing or changed"),
    "a file for a folder": (lambda f: replaced(f / "deep", Path.touch), "file deep/er/table.tsv is missing or changed"),
    "a pipe for an empty file": (lambda f: replaced(f / "empty", os.mkfifo), "file empty is missing or changed"),
    "a link to nothing": (lambda f: replaced(f / "empty", lambda p: p.symlink_to("nowhere")), "file empty is missing or changed"),
    "a file for the artifact": (lambda f: replaced(f, Path.touch), ""),
    "a link to nothing for the artifact": (lambda f: replaced(f, lambda p: p.symlink_to("nowhere")), ""),
    "a file for the unfinished folder": (lambda f: (replaced(f, Path.mkdir), f.with_name(f.name + ".partial").touch()), ""),
    "what a killed exchange left": (lambda f: f.rename(f.with_name(f.name + ".old")), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("resumable", [False, True])
def test_a_damaged_artifact_is_made_again_with_one_line(tmp_path, fault, resumable):
    stage, lines = small(), []
    stage = Stage(stage.name, 1, {}, stage.work, resumable=resumable)
    folder = Cache(tmp_path).get(stage).path
    damage, says = FAULTS[fault]
    damage(folder)
    module._verified.clear()
    cache = Cache(tmp_path, lines.append)
    assert not cache.sound(stage) and cache.find(stage) is None and not lines
    found = cache.get(stage)
    assert {n: found.file(n).read_bytes() for n in CONTENT} == CONTENT
    assert lines == [*([f"small: the cached {says}; making it again" if "receipt" in says else f"small: cached {says}; making it again"]
                       if says else []), "small …"]
    assert cache.made == {stage.key}
    module._verified.clear()
    assert Cache(tmp_path).get(stage).receipt == found.receipt
    assert sorted(p.name for p in folder.parent.iterdir()) == [stage.key, stage.key + ".lock"]


def test_a_file_added_to_an_artifact_is_refused_by_name_and_nothing_is_lost(tmp_path):
    cache, stage = Cache(tmp_path), small()
    folder = cache.get(stage).path
    for name in (".nfs000001", ".DS_Store"):
        (folder / name).write_text("of the file system")
    module._verified.clear()
    assert cache.sound(stage) and cache.find(stage)
    for name in ("more.jsonl", "deep/er/more.tsv", ".hidden.jsonl"):
        added = folder / name
        for make in (Path.touch, lambda p: p.symlink_to("nowhere")):
            make(added)
            module._verified.clear()
            assert not Cache(tmp_path).sound(stage)
            with pytest.raises(XalignError, match=f"{name}: does not belong to this artifact of the cache; move it elsewhere"):
                cache.get(stage)
            assert added.is_symlink() or added.is_file()
            added.unlink()
    assert cache.get(stage).file("words.jsonl").read_bytes() == CONTENT["words.jsonl"]


@pytest.mark.parametrize("name", ["words.jsonl", RECEIPT, ""])
def test_what_cannot_be_read_is_refused_by_name(name):
    root = Path(tempfile.mkdtemp())  # not below pytest's folder, into which nobody else may look
    try:
        root.chmod(0o755)
        stage = small()
        folder = Cache(root).get(stage).path
        (folder / name).chmod(0)
        module._verified.clear()
        child = os.fork()
        if not child:
            code = 1
            try:
                if not os.geteuid():
                    os.setuid(65534)
                Cache(root).get(stage)
            except XalignError as e:
                code = 0 if f"{folder / name}: cannot be read (Permission denied); give yourself" in str(e) else 3
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (folder / name).chmod(0o755)
        assert Cache(root).find(stage)
    finally:
        shutil.rmtree(root)


def test_a_large_file_is_read_when_it_was_written_to_or_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 8)
    stage = small()
    path = Cache(tmp_path).get(stage).file("words.jsonl")
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-2] + b"!\n")
    module._verified.clear()
    assert not Cache(tmp_path).sound(stage)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk would
    assert Cache(tmp_path).sound(stage) and Cache(tmp_path).find(stage) is None
    path.write_bytes(whole[:-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not Cache(tmp_path).sound(stage)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOTDIR, errno.ENOLCK, errno.EIO, errno.ENOENT])
def test_every_refusal_of_a_disk_has_a_remedy(number):
    line = str(module.disk_error(OSError(number, os.strerror(number), "/x/y"), Path("/x")))
    assert line.startswith("/x/y: ") and "cache=DIR" in line and os.strerror(number) in line or "quota" in line
