"""Several processes and several jobs: text that all processes write, errors that leave nobody waiting, sweeps on a cluster."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, TINY, torchrun, xalign

from xalign.compose import check_launcher
from xalign.config import ConfigError
from xalign.journal import SUMS, rewrite

QUESTIONS = {f"q{i}": f"What {'in the wide world ' * (i % 5)}is the number after {i}?" for i in range(24)}


# text that all processes write

ANSWER = """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_scale import QUESTIONS
from xalign.backbones import decoding
from xalign.backbones.node import Tiny
from xalign.methods.sdrrl import Answers
from xalign.training import ranks
from xalign.training.spread import spread

decoding.BATCH_TOKENS = 150  # two or three questions: other batches than one process makes
lives = int(sys.argv[4])

@dataclass(frozen=True)
class Mortal(Answers):
    def write(self, items, note):
        left = [lives]
        def noted(record):
            note(record)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        super().write(items, noted)

if ranks.is_helper():
    ranks.serve()
else:
    spread(Mortal(Path(sys.argv[2]), Tiny(), 20), QUESTIONS, Path(sys.argv[3]))
    ranks.release()
"""


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone whose next token depends on all that was said: its weights are large and its output is not its input."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from xalign.backbones.tiny import make_tiny

    folder = tmp_path_factory.mktemp("talker")
    make_tiny(folder, 32, 2, 400, 0)
    config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=False, initializer_range=0.4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_two_processes_write_what_one_writes_and_continue_when_killed(tmp_path: Path, talker: Path) -> None:
    from xalign.backbones.node import Tiny
    from xalign.methods.sdrrl import Answers
    from xalign.training.spread import spread

    one = spread(Answers(talker, Tiny(), 20), QUESTIONS, tmp_path / "one.jsonl")
    assert [r["id"] for r in one] == list(QUESTIONS) and len({r["answer"] for r in one}) > 12  # it does not say the same to all
    script, two = tmp_path / "answer.py", tmp_path / "two.jsonl"
    script.write_text(ANSWER)
    here = str(Path(__file__).parent)
    assert torchrun(script, here, str(talker), str(two), "5").returncode != 0
    kept = {p: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines()] for p in tmp_path.glob("two.jsonl.*")
            if p.suffix != SUMS}
    assert 5 <= sum(map(len, kept.values())) <= 10 and not two.is_file()  # the second may have died before it had five
    part, records = max(kept.items(), key=lambda item: len(item[1]))
    mark = {**records[0], "answer": "not asked again"}
    rewrite(part, [mark, *records[1:]])
    with open(part, "a", encoding="utf-8") as f:
        f.write('{"id": "half a l')
    done = torchrun(script, here, str(talker), str(two), "0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(x) for x in two.read_text(encoding="utf-8").splitlines()] == [mark if r["id"] == mark["id"] else r for r in one]
    assert [p.name for p in tmp_path.glob("two.jsonl.*")] == ["two.jsonl.sums"]  # which the end of the stage removes


# errors

ERRORS = """
import sys
from dataclasses import dataclass
from datetime import timedelta
from xalign.__main__ import guarded
from xalign.config import XalignError
from xalign.training import ranks

ranks.PATIENCE = timedelta(seconds=2)

@dataclass(frozen=True)
class Job:
    where: tuple
    kind: type = XalignError
    early: bool = False

    def run(self):
        import torch
        rank, _ = ranks.join()
        if self.early and rank in self.where:
            raise self.kind(f"met in {rank}")
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        if rank in self.where:
            raise self.kind(f"met in {rank}")
        return total.item()

def work():
    for job in (Job(()), Job((0, 1)), Job((0,)), Job((1,)), Job((1,), ValueError), Job((0, 1), early=True), Job(()),
                Job((int(sys.argv[1]),), early=True), Job(())):
        try:
            print(ranks.perform(job), flush=True)
        except Exception as e:
            print(f"{type(e).__name__}: {e}", flush=True)

if ranks.is_helper():
    sys.exit(guarded(ranks.serve))
work()
sys.exit(not ranks.release())
"""


@pytest.mark.parametrize("where", [0, 1])
def test_an_error_in_one_process_leaves_none_waiting(tmp_path: Path, where: int) -> None:
    script = tmp_path / "errors.py"
    script.write_text(ERRORS)
    done = torchrun(script, str(where))
    gone = "XalignError: another process has ended, its message says why; repeat the command to continue"
    answered = ["2.0", "XalignError: met in 0", "XalignError: met in 0", "XalignError: process 1: met in 1",
                "RuntimeError: process 1: ValueError: met in 1", "XalignError: met in 0", "2.0"]
    left_in_a_sum = [gone if where else "XalignError: met in 0", gone]  # it would wait for its share of the sum for ever
    assert done.stdout.splitlines() == answered + left_in_a_sum, done.stderr[-3000:]
    assert done.returncode != 0 and (where == 0 or "xalign: met in 1" in done.stderr)


# sweeps

def test_a_sweep_of_two_local_jobs(tmp_path: Path, cache: Path, parallel_files: Path) -> None:
    done = xalign("-m", "method=sft,t_sft", "lang=fin", "hydra/launcher=submitit_local", *TINY, f"parallel.path={parallel_files}",
                  f"cache={cache}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [p.read_text(encoding="utf-8") for p in tmp_path.glob("runs/sweeps/*/.submitit/*/*_0_log.out")]
    assert sorted("━━ job 2 of 2: method=t_sft" in log for log in logs) == [False, True]  # a process each
    assert "━━ job" not in done.stdout
    table = done.stdout[done.stdout.index("untrained"):]
    assert table.index("sft") < table.index("t_sft") and len(list(tmp_path.glob("runs/*-fin-tiny-s0-*/rows.jsonl"))) == 2


def test_jobs_of_two_processes_one_of_which_fails(tmp_path: Path, cache: Path, parallel_files: Path) -> None:
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    done = xalign("-m", "method=sdrrl", "lang=fin", "trainer.max_length=512,8", *launcher, *TINY,
                  f"parallel.path={parallel_files}", f"cache={cache}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-3000:]
    failure, summary = done.stderr.strip().splitlines()[-2:]
    assert failure.startswith("xalign: job 2 failed: sdrrl: none of ")
    assert f"repeat with: python -m xalign -m {' '.join(launcher)} method=sdrrl" in failure
    assert summary == "xalign: 1 of 2 jobs failed; the finished ones are kept"
    (folder,) = (p.parent for p in tmp_path.glob("runs/sdrrl-*/rows.jsonl"))
    assert folder.name in done.stdout
    receipts = {r["name"]: r["facts"] for r in json.loads((folder / "receipts.json").read_text(encoding="utf-8"))}
    assert receipts["train"]["world"] == 2


@pytest.mark.parametrize("preset", [False, True])
def test_the_slurm_launcher_composes(preset: bool) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    name = "submitit_slurm_node" if preset else "submitit_slurm"
    overrides = [f"hydra/launcher={name}", "hydra.launcher.partition=gpu", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=4"]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("config", overrides=overrides, return_hydra_config=True)
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert launcher["_target_"].endswith("submitit_launcher.SlurmLauncher")
    assert (launcher["partition"], launcher["nodes"], launcher["gpus_per_node"]) == ("gpu", 2, 4)
    assert launcher["submitit_folder"] == f"{config.hydra.sweep.dir}/.submitit/%j"
    if preset:
        assert launcher["tasks_per_node"] == 4 and launcher["timeout_min"] == 1440 and launcher["max_num_timeout"] == 5
        assert launcher["setup"] == ["export SLURM_KILL_BAD_EXIT=1"]


def test_a_launcher_that_cannot_start_anything_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "bare" / "hydra_plugins" / "__init__.py").touch()  # in front of the installed plugins
    sweep = ["-m", "method=sft,sdrrl", "lang=fin", f"cache={tmp_path / 'c'}"]
    cases = [
        (sweep, "submitit_slurm", {"PYTHONPATH": f"{tmp_path / 'bare'}:{ROOT}"}, 'pip install "hydra-submitit-launcher>=1.2"'),
        (sweep, "submitit_slurm_node", {"PATH": str(tmp_path)}, "there is no SLURM"),
        (sweep, "slurm", {}, "submitit_slurm_node"),
        (sweep[2:], "submitit_local", {}, "add -m"),
    ]
    for argv, name, env, words in cases:
        done = xalign(*argv, f"hydra/launcher={name}", cwd=tmp_path, env=env)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 2 and len(lines) == 1, done.stderr
        assert lines[0].startswith(f"xalign: hydra/launcher={name}: ") and words in lines[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="hydra/launcher=submitit_local: starts the processes itself; leave torchrun out"):
        check_launcher(["hydra/launcher=submitit_local"], True)
