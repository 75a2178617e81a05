"""The same mathematics however a step is cut, on however many processes, and after a crash."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conftest import torchrun  # noqa: E402
from test_training import NODE, curve, fit, make_rows  # noqa: E402

from xalign.config import XalignError  # noqa: E402
from xalign.data.packing import plan_steps, split_groups  # noqa: E402
from xalign.digests import read_sealed, write_sealed  # noqa: E402
from xalign.training.losses import LossOut, bare, supervised  # noqa: E402

HERE = Path(__file__).parent
# rows of at most 21 tokens, about eight a step; 168, 84 and 21 tokens a forward pass: accumulation 1, 2 and 8
EIGHT = replace(NODE, epochs=3, tokens_per_step=168)
CUTS = {1: 0, 2: 84, 8: 21}


def in_two_processes(script: str, folder: Path) -> None:
    (folder / "script.py").write_text(script, encoding="utf-8")
    done = torchrun(folder / "script.py", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The log of the plainest run: one process, ZeRO-0, a step in one packed forward pass."""
    return fit(tmp_path_factory.mktemp("plain"), make_rows(56), EIGHT)


def assert_same(log: list[dict], reference: list[dict], name: str) -> None:
    a, b = curve(log), curve(reference)
    assert len(a) == len(b) > 15 and b[-1] < b[0] - 0.3, name
    assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a) <= 1e-5, name
    norms = [[r["grad_norm"] for r in run if "loss" in r] for run in (log, reference)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3), name


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_one_process(tmp_path: Path, reference: list[dict], zero: int, packing: bool, accumulation: int) -> None:
    node = replace(EIGHT, zero=zero, packing=packing, micro_tokens=CUTS[accumulation])
    assert_same(fit(tmp_path, make_rows(56), node), reference, f"{zero} {packing} {accumulation}")


@pytest.mark.parametrize("changes", [{"activation_checkpointing": True}, {"attention": "eager"}, {"attention": "sdpa"},
                                     {"zero": 2, "offload": "optimizer"}, {"zero": 3, "offload": "all"},
                                     {"attention": "eager", "packing": False}, {"compile": True}], ids=str)
def test_what_only_costs_or_saves(tmp_path: Path, reference: list[dict], changes: dict) -> None:
    if "compile" in changes and not shutil.which("g++"):
        pytest.skip("needs g++")
    assert_same(fit(tmp_path, make_rows(56), replace(EIGHT, **changes)), reference, str(changes))


TWO = """
import sys
from dataclasses import replace
from pathlib import Path
from test_exact import CUTS, EIGHT
from test_training import fit, make_rows
for zero in (0, 1, 2, 3):
    for packing in (True, False):
        for accumulation in (1, 2, 4) if packing else (2,):  # on each of two processes: four rows to one in a forward pass
            name = f"{zero}-{packing}-{accumulation}"
            cut = {1: 84, 2: 42, 4: 21}[accumulation]
            fit(Path(sys.argv[1]) / name, make_rows(56), replace(EIGHT, zero=zero, packing=packing, micro_tokens=cut))
"""


def test_two_processes(tmp_path: Path, reference: list[dict]) -> None:
    in_two_processes(TWO, tmp_path)
    logs = sorted(tmp_path.glob("*/log.jsonl"))
    assert len(logs) == 4 * 4
    for path in logs:
        assert_same([json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()], reference, path.parent.name)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_bf16_trains(tmp_path: Path, reference: list[dict], zero: int) -> None:
    log = curve(fit(tmp_path / "run", make_rows(56), replace(EIGHT, zero=zero, precision="bf16")))
    full = curve(reference)
    assert log[-1] < log[0] - 0.3 and log[-1] == pytest.approx(full[-1], rel=0.05)
    assert log != full
    assert log[:4] == pytest.approx(full[:4], rel=0.01)  # the first steps are whole steps
    if not zero:  # bf16 runs as ZeRO-1
        assert log == curve(fit(tmp_path / "one", make_rows(56), replace(EIGHT, zero=1, precision="bf16")))


STOPS = replace(NODE, lr=0.1, patience=3, eval_every=3, epochs=8, checkpoint_every=1e-9)


def best(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "checkpoints" / "best.safetensors")


def assert_equal(a: Path, b: Path) -> None:
    """Logs and weights of two runs, bit for bit."""
    logs = [[{k: v for k, v in json.loads(x).items() if k != "tokens_per_second"}
             for x in (p / "log.jsonl").read_text(encoding="utf-8").splitlines()] for p in (a, b)]
    assert logs[0] == logs[1]
    x, y = best(a), best(b)
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_resumed_at_any_step(tmp_path: Path, zero: int) -> None:
    """The folder as it was after each step of a run that stops early is carried on to the same end."""
    node, rows, folder = replace(STOPS, zero=zero), make_rows(), tmp_path / "run"

    def snapshot(record: dict) -> None:
        if "loss" in record and (zero == 0 or record["step"] % 4 == 0):
            shutil.copytree(folder, tmp_path / f"at-{record['step']}")

    log = fit(folder, rows, node, on_log=snapshot)
    assert max(r["step"] for r in log) < node.epochs * len(plan_steps(rows, 120, 0, 0))  # it did stop early
    snapshots = list(tmp_path.glob("at-*"))
    assert len(snapshots) > (12 if zero == 0 else 2)
    for copy in snapshots:
        fit(copy, rows, node)
        assert_equal(copy, folder)


def snapshot_at(step: int, folder: Path, copy: Path) -> Any:
    """An `on_log` that copies the run's folder as a kill in that step would leave it."""
    def on_log(record: dict) -> None:
        if record["step"] == step and "loss" in record:
            shutil.copytree(folder, copy)

    return on_log


OTHER_WORLD = """
import sys
from dataclasses import replace
from pathlib import Path
from test_exact import EIGHT, snapshot_at
from test_training import fit, make_rows
folder = Path(sys.argv[1])
for zero in (0, 1, 2, 3):
    node = replace(EIGHT, zero=zero, checkpoint_every=1e-9)
    fit(folder / f"writes-{zero}", make_rows(56), node, on_log=snapshot_at(11, folder / f"writes-{zero}", folder / f"two-{zero}"))
    fit(folder / f"one-{zero}", make_rows(56), node)
"""


def test_resumed_by_another_number_of_processes(tmp_path: Path, reference: list[dict]) -> None:
    """Checkpoints of step 10: written by one process and continued by two, and the other way round."""
    for zero in range(4):
        folder = tmp_path / f"alone-{zero}"
        node = replace(EIGHT, zero=zero, checkpoint_every=1e-9)
        fit(folder, make_rows(56), node, on_log=snapshot_at(11, folder, tmp_path / f"one-{zero}"))
    in_two_processes(OTHER_WORLD, tmp_path)
    for zero in range(4):
        two = tmp_path / f"two-{zero}"
        assert json.loads((two / "checkpoints/latest.json").read_text())["step"] == 10
        fit(two, make_rows(56), replace(EIGHT, zero=zero))
        for name, wrote in (("one", "alone"), ("two", "writes")):
            logs = [(tmp_path / f"{x}-{zero}" / "log.jsonl").read_text(encoding="utf-8").splitlines() for x in (name, wrote)]
            assert logs[0][:10] == logs[1][:10] and logs[0] != logs[1]  # it did go on from there
            assert_same([json.loads(x) for x in logs[0]], reference, f"{name} {zero}")


def test_sgd_of_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    node = replace(NODE, optimizer="sgd", zero=2, checkpoint_every=1e-9)
    fit(tmp_path / "run", make_rows(), node, on_log=snapshot_at(5, tmp_path / "run", tmp_path / "copy"))
    latest = tmp_path / "copy/checkpoints/latest.json"
    write_sealed(latest, read_sealed(latest) | {"world": 3})
    with pytest.raises(XalignError, match=r"written by 3 processes, this run has 1, .* only Adam's state.*; repeat with 3, or delete"):
        fit(tmp_path / "copy", make_rows(), node)


KILLS = """
import os, shutil, signal, sys
from pathlib import Path
import safetensors.torch, torch
from test_exact import STOPS
from test_training import fit, make_rows
import xalign.training.checkpoints as checkpoints
import xalign.training.engine as engine
engine.load_deepspeed()

def half(write, path, n):
    write(path)
    with open(path, "r+b") as f:
        f.truncate(n)
    os.kill(os.getpid(), signal.SIGKILL)

def die_in(where, count):
    seen = [0]
    def due():
        seen[0] += 1
        return seen[0] == count
    save, tensors, mark, remove = torch.save, safetensors.torch.save_file, checkpoints.write_sealed, shutil.rmtree
    if where == "state":  # half a file of the engine's checkpoint
        torch.save = lambda o, f, *a, **k: half(lambda p: save(o, p, *a, **k), f, 1000) if due() else save(o, f, *a, **k)
    elif where == "best":  # half a file of the best weights
        safetensors.torch.save_file = lambda o, f, *a, **k: half(lambda p: tensors(o, p), f, 1000) if due() else tensors(o, f)
    elif where == "name":  # all written, not yet named
        checkpoints.write_sealed = lambda *a: os.kill(os.getpid(), signal.SIGKILL) if due() else mark(*a)
    elif where == "old":  # named, the last one half removed
        def half_removed(path):
            if due():
                next(p for p in Path(path).rglob("*") if p.is_file()).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path)
        shutil.rmtree = half_removed

for where, count in (("state", 1), ("state", 3), ("best", 2), ("name", 2), ("old", 2)):
    child = os.fork()
    if not child:
        die_in(where, count)
        fit(Path(sys.argv[1]) / where / str(count), make_rows(), STOPS)
        os._exit(0)
    print(where, count, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_while_writing_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "kills.py").write_text(KILLS, encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    done = subprocess.run([sys.executable, str(tmp_path / "kills.py"), str(tmp_path)], env=env, capture_output=True, text=True, timeout=120)
    ends = [line.split() for line in done.stdout.splitlines()]
    assert [e[2] for e in ends] == [str(-signal.SIGKILL)] * 5, done.stdout + done.stderr[-2000:]
    fit(tmp_path / "straight", make_rows(), STOPS)
    for where, count, _ in ends:
        fit(tmp_path / where / count, make_rows(), STOPS)
        assert_equal(tmp_path / where / count, tmp_path / "straight")


def explode(step: int, finite_loss: bool) -> SimpleNamespace:
    """An objective whose loss, or only whose gradient, is not a number in one step."""
    calls = [0]

    def loss(model: Any, batch: Any) -> LossOut:
        out = supervised(model, batch)
        training = bare(model).training
        calls[0] += training
        if calls[0] == step and training:
            # the square root of 0 has no derivative
            bad = (out.sum * 0).sqrt() if finite_loss else out.sum * float("inf")
            return replace(out, sum=out.sum + bad)
        return out

    return SimpleNamespace(name="ce", loss=loss)


@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (2, "bf16")])
@pytest.mark.parametrize("finite_loss", [False, True])
def test_not_a_number_stops_and_keeps_the_last_checkpoint(tmp_path: Path, zero: int, precision: str, finite_loss: bool) -> None:
    node, rows = replace(NODE, zero=zero, precision=precision, checkpoint_every=1e-9), make_rows()
    train = split_groups(rows, node.valid_share, 0)[0]
    what = "gradient" if finite_loss else "loss"
    with pytest.raises(XalignError) as stopped:
        fit(tmp_path / "bad", rows, node, explode(6, finite_loss))
    message = str(stopped.value)
    assert f"the {what} in step 6 is not finite, rows " in message and "last good checkpoint stays in" in message
    named = message.split("rows ")[1].split(";")[0].split(", ")
    assert sorted(named) == sorted(r.id for r in plan_steps(train, 120, 0, 0)[5])
    assert json.loads((tmp_path / "bad/checkpoints/latest.json").read_text())["step"] == 5
    fit(tmp_path / "good", rows, node)
    fit(tmp_path / "bad", rows, node)  # the cause mended: on from step 5
    assert_equal(tmp_path / "bad", tmp_path / "good")


def test_the_rows_of_a_bad_micro_batch_are_named(tmp_path: Path) -> None:
    rows = make_rows()
    rows[7] = replace(rows[7], weight=float("nan"))
    with pytest.raises(XalignError, match=r"the loss in step \d+ is not finite, rows r7; lower trainer.lr"):
        fit(tmp_path, rows, replace(NODE, valid_share=0, micro_tokens=20))
