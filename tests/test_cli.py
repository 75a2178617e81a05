"""The command line as a stranger meets it: help, plan, mistakes."""
from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import TINY, xalign


def test_help_lists_every_choice_fast(tmp_path):
    start = time.perf_counter()
    done = xalign("--help", cwd=tmp_path)
    assert time.perf_counter() - start < 2  # 0.1 s on a quiet machine
    assert done.returncode == 0
    for word in ("sdrrl", "t_sft", "smollm2", "belebele", "nllb", "wandb", "lang=", "plan=true"):
        assert word in done.stdout


def test_plan_prints_stages_and_computes_nothing(tmp_path):
    done = xalign("method=sdrrl", "lang=jpn", "plan=true", f"cache={tmp_path / 'c'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("translate", "answers", "train", "miss", "estimated"):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


MISTAKES = [
    (["lang=jpm"], ["lang=jpm", "did you mean 'jpn'"]),
    (["method=sdrl"], ["method=sdrl", "did you mean 'sdrrl'", "t_sft"]),
    (["method.code_swich=0"], ["method.code_swich", "did you mean 'method.code_switch'"]),
    (["method.code_switch=1.5"], ["method.code_switch=1.5", "must be in [0, 1]"]),
    (["trainer.lr=-1"], ["trainer.lr=-1"]),
    (["trainer.epochs=many"], ["trainer.epochs=many"]),
    (["langs=jpn"], ["langs", "did you mean 'lang'"]),
    (["lang=eng"], ["also the source language"]),
    (["lang=[fin,fin]"], ["twice"]),
    (["lang=fin,jpn"], ["lang=fin,jpn", "-m"]),
    (["+method.extra=1"], ["method.extra"]),
    (["seed=-1"], ["seed=-1"]),
    (["backbone=smollm"], ["did you mean 'smollm2'"]),
    (["method.subsets=[LL,XX]"], ["'XX' is not one of"]),
    (["data=alpaca", "data.path=nowhere.json"], ["nowhere.json"]),
    (["task=belebele", "task.path=nowhere"], ["nowhere"]),
    (["dictionary.path=nowhere.txt"], ["nowhere.txt"]),
    (["parallel=files", "parallel.path=nowhere"], ["nowhere"]),
    (["backbone=hf", "backbone.name=./nowhere"], ["nowhere"]),
    (["sdrrl"], ["sdrrl", "key=value"]),
    (["lang="], ["lang"]),
]


@pytest.mark.parametrize("argv, words", MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, argv, words):
    done = xalign(*argv, f"cache={tmp_path / 'c'}", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in done.stdout
    for word in words:
        assert word in lines[0]
    assert not (tmp_path / "runs").exists()


def test_a_malformed_data_line_names_file_and_line(tmp_path, parallel_files):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "Say hi.", "input": "", "output": "Hi."}\n{"instruction": "Say', encoding="utf-8")
    argv = [a for a in TINY if not a.startswith("data.")]
    done = xalign("method=sft", "lang=fin", "data=alpaca", f"data.path={bad}", *argv, f"parallel.path={parallel_files}",
                  f"cache={tmp_path / 'c'}", cwd=tmp_path)
    assert done.returncode == 2 and f"{Path(bad).name}:2" in done.stderr, done.stderr
