"""Kill -9 at any moment, and again while the repeated command goes on: what it ends with is what an undisturbed run leaves."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

torch = pytest.importorskip("torch")

from conftest import TINY  # noqa: E402
from faultkit import forked  # noqa: E402
from moments import Moment, damaged, draw, dying, kind_of, listed, read, remains, stage_of, warm  # noqa: E402
from test_sweeps import start, wait_for  # noqa: E402

from xalign.tasks.base import Evaluation  # noqa: E402
from xalign.tasks.ranking import CHUNK, Question, rank_options  # noqa: E402

EVALUATES = ["mode=evaluate", "lang=fin", *TINY, "task.open_items=0", "task.phrases=0"]
TORN = (0, 1, 30, 700)  # bytes after which a write is cut off
TRAINS = ["lang=fin", "trainer.checkpoint_every=1e-9"]
RUNS = {
    # every method's checkpoints, journals of every kind, the probe's samples
    "sdrrl": ["method=sdrrl", *TRAINS, "trainer.probe_prompts=2", "trainer.probe_tokens=4"],
    "three trainings of an encoder": ["method=ml_ipd", "backbone=tiny_encoder", *TRAINS],
    "evaluation": ["mode=evaluate", "lang=[fin,jpn]", "task.choice_items=100", "task.open_items=12"],
    "sweep": ["-m", "method=sft,t_sft", *TRAINS],
    "study": ["mode=study", "lang=fin", "study=representations"],
}


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What every run imports is imported once, before the forks."""
    warm()


def given(run: str, parallel_files: Path) -> list[str]:
    return [*TINY, *RUNS[run], f"parallel.path={parallel_files}", "cache=cache"]


def undisturbed(argv: list[str], folder: Path) -> list[Moment]:
    """Run to the end; returns every moment in which the run changed a file."""
    folder.mkdir()
    done = forked(argv, folder, before=listed([folder / "cache", folder / "runs"], folder / "moments"), timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return read(folder / "moments")


def assert_same(one: Path, other: Path) -> None:
    """Both folders hold the same artifacts and results, whole and nothing else."""
    a, b = ({part: remains(x / part, ["/job-"]) for part in ("cache", "runs")} for x in (one, other))
    assert a.keys() == b.keys() and [n for n in a["runs"] if n.endswith("rows.jsonl")]
    for part in a:
        assert {n: d for n, d in a[part].items() if b[part].get(n) != d} == {} and a[part].keys() == b[part].keys(), part
    assert not damaged(other / "cache")


def killed(argv: list[str], folder: Path, moments: Sequence[Moment], random: Random) -> int:
    """Kill the run in the first moment, its repetition in the second, and so on; then let it end. Returns how many died."""
    folder.mkdir(exist_ok=True)
    died = 0
    for moment in moments:
        inside = random.choice(TORN) if moment[0] in ("open", "append", "os.mkdir") and random.random() < 0.6 else None
        done = forked(argv, folder, before=dying([folder / "cache", folder / "runs"], moment, inside), timeout=500)
        assert done.returncode in (0, -signal.SIGKILL, -signal.SIGXFSZ), f"{moment}\n{done.stderr[-3000:]}"
        died += done.returncode < 0
        if done.returncode == 0:  # the moment did not come again, and the run has ended: the next one begins anew
            for part in ("cache", "runs"):
                shutil.rmtree(folder / part)
    done = forked(argv, folder, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return died


def test_killed_six_times_in_a_row(tmp_path: Path, parallel_files: Path) -> None:
    argv = given("sdrrl", parallel_files)
    moments = undisturbed(argv, tmp_path / "a")
    assert len({stage_of(m) for m in moments}) > 10 and len({kind_of(m) for m in moments}) > 50
    chosen = [m for m in moments if stage_of(m) in ("train", "predict", "run", "answers")]
    assert killed(argv, tmp_path / "b", draw(chosen, 6, 0), Random(0)) >= 5
    assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_in_every_stage(tmp_path: Path, parallel_files: Path, run: str, seed: int) -> None:
    argv = given(run, parallel_files)
    moments = undisturbed(argv, tmp_path / "a")
    chosen = draw(moments, 24, seed)
    assert {stage_of(m) for m in chosen} == {stage_of(m) for m in moments}
    assert killed(argv, tmp_path / "b", chosen, Random(seed)) >= 20
    assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.long
def test_killed_by_the_clock(tmp_path: Path, parallel_files: Path) -> None:
    """At moments that no file tells: so many milliseconds of computing after the start."""
    argv, random = given("sdrrl", parallel_files), Random(5)
    undisturbed(argv, tmp_path / "a")
    (tmp_path / "b").mkdir()
    died = 0
    while died < 20:
        limit = random.uniform(1.0, 4.0)
        done = forked(argv, tmp_path / "b", before=lambda s=limit: signal.setitimer(signal.ITIMER_VIRTUAL, s))
        assert done.returncode in (0, -signal.SIGVTALRM), done.stderr[-3000:]
        died += done.returncode < 0
        if done.returncode == 0:
            assert_same(tmp_path / "a", tmp_path / "b")
            shutil.rmtree(tmp_path / "b" / random.choice(["cache", "runs"]))
    assert forked(argv, tmp_path / "b").returncode == 0
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_run_that_is_written_again_is_not_finished_before_it_is(tmp_path: Path, parallel_files: Path) -> None:
    """Its cache was deleted; killed between two of the run's files, it must not pass for the run of the last time."""
    argv = [*EVALUATES, f"parallel.path={parallel_files}", "cache=cache"]
    moments = undisturbed(argv, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "cache")
    (rows,) = (m for m in moments if m[0] == "open" and "rows.jsonl" in m[1])
    assert killed(argv, tmp_path / "b", [rows], Random(1)) == 1
    assert_same(tmp_path / "a", tmp_path / "b")
    done = forked(argv, tmp_path / "b", before=dying([tmp_path / "b" / "runs"], rows, 10))
    assert done.returncode == 0 and "finished earlier" in done.stdout


class Neighbours:
    """A model whose scores depend a little on what is read together, as those of a real one do."""

    def score(self, prompts, options, raw_text=False, shots=()):
        from xalign.backbones.causal import OptionScore

        together = 1e-7 * sum(map(len, prompts)) + 1e-9 * sum(len(o) for own in options for o in own)
        return [[OptionScore(-len(p) - len(o) + together, 1, 1) for o in own] for p, own in zip(prompts, options, strict=True)]


@pytest.mark.parametrize("kept", [1, CHUNK - 1, CHUNK, CHUNK + 5, 2 * CHUNK + 1])
def test_texts_are_read_together_as_if_nothing_had_happened(tmp_path: Path, kept: int) -> None:
    questions = [Question(f"q{i}", "ab"[i > 80], "c", "x" * i, (f"o{i % 7}", f"p{'y' * (i % 9)}"), 0, "none" if i % 2 else "empty")
                 for i in range(3 * CHUNK)]

    def ranked(folder: Path) -> str:
        folder.mkdir(exist_ok=True)
        ev = Evaluation(folder, Neighbours, (), "fin", "eng", False)
        rank_options(ev, questions, ev.journal("choice"), True, "")
        return (folder / "predictions.choice.jsonl").read_text(encoding="utf-8")

    whole = ranked(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/predictions.choice.jsonl").write_text("".join(whole.splitlines(keepends=True)[:kept]), encoding="utf-8")
    assert ranked(tmp_path / "b") == whole


# what a killed process leaves running

def sends(number: int, times: int, sign: str) -> Callable[[], None]:
    """For `faultkit.forked`: another process sends the run a signal so many times, once a file like `sign` is there."""
    def before() -> None:
        run = os.getpid()
        if not os.fork():
            for _ in range(2000):
                if list(Path().glob(sign)):
                    break
                time.sleep(0.02)
            for _ in range(times):
                with suppress(ProcessLookupError):
                    os.kill(run, number)
                time.sleep(0.005)
            os._exit(0)

    return before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_one_line(tmp_path: Path, parallel_files: Path, number: signal.Signals) -> None:
    """A cluster's time limit, a closed terminal: as Ctrl-C, and the repeated command goes on. A cluster sends it more than once."""
    argv = [*EVALUATES, "task.choice_items=0", f"parallel.path={parallel_files}", "cache=cache"]
    done = forked(argv, tmp_path, before=sends(number, 3, "cache/predict/*.partial/predictions.*"))
    assert done.returncode == 128 + number, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if "xalign: " in line]
    assert line == f"xalign: stopped by {number.name}; finished stages are kept, repeat the command to continue"
    assert "Traceback" not in done.stdout + done.stderr
    (note,) = (tmp_path / "cache").glob("predict/*.partial/.spent")
    assert json.loads(note.read_text())["running"] is False  # it had the time to say what it has spent


def test_nohup_stays_deaf_to_a_closed_terminal(tmp_path: Path, parallel_files: Path) -> None:
    def before() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sends(signal.SIGHUP, 3, "cache/predict/*.partial")()

    assert forked([*EVALUATES, f"parallel.path={parallel_files}", "cache=cache"], tmp_path, before=before).returncode == 0


@pytest.mark.parametrize("argv", [["--help"], [*EVALUATES, "plan=true"]], ids=["help", "run"])
def test_output_that_nobody_reads(tmp_path: Path, argv: list[str]) -> None:
    def before() -> None:
        reads, writes = os.pipe()
        os.close(reads)
        os.dup2(writes, 1)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115

    done = forked(argv, tmp_path, before=before)
    if argv[1:]:
        assert done.returncode == 128 + signal.SIGPIPE
        assert done.stderr == "xalign: nobody reads the output any more; finished stages are kept, repeat the command to continue\n"
    else:
        assert done.returncode == 0 and not done.stderr


@pytest.mark.long
def test_a_sweep_whose_head_is_killed_leaves_no_lock_and_loses_nothing(tmp_path: Path, parallel_files: Path) -> None:
    """Its joblib job lives on, alone; the repeated command takes the sweep's lock, waits for that job, and does the rest."""
    argv = ["-m", "method=sft", "seed=0,1", "lang=fin", *TINY, "trainer.max_steps=0", "trainer.epochs=40", "cache=cache",
            f"parallel.path={parallel_files}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    process = start(*argv, cwd=tmp_path)
    wait_for(lambda: list((tmp_path / "cache").glob("train/*.partial/log.jsonl")), process)
    process.kill()
    process.communicate(timeout=30)
    done = subprocess.run([sys.executable, "-m", "xalign", *argv], cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    logs = sorted(tmp_path.glob("runs/sweeps/*/job-*.log"))
    assert "another process runs this sweep" not in done.stdout
    receipts = [json.loads(p.read_text()) for p in (tmp_path / "cache").glob("train/*/receipt.json")]
    assert len(receipts) == 2 and len(logs) == 2 and all(r["cost"].get("attempts", 1) == 1 for r in receipts)
    assert not damaged(tmp_path / "cache")


@pytest.mark.long
def test_a_clusters_time_limit_ends_a_sweep_and_its_jobs(tmp_path: Path, parallel_files: Path) -> None:
    argv = ["-m", "method=sft", "seed=0,1", "lang=fin", *TINY, "trainer.max_steps=0", "trainer.epochs=99999", "cache=cache",
            f"parallel.path={parallel_files}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(*argv, cwd=tmp_path)
    wait_for(lambda: list((tmp_path / "cache").glob("train/*.partial/log.jsonl")), process)
    jobs = [json.loads(p.read_text())["pid"] for p in tmp_path.glob("runs/sweeps/*/job-*.json")]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.count("xalign: ") == 1 and "xalign: stopped by SIGTERM; " in err, err
    deadline = time.time() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in jobs):
        assert jobs and time.time() < deadline
        time.sleep(0.05)
