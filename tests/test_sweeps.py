"""Sweeps as a user meets them: the plan, jobs that share stages, jobs that fail or are killed, repeating, several at once."""
from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, xalign

from xalign.compose import complete
from xalign.config import ConfigError, XalignError
from xalign.launch import attempt
from xalign.sweep import Job, Sweep, combinations, grid, refuse_useless

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
# the second job trains until it is killed
ENDLESS = [*TINY, "trainer.max_steps=0", "trainer.epochs=1,99999"]


@pytest.fixture()
def tiny(cache: Path, parallel_files: Path) -> list[str]:
    return [*TINY, f"parallel.path={parallel_files}", f"cache={cache}"]


@pytest.fixture()
def endless(cache: Path, parallel_files: Path) -> list[str]:
    return ["method=sft", "lang=fin", *ENDLESS, f"parallel.path={parallel_files}", f"cache={cache}"]


def result(folder: Path, number: int) -> dict:
    """What job `number` of the one sweep in `folder` has written."""
    for path in folder.glob(f"runs/sweeps/*/job-{number:03d}.json"):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def start(*argv: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a command as from a terminal: a test runner in the background passes on an ignored SIGINT."""
    return subprocess.Popen([sys.executable, "-m", "xalign", *argv], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def wait_for(what, process: subprocess.Popen[str]) -> None:
    deadline = time.time() + 90
    while not what():
        assert process.poll() is None and time.time() < deadline, process.communicate(timeout=5)
        time.sleep(0.05)


def repeated(line: str) -> list[str]:
    """The words of the command that a failure's line ends with, as a shell reads them."""
    return shlex.split(line.split("; repeat with: ")[1])


def test_a_grid_is_the_product_and_the_last_value_of_a_key_counts():
    found = grid(["method=a,b", "lang=[fin,jpn],deu", "seed=range(0,2)", "method=b,c"])
    assert found == [[m, lang, s] for m in ("method=b", "method=c") for lang in ("lang=[fin,jpn]", "lang=deu")
                     for s in ("seed=0", "seed=1")]
    with pytest.raises(ConfigError, match="trainer.lr=interval"):
        grid(["trainer.lr=interval(0,1)"])


def test_variants_are_single_jobs_beside_the_product_and_the_command_line_takes_their_place():
    sweeper = {"params": {"lang": "fin,jpn"}, "variants": ["method.subsets=[LL,TT]", "method.code_switch=0 seed=7"]}
    langs = ("lang=fin", "lang=jpn")
    assert combinations(sweeper, ["backbone=tiny"]) == [
        *([lang, "method.subsets=[LL,TT]", "backbone=tiny"] for lang in langs),
        *([lang, "method.code_switch=0", "seed=7", "backbone=tiny"] for lang in langs)]
    assert combinations(sweeper, ["lang=deu", "seed=1,2"]) == [
        ["lang=deu", other, f"seed={s}"] for other in ("method.subsets=[LL,TT]", "method.code_switch=0") for s in (1, 2)]
    # a variant that the command line makes the same as another is one job
    sweeper = {"variants": ["method.subsets=[mt]", "method.code_switch=0", "method.code_switch=0.1"]}
    given = "method.code_switch=0.3"
    assert combinations(sweeper, [given]) == [["method.subsets=[mt]", given], [given]]
    assert combinations({"params": None}, ["seed=1"]) == [["seed=1"]]
    for wrong in ("method.code_switch", "a='b", {"method.code_switch": 0}, None, "=1"):
        with pytest.raises(ConfigError, match="hydra.sweeper.variants: .* is no text of overrides"):
            combinations({"variants": [wrong]}, [])


def test_a_value_that_no_job_can_use_stops_the_sweep_and_a_combination_does_not():
    def jobs(*failing: tuple[str, str]) -> list[Job]:
        return [Job(0, [f"method={m}", f"backbone={b}"], error=f"{m} {b}" if (m, b) in failing else "") for m in "xy" for b in "cd"]

    refuse_useless(jobs(("x", "d")))
    refuse_useless(jobs(("x", "d"), ("y", "c")))
    with pytest.raises(ConfigError, match="x c"):
        refuse_useless(jobs(("x", "c"), ("x", "d")))
    with pytest.raises(ConfigError, match="x d"):
        refuse_useless(jobs(("x", "d"), ("y", "d")))


def test_a_job_that_was_killed_the_last_time_comes_last(tmp_path):
    jobs = [Job(n, [f"seed={n}"]) for n in (1, 2, 3)]
    for n, code in ((1, None), (2, 2)):  # 1: its process was killed, and the whole sweep with it
        (tmp_path / f"job-{n:03d}.json").write_text(json.dumps({"overrides": [f"seed={n}"], "code": code}), encoding="utf-8")
    assert [job.number for job in Sweep(tmp_path, jobs, {}).begin()] == [2, 3, 1]
    with pytest.raises(XalignError, match="3 of 3 jobs failed"):  # none was started
        Sweep(tmp_path, jobs, {}).summary([])


def test_a_full_disk_is_named_whoever_wraps_it(tmp_path, capsys):
    def work() -> Path:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")  # as safetensors says it

    assert attempt(tmp_path / "job-001.json", ["method=sft"], work) == 2
    entry = json.loads((tmp_path / "job-001.json").read_text())
    assert "the disk is full; free some space" in entry["error"] and entry["error"] in capsys.readouterr().err


def test_experiment_is_another_name_of_experiments():
    assert complete(["experiment=one", "lang=fin"]) == ["experiments=one", "lang=fin"]


def test_the_plan_of_a_sweep_counts_shared_stages_once_and_starts_nothing(tmp_path, parallel_files):
    argv = ["lang=fin", *TINY, f"parallel.path={parallel_files}", f"cache={tmp_path / 'c'}", "plan=true"]
    keys, seconds = {}, {"s": 1, "min": 60}
    for method in ("sft", "t_sft"):
        for line in xalign(f"method={method}", *argv, cwd=tmp_path).stdout.splitlines():
            if found := re.search(r" ([0-9a-f]{12})  +miss +~(.+?) *$", line):
                cost = sum(int(n) * seconds[unit] for n, unit in re.findall(r"(\d+) (s|min)", found[2]))
                keys.setdefault(found[1], []).append(cost)
    every, distinct = sum(map(len, keys.values())), len(keys)
    done = xalign("-m", "method=sft,t_sft", *argv, cwd=tmp_path)
    line = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0 and f"2 jobs: {every} stages, {distinct} distinct, 0 cached; about " in line, done.stdout + done.stderr
    together, alone = (sum(int(n) * seconds[unit] for n, unit in re.findall(r"(\d+) (s|min)", part))
                       for part in line.split("; about ")[1].split(" on two CPU cores, "))
    assert abs(together - sum(c[0] for c in keys.values())) <= 2 and abs(alone - sum(map(sum, keys.values()))) <= 2
    assert not list(tmp_path.iterdir())


def test_a_misspelt_value_in_one_job_is_one_line_before_any_job(tmp_path, tiny):
    for argv, words in ((["lang=fin,jpn", "trainer.lr=0.001,-1"], "trainer.lr=-1"),
                        (["lang=fin", "method=sft,sdrl"], "did you mean 'sdrrl'")):
        done = xalign("-m", "method=sft", *tiny, *argv, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
        assert not done.stdout and not list(tmp_path.iterdir())


def test_a_combination_that_does_not_fit_fails_alone_and_the_rest_is_done_once(tmp_path, tiny):
    argv = ["-m", "method=sft,t_sft", "backbone=tiny,tiny_encoder", "lang=[fin]", "task=[lab]", *tiny[1:]]
    done = xalign(*argv, cwd=tmp_path)
    ran = re.findall(r"━━ job (\d) of 4: (.*) \(about .* left\)", done.stdout)
    failed = done.stderr.strip().splitlines()
    assert done.returncode == 2 and failed[-1] == "xalign: 1 of 4 jobs failed; the finished ones are kept", done.stderr
    assert ran == [("1", "method=sft backbone=tiny"), ("2", "method=sft backbone=tiny_encoder"), ("3", "method=t_sft backbone=tiny")]
    line = next(x for x in failed if x.startswith("xalign: job 4 failed: "))
    assert "'lang=[fin]'" in line and "'task=[lab]'" in line
    again = subprocess.run([sys.executable, *repeated(line)[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.strip().removeprefix("xalign: ") in line
    # the same command again: only what is missing, without torch
    code = f"import sys\nfrom xalign.__main__ import main\ncode = main({argv!r})\nassert 'torch' not in sys.modules\nsys.exit(code)"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "━━" not in done.stdout and "3 jobs finished earlier" in done.stdout, done.stdout + done.stderr
    assert "t_sft" in done.stdout and time.perf_counter() - begin < 12  # 2.5 s on a quiet machine


def test_an_experiment_brings_its_sweep_and_the_command_line_wins(tmp_path, tiny):
    (tmp_path / "conf" / "experiments").mkdir(parents=True)
    (tmp_path / "conf" / "experiments" / "mine.yaml").write_text(
        "# @package _global_\n# two methods\ndefaults:\n  - override /trainer: lab\nseed: 7\n"
        "hydra: {sweeper: {params: {method: 'sft,ml_dft', lang: 'fin,jpn'}}}\n", encoding="utf-8")
    argv = ["-m", "--config-dir", "conf", "experiment=mine", "plan=true", *tiny]
    done = xalign(*argv, cwd=tmp_path)
    assert "4 jobs: " in done.stdout and "method=ml_dft lang=jpn" in done.stdout and "sft-fin-tiny-s7-" in done.stdout, done.stderr
    done = xalign(*argv, "lang=jpn", "seed=1", cwd=tmp_path)
    assert "2 jobs: " in done.stdout and "sft-jpn-tiny-s1-" in done.stdout, done.stderr


def test_an_experiment_lists_variants_and_one_that_cannot_run_stops_it(tmp_path, tiny):
    (tmp_path / "conf" / "experiments").mkdir(parents=True)
    experiment = tmp_path / "conf" / "experiments" / "mine.yaml"
    text = ("# @package _global_\n# one part at a time\ndefaults:\n  - override /method: sdrrl\n  - override /hydra/sweeper: variants\n"
            "lang: fin\nhydra: {sweeper: {variants: "
            "['method.subsets=[LL,mt]', method.self_distill=false, 'method.code_switch=0 seed=3']}}\n")
    experiment.write_text(text, encoding="utf-8")
    argv = ["-m", "--config-dir", "conf", "experiment=mine", "plan=true", *tiny]
    done = xalign(*argv, cwd=tmp_path)
    folders = re.findall(r"sdrrl-fin-tiny-s(\d)-[0-9a-f]{8}", done.stdout)
    assert "3 jobs: " in done.stdout and folders == ["0", "0", "3"] and "method.self_distill=False" in done.stdout, done.stderr
    assert "seed=3" in done.stdout and "trainer" not in done.stdout  # a job's name is what not all have
    experiment.write_text(text.replace("self_distill=false", "code_switch=7"), encoding="utf-8")
    done = xalign(*argv, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "method.code_switch=7" in done.stderr and not done.stdout, done.stderr


def test_a_killed_job_of_several_at_once_does_not_stop_the_others(tmp_path, endless, tiny):
    process = start("-m", *endless, *JOBLIB, cwd=tmp_path)
    wait_for(lambda: result(tmp_path, 1).get("pid") and result(tmp_path, 2).get("pid"), process)
    os.kill(result(tmp_path, 2)["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    *_, line, last = err.strip().splitlines()
    assert process.returncode == 2 and last == "xalign: 1 of 2 jobs failed; the finished ones are kept", err
    assert line.startswith("xalign: job 2 failed: was killed by SIGKILL (out of memory?); repeat with: python -m xalign method=sft ")
    assert "job 1 of 2 starts: trainer.epochs=1\n" in out and "job 1 of 2 done in " in out
    assert "━━" not in out and "results " in next(tmp_path.glob("runs/sweeps/*/job-001.log")).read_text()  # a file each
    assert result(tmp_path, 1)["folder"] in out


def test_ctrl_c_ends_all_jobs_at_once(tmp_path, endless):
    process = start("-m", *endless, *JOBLIB, cwd=tmp_path)
    wait_for(lambda: result(tmp_path, 2).get("pid"), process)
    wait_for(lambda: result(tmp_path, 1).get("pid"), process)
    time.sleep(0.5)
    pid = result(tmp_path, 2)["pid"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().splitlines()[-1].startswith("xalign: interrupted"), err
    deadline = time.time() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.time() < deadline
        time.sleep(0.05)


def test_a_killed_submitit_job_is_listed_and_the_next_is_waited_for(tmp_path, endless):
    argv = [a.replace("1,99999", "99999,1") for a in endless]  # the launcher asks for the first job first
    process = start("-m", *argv, "hydra/launcher=submitit_local", cwd=tmp_path)
    wait_for(lambda: result(tmp_path, 1).get("pid"), process)
    os.kill(result(tmp_path, 1)["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=90)
    line = next(x for x in err.splitlines() if x.startswith("xalign: job 1 failed: was killed"))
    assert process.returncode == 2 and result(tmp_path, 2)["code"] == 0 and result(tmp_path, 2)["folder"] in out, err
    assert repeated(line)[:5] == ["python", "-m", "xalign", "-m", "hydra/launcher=submitit_local"]


def test_two_commands_that_write_one_run(tmp_path, tiny):
    both = [start("mode=evaluate", "lang=fin", "seed=4", *tiny, cwd=tmp_path) for _ in range(2)]
    outs = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sorted("finished earlier; nothing to do" in out for out in outs) == [False, True]
    (folder,) = tmp_path.glob("runs/evaluate-*")
    assert all(json.loads(line)["run"] == folder.name for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines())
