"""One thread, no tracker account, no hub, and one small artifact cache for the whole session."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402

ROOT = Path(__file__).parents[1]
# the smallest run that goes through every stage; sentences come from files, so nothing is downloaded
TINY = ["backbone=tiny", "data.questions=12", "trainer.epochs=1", "trainer.max_steps=4", "parallel=files", "task.choice_items=12",
        "task.open_items=4", "task.phrases=4", "task.sentences=0", "task.max_new_tokens=6", "task.answer_tokens=6", "tracker=none"]


def xalign(*argv: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in another working directory."""
    return subprocess.run([sys.executable, "-m", "xalign", *argv], cwd=cwd, env={**os.environ, **(env or {})}, text=True,
                          capture_output=True, timeout=timeout)


def torchrun(script: Path, *argv: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes that find the package and the test modules."""
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*launch, str(script), *argv], env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def parallel_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty aligned sentences in three languages, in the one-file-a-language shape."""
    folder = tmp_path_factory.mktemp("parallel")
    for code, sentence in {"eng": "The lamp number {} in the kitchen is on.", "fin": "Keittiön lamppu numero {} on päällä.",
                           "jpn": "台所の{}番のランプはついています。"}.items():
        (folder / f"{code}.txt").write_text("".join(sentence.format(i) + "\n" for i in range(40)), encoding="utf-8")
    return folder
