"""A checkpoint of which a byte is not as it was written is never opened: that training begins again, and ends the same."""
from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from conftest import torchrun  # noqa: E402
from test_exact import STOPS, assert_equal, best, snapshot_at  # noqa: E402
from test_training import fit, make_rows, tiny  # noqa: E402
from test_unfinished import damage, damages  # noqa: E402

from xalign.config import XalignError  # noqa: E402
from xalign.training.checkpoints import Checkpoints  # noqa: E402
from xalign.training.facts import LOG  # noqa: E402
from xalign.training.node import TrainerNode  # noqa: E402
from xalign.training.probe import SAMPLES  # noqa: E402
from xalign.training.trainer import load_weights  # noqa: E402

NODE = replace(STOPS, epochs=3)  # validates every 3rd step
KILL = 9  # in this step: the checkpoint is of step 8, the best weights are an earlier one's


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Path]]:
    """ZeRO stage → (folder of an undisturbed training, the same as a kill would leave it); made when asked for."""
    folder, made = tmp_path_factory.mktemp("ends"), {}

    class Made(dict):
        def __missing__(self, zero: int) -> tuple[Path, Path]:
            straight, left = folder / f"straight-{zero}", folder / f"left-{zero}"
            fit(straight, make_rows(), replace(NODE, zero=zero), on_log=snapshot_at(KILL, straight, left))
            (left / SAMPLES).write_text("".join(f'{{"step": {step}}}\n' for step in (0, 3, 6)))
            name_samples(left)
            self[zero] = straight, left
            return straight, left

    made = Made()
    return made


def name_samples(left: Path) -> None:
    """A file of samples as a probe writes it, named by the checkpoint."""
    from xalign.digests import describe, read_sealed, write_sealed

    latest = left / "checkpoints" / "latest.json"
    told = read_sealed(latest)
    assert told
    write_sealed(latest, {**told, "logs": told["logs"] | describe(left, [left / SAMPLES])})


def parts(left: Path) -> list[Path]:
    """Every file that the checkpoint consists of, below `left`."""
    told = json.loads((left / "checkpoints/latest.json").read_bytes())
    names = [*told["files"], told["best_file"]["name"], "latest.json"]
    return [Path("checkpoints", name) for name in names] + [Path(LOG), Path(SAMPLES)]


def cases(left: Path) -> Iterator[tuple[Path, str, int]]:
    told = json.loads((left / "checkpoints/latest.json").read_bytes())
    for part in parts(left):
        size = told["logs"].get(part.name, {}).get("bytes") or (left / part).stat().st_size
        for how, where in damages(size):  # in a log: in what stood there at the checkpoint
            yield part, how, where


def copy(left: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(left, to)
    return to


def test_every_damage_is_found_before_a_file_is_opened(ends, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, left = ends[0]
    capfd.readouterr()
    intact = Checkpoints(copy(left, tmp_path / "intact"), (LOG, SAMPLES), 0, 1).find()
    assert intact and intact["step"] == KILL - 1 and not capfd.readouterr().err
    assert intact["best_file"]["name"] < f"best-{KILL - 1:06d}"
    found = list(cases(left))
    assert len(found) >= 5 * 7
    for part, how, where in found:
        folder = copy(left, tmp_path / "hurt")
        damage(folder / part, how, where)
        assert Checkpoints(folder, (LOG, SAMPLES), 0, 1).find() is None, (part, how, where)
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and str(folder / part) in lines[0] and "this training begins again" in lines[0], (part, how, where)
        assert not list((folder / "checkpoints").iterdir()) and not (folder / LOG).read_bytes()


def test_a_training_with_a_damaged_checkpoint_ends_the_same(ends, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    straight, left = ends[0]
    for part in parts(left):
        folder = copy(left, tmp_path / "hurt")
        damage(folder / part, "flip", (folder / part).stat().st_size // 3)
        fit(folder, make_rows(), NODE)
        assert_equal(folder, straight)
        assert "begins again" in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_damage_ends_the_same(ends, tmp_path: Path, zero: int) -> None:
    straight, left = ends[zero]
    for part, how, where in cases(left):
        folder = copy(left, tmp_path / "hurt")
        damage(folder / part, how, where)
        fit(folder, make_rows(), replace(NODE, zero=zero))
        assert_equal(folder, straight)


@pytest.mark.long
def test_every_byte_of_the_small_files(ends, tmp_path: Path) -> None:
    _, left = ends[0]
    folder = copy(left, tmp_path / "hurt")
    told = json.loads((left / "checkpoints/latest.json").read_bytes())
    for part in (Path("checkpoints/latest.json"), Path(LOG), Path(SAMPLES)):
        size = told["logs"].get(part.name, {}).get("bytes") or (left / part).stat().st_size
        for where in range(size):
            for how in ("flip", "cut"):
                damage(folder / part, how, where, 1 << where % 8)
                assert Checkpoints(folder, (LOG, SAMPLES), 0, 1).find() is None, (part, how, where)
                copy(left, folder)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_put_in_a_checkpoints_place_does_not_run(ends, tmp_path: Path) -> None:
    straight, left = ends[0]
    folder = copy(left, tmp_path / "hurt")
    for path in (folder / "checkpoints").rglob("*.pt"):
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "it ran")))
    fit(folder, make_rows(), NODE)
    assert_equal(folder, straight)
    assert not (tmp_path / "it ran").exists()


def test_what_killed_runs_left_beside_the_checkpoint_is_removed(ends, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    straight, left = ends[0]
    folder = copy(left, tmp_path / "run")
    root = folder / "checkpoints"
    for name in ("step-000004", "step-000008-universal", "step-000009"):  # half of an older, of a converted and of a newer one
        (root / name).mkdir()
        (root / name / "zero_pp_rank_3_mp_rank_00_optim_states.pt").write_bytes(b"half")
    for name in ("best.partial", "best-000009.safetensors", "best.safetensors", "best.json", "latest.json.partial"):
        (root / name).write_bytes(b"half")
    store = Checkpoints(copy(folder, tmp_path / "swept"), (LOG, SAMPLES), 0, 1)
    told = store.find()
    assert told and {p.name for p in store.root.iterdir()} == {"latest.json", told["tag"], told["best_file"]["name"]}
    fit(folder, make_rows(), NODE)
    assert_equal(folder, straight)
    assert "is not as it was written" not in capfd.readouterr().err


@pytest.mark.parametrize("node", [NODE, STOPS], ids=["the last weights", "those of a checkpoint"])
def test_killed_behind_the_end_of_the_training(tmp_path: Path, capfd: pytest.CaptureFixture[str], node: TrainerNode) -> None:
    """The best weights have their last name already, the checkpoint still tells the earlier one."""
    straight = tmp_path / "straight"
    fit(straight, make_rows(), node)
    folder = copy(straight, tmp_path / "run")
    told = json.loads((folder / "checkpoints/latest.json").read_bytes())
    assert (folder / "checkpoints" / told["best_file"]["name"]).exists() == (node is NODE)
    for kept in (True, False):
        if not kept:  # killed between the two
            (folder / "checkpoints/best.json").unlink()
        fit(folder, make_rows(), node)
        assert_equal(folder, straight)
    assert "is not as it was written" not in capfd.readouterr().err


def test_damaged_best_weights_are_refused_by_name(ends, tmp_path: Path) -> None:
    straight, _ = ends[0]
    model = tiny()
    for name in ("best.safetensors", "best.json"):
        size = (straight / "checkpoints" / name).stat().st_size
        for how, where in damages(size):
            folder = copy(straight, tmp_path / "hurt")
            damage(folder / "checkpoints" / name, how, where)
            with pytest.raises(XalignError, match=rf"checkpoints/{name.replace('.', '[.]')}: is not as it was written; repeat"):
                load_weights(model, folder)
    fit(folder, make_rows(), NODE)  # the repetition
    load_weights(model, folder)
    assert all(torch.equal(p, best(straight)[n]) for n, p in model.named_parameters() if n in best(straight))


TWO = """
import json, shutil, sys
from dataclasses import replace
from pathlib import Path
from test_checkpoints import KILL, NODE, damage
from test_exact import snapshot_at
from test_training import fit, make_rows
from xalign.training.ranks import join
rank, _ = join()
import torch.distributed as dist
folder = Path(sys.argv[1])
node = replace(NODE, zero=2)
def snapshot(record):
    if rank == 0:
        snapshot_at(KILL, folder / "straight", folder / "left")(record)
fit(folder / "straight", make_rows(), node, on_log=snapshot)
names = sorted(json.loads((folder / "left/checkpoints/latest.json").read_bytes())["files"])
dist.barrier()
for n, name in enumerate([*names, ""]):
    copy = folder / f"hurt-{n}"
    if rank == 0:
        shutil.copytree(folder / "left", copy)
        if name:
            damage(copy / "checkpoints" / name, "flip", 999)
    dist.barrier()
    fit(copy, make_rows(), node)
"""


@pytest.mark.long
def test_two_processes_each_vouch_for_what_they_wrote(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("import sys\nsys.path.insert(0, " + repr(str(Path(__file__).parent)) + ")\n" + TWO)
    done = torchrun(tmp_path / "two.py", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    names = sorted(json.loads((tmp_path / "left/checkpoints/latest.json").read_bytes())["files"])
    assert sum("rank_1_" in name for name in names) and len(names) >= 3
    hurt = sorted(tmp_path.glob("hurt-*"))
    assert len(hurt) == len(names) + 1 and done.stderr.count("this training begins again") == len(names)
    for folder in hurt:
        assert_equal(folder, tmp_path / "straight")
    # continued by one process: converted from what was checked
    fit(tmp_path / "left", make_rows(), replace(NODE, zero=2))
    assert not list((tmp_path / "left/checkpoints").glob("*universal"))


