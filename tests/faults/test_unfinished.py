"""What a killed stage had written so far is used only where it is as it was written; the rest is made again, to the same end."""
from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xalign.cache import Cache, Stage
from xalign.config import XalignError
from xalign.journal import Journal, finish, rewrite, sums_of
from xalign.training.spread import spread

ITEMS = {f"q{i}": f"What is {i} × {i}, ä?" for i in range(12)}


def answer(i: str) -> dict[str, Any]:
    return {"id": i, "answer": hashlib.sha256(ITEMS[i].encode()).hexdigest()[:12] + "ö"}


@dataclass(frozen=True)
class Writer:
    """Answers each item; after `limit` of them the run is killed."""

    limit: int = 99

    def write(self, items: Mapping[str, str], note: Callable[[dict[str, Any]], None]) -> None:
        for n, i in enumerate(items):
            if n == self.limit:
                raise KeyboardInterrupt
            note(answer(i))


def journal_work(folder: Path, limit: int) -> None:
    journal = Journal(folder / "predictions.qa.jsonl")
    for n, i in enumerate(i for i in ITEMS if i not in journal.done):
        if n == limit:
            raise KeyboardInterrupt
        journal.add([answer(i)])
    journal.arrange(ITEMS)


def spread_work(folder: Path, limit: int) -> None:
    spread(Writer(limit), ITEMS, folder / "answers.jsonl")


WORKS = {"journal": journal_work, "spread": spread_work}


def stage(kind: str, limit: int = 99) -> Stage:
    return Stage("answers", 1, {"kind": kind}, lambda folder, inputs: WORKS[kind](folder, limit), resumable=True)


def killed(kind: str, root: Path, limit: int = 7) -> Path:
    """The unfinished folder of a run that was killed behind `limit` answers."""
    with pytest.raises(KeyboardInterrupt):
        Cache(root).get(stage(kind, limit))
    return next(root.glob("answers/*.partial"))


def straight(kind: str, root: Path) -> dict[str, bytes]:
    return contents(Cache(root).get(stage(kind)).path)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "receipt.json"}


def damages(size: int) -> list[tuple[str, int]]:
    """A flipped byte at the start, in the middle and at the end; cut to nothing, one byte, a half, all but one."""
    return [("flip", at) for at in sorted({0, size // 2, size - 1})] + [("cut", to) for to in sorted({0, 1, size // 2, size - 1})]


def damage(path: Path, how: str, where: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[where:]
    else:
        data[min(where, len(data) - 1)] ^= bit  # the notes of the cost are not of one length
    path.write_bytes(data)


@pytest.mark.parametrize("kind", WORKS)
def test_a_damaged_unfinished_file_ends_as_an_undisturbed_run(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = straight(kind, tmp_path / "straight")
    assert len(wanted) == 1 and not any(name.endswith(".sums") for name in wanted)
    names = sorted(contents(killed(kind, tmp_path / "names")))
    assert len(names) == 3 and ".spent" in names
    noticed, n = 0, 0
    for name in names:
        data = (next((tmp_path / "names/answers").glob("*.partial")) / name).read_bytes()
        inside = [("flip", data.index(b'"answer": "') + 14)] if ".sums" not in name and name != ".spent" else []  # and it stays JSON
        for how, where in [*damages(len(data)), *inside]:
            root = tmp_path / f"{n}"
            n += 1
            folder = killed(kind, root)
            damage(folder / name, how, where)
            capfd.readouterr()
            assert straight(kind, root) == wanted, (name, how, where)
            told = capfd.readouterr().err.splitlines()
            assert len(told) <= 1 and all("is not as it was written" in line and ".jsonl" in line for line in told)
            noticed += bool(told)
    assert noticed >= 11  # a flip anywhere, and every cut of the lines; a cut of digests is what a kill leaves


@pytest.mark.long
@pytest.mark.parametrize("kind", WORKS)
def test_every_byte_of_an_unfinished_file(kind: str, tmp_path: Path) -> None:
    wanted, rng = straight(kind, tmp_path / "straight"), random.Random(8)
    files = contents(killed(kind, tmp_path / "once"))
    n = 0
    for name in (n for n in files if n != ".spent"):
        for where in range(len(files[name])):
            for how in ("flip", "cut"):
                root = tmp_path / f"{n}"
                n += 1
                damage(killed(kind, root) / name, how, where, 1 << rng.randrange(8))
                assert straight(kind, root) == wanted, (name, how, where)
    assert n > 800


def test_valid_json_that_was_not_written_is_not_used(tmp_path: Path) -> None:
    """What no parser can see: one digit of an answer."""
    path = tmp_path / "a.jsonl"
    Journal(path).add([{"id": "a", "x": 1}, {"id": "b", "x": 2}, {"id": "c", "x": 3}])
    path.write_bytes(path.read_bytes().replace(b'"x": 2', b'"x": 7'))
    assert list(Journal(path).done) == ["a"]
    path.write_bytes(path.read_bytes() + b'{"id": "d", "x": 4}\n')  # written behind it by something else
    assert list(Journal(path).done) == ["a"]


def test_a_kill_between_line_and_digest_or_in_either_is_no_damage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    Journal(path).add([{"id": "a"}, {"id": "b"}])
    lines, sums = path.read_bytes(), sums_of(path).read_bytes()
    for data, told, kept in ((lines, sums[:17], ["a"]), (lines, sums[:20], ["a"]), (lines[:-3], sums[:17], ["a"]),
                             (lines[:5], b"", []), (lines[:10], b"", []), (lines, sums, ["a", "b"])):
        path.write_bytes(data)
        sums_of(path).write_bytes(told)
        journal = Journal(path)
        assert list(journal.done) == kept
        journal.add([{"id": "c"}])
        assert list(Journal(path).done) == [*kept, "c"]
    finish(tmp_path)
    assert not capfd.readouterr().err and list(tmp_path.iterdir()) == [path]


def test_a_file_without_digests_is_read_as_it_is_and_gets_them_when_added_to(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a"}\n{"id": "b"}\n')
    journal = Journal(path)
    assert list(journal.done) == ["a", "b"] and not sums_of(path).exists()
    journal.add([{"id": "c"}])
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"x"'))
    assert list(Journal(path).done) == ["a"]


def test_what_changes_while_the_stage_runs_is_refused_and_repeated(tmp_path: Path) -> None:
    hurt = [True]

    def work(folder: Path, inputs: list[Any]) -> None:
        journal_work(folder, 99)
        if hurt.pop() if hurt else False:
            damage(folder / "predictions.qa.jsonl", "flip", 40)

    own = Stage("answers", 1, {"kind": "journal"}, work, resumable=True)
    with pytest.raises(XalignError, match=r"predictions\.qa\.jsonl:\d+: is not as it was written.*; repeat the command"):
        Cache(tmp_path / "hurt").get(own)
    assert contents(Cache(tmp_path / "hurt").get(own).path) == straight("journal", tmp_path / "straight")


def test_arranged_records_and_what_is_added_behind_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.add([answer(i) for i in ("q3", "q1", "q2")])
    journal.arrange(["q1", "q2"])
    journal.add([answer("q0")])
    assert list(Journal(path).done) == list(journal.done) == ["q3", "q1", "q2", "q0"]
    rewrite(path, [answer("q0")])
    (tmp_path / "a.jsonl.partial").write_text("half")  # of a kill
    finish(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=6), data=st.data())
def test_whatever_happens_to_the_bytes_only_a_true_beginning_is_read_back(tmp_path: Path, texts: list[str], data: st.DataObject) -> None:
    path = tmp_path / "a.jsonl"
    path.unlink(missing_ok=True)
    sums_of(path).unlink(missing_ok=True)
    true = [{"id": f"{n}", "text": t.encode("utf-8", "replace").decode()} for n, t in enumerate(texts)]
    Journal(path).add(true)
    target = path if data.draw(st.booleans()) else sums_of(path)
    raw = target.read_bytes()
    start = data.draw(st.integers(0, len(raw) - 1))
    end = data.draw(st.integers(start, len(raw)))
    target.write_bytes(raw[:start] + data.draw(st.binary(max_size=20)) + raw[end:])
    journal = Journal(path)
    found = list(journal.done.values())
    assert found == true[:len(found)]
    journal.add(true[len(found):])
    assert list(Journal(path).done.values()) == true
