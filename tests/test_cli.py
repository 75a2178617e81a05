"""The command line as a stranger meets it: help, plan, mistakes."""
from __future__ import annotations

import time
from pathlib import Path

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


def test_a_malformed_data_line_names_file_and_line(tmp_path, parallel_files):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "Say hi.", "input": "", "output": "Hi."}\n{"instruction": "Say', encoding="utf-8")
    argv = [a for a in TINY if not a.startswith("data.")]
    done = xalign("method=sft", "lang=fin", "data=alpaca", f"data.path={bad}", *argv, f"parallel.path={parallel_files}",
                  f"cache={tmp_path / 'c'}", cwd=tmp_path)
    assert done.returncode == 2 and f"{Path(bad).name}:2" in done.stderr, done.stderr
