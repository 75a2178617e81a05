"""Several processes at once: each artifact is made once, every process ends right, and a killed holder's locks are free."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess

import pytest

torch = pytest.importorskip("torch")

from conftest import TINY  # noqa: E402
from faultkit import forked  # noqa: E402
from moments import Moment, damaged, remains, warm, watch  # noqa: E402

from xalign.compose import complete  # noqa: E402
from xalign.sweep import sweep_folder  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    warm()


def at_once(commands: Sequence[list[str]], cwd: Path, before: Callable[[], None] | None = None) -> list[CompletedProcess[str]]:
    """Run several commands at the same time."""
    found: list[CompletedProcess[str] | None] = [None] * len(commands)

    def run(i: int) -> None:
        found[i] = forked(commands[i], cwd, before=before)

    # the forks come one after the other, the runs they start do not wait for each other
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(commands))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found  # type: ignore[return-value]


def made(outs: Sequence[str]) -> list[str]:
    """The stages that processes said they begin, as often as they said so."""
    lines = [line for out in outs for line in out.splitlines() if line.rstrip().endswith(" …") and " s  " in line]
    return sorted(line.split(" s  ", 1)[1].strip() for line in lines if "waiting" not in line)


def receipts(cache: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in cache.glob("*/*/receipt.json")}


def argv(parallel_files: Path, *more: str) -> list[str]:
    return [*TINY, "task.open_items=2", "task.phrases=0", "trainer.max_steps=2", f"parallel.path={parallel_files}", "cache=cache", *more]


def assert_made_once(done: Sequence[CompletedProcess[str]], cwd: Path) -> None:
    for one in done:
        assert one.returncode == 0, one.stderr[-3000:]
    found = receipts(cwd / "cache")
    titles = made([one.stdout for one in done])
    assert titles == sorted(f"{r['label']} …" for r in found.values())
    assert not damaged(cwd / "cache") and not list((cwd / "cache").rglob("*.partial"))


def test_four_times_the_same_command_on_an_empty_cache(tmp_path: Path, parallel_files: Path) -> None:
    command = argv(parallel_files, "method=sft", "lang=fin")
    done = at_once([command] * 4, tmp_path)
    assert_made_once(done, tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted("finished earlier; nothing to do" in one.stdout for one in done) == [False, True, True, True]
    assert all(folder.name in one.stdout for one in done) and (folder / "rows.jsonl").is_file()


def test_four_commands_whose_stages_overlap(tmp_path: Path, parallel_files: Path) -> None:
    commands = [argv(parallel_files, f"method={method}", f"lang={lang}") for method in ("sft", "t_sft") for lang in ("fin", "jpn")]
    done = at_once(commands, tmp_path)
    assert_made_once(done, tmp_path)
    assert any("another job makes it" in one.stdout for one in done)
    assert len(list(tmp_path.glob("runs/*/rows.jsonl"))) == 4
    # alone, one of them leaves the same
    (tmp_path / "alone").mkdir()
    assert forked(commands[0], tmp_path / "alone").returncode == 0
    alone = remains(tmp_path / "alone" / "runs")
    together = remains(tmp_path / "runs")
    assert alone and {k: together[k] for k in alone} == alone


@pytest.mark.long
def test_four_times_the_same_sweep(tmp_path: Path, parallel_files: Path) -> None:
    done = at_once([["-m", *argv(parallel_files, "method=sft,t_sft", "lang=fin")]] * 4, tmp_path)
    assert_made_once(done, tmp_path)
    assert sum("another process runs this sweep; waiting" in one.stdout for one in done) == 3
    assert len(list(tmp_path.glob("runs/*/rows.jsonl"))) == 2


def held(path: Path, leaves: bool = False) -> int:
    """Start a process that holds the lock at `path`, wait until it does; returns its number. `leaves`: with a child that lives on."""
    from xalign.cache import locked

    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, lambda: None):
            if leaves:
                subprocess.Popen(["sleep", "20"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os.write(writes, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reads, 1)
    os.close(reads)
    os.close(writes)
    return child


@pytest.mark.parametrize("which", ["run", "sweep"])
def test_the_lock_of_a_killed_holder_is_taken_over(tmp_path: Path, parallel_files: Path, which: str) -> None:
    """Of a run's folder, of a sweep's; what the holder had started (pip, COMET, a job) keeps no lock."""
    command = ["mode=evaluate", "lang=fin", *argv(parallel_files)]
    done = forked([*command, "plan=true"], tmp_path)
    folder = next(line.split("results ")[1].strip() for line in done.stdout.splitlines() if "results " in line)
    if which == "sweep":
        folder, command = str(sweep_folder(complete(command))), ["-m", *command]
    holder = held(tmp_path / folder / ".lock", leaves=True)

    def told(moment: Moment, path: str) -> None:
        if path.endswith(f"{folder}/.lock") and moment[2] == 2:  # it has tried in vain, and tries again
            os.kill(holder, signal.SIGKILL)

    done = forked(command, tmp_path, before=lambda: watch([tmp_path / "runs"], told))
    assert os.waitstatus_to_exitcode(os.waitpid(holder, 0)[1]) == -signal.SIGKILL
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"another {'job writes' if which == 'run' else 'process runs this sweep'}" in done.stdout
    assert list(tmp_path.glob("runs/evaluate-*/rows.jsonl"))


def test_one_is_killed_while_the_others_wait(tmp_path: Path, parallel_files: Path) -> None:
    """The one that makes a shared stage dies before its last rename: another takes its place, and the others end right."""
    def told(moment: Moment, path: str) -> None:
        what, where, _ = moment
        if what == "os.rename" and where.startswith("cache/tiny/") and where.endswith(".partial") and "receipt" not in where:
            with suppress(FileExistsError):  # the first that comes here
                os.close(os.open(tmp_path / "died", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)

    commands = [argv(parallel_files, "mode=evaluate", f"lang={lang}") for lang in ("fin", "jpn", "[fin,jpn]")]
    done = at_once(commands, tmp_path, lambda: watch([tmp_path / "cache"], told))
    assert sorted(one.returncode for one in done) == [-signal.SIGKILL, 0, 0], [one.stderr[-500:] for one in done]
    assert not damaged(tmp_path / "cache") and len(list(tmp_path.glob("runs/*/rows.jsonl"))) == 2
