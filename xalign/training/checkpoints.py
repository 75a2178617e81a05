"""Whether what a training left behind is still as it was written: DeepSpeed unpickles its files, so they are checked before any is opened.

``latest.json`` names the newest checkpoint and the best weights so far, with size and sha256 of every file and of the log up to there,
and a digest of itself. What it does not name is of a killed run, and is removed.
"""
from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xalign.config import XalignError
from xalign.digests import describe, intact, read_sealed, write_sealed
from xalign.progress import notice

BEST = "best.safetensors"  # the chosen weights, at the end; until then their name has the step, for a checkpoint names its own


class Checkpoints:
    """The folder ``checkpoints/`` of one training; used by every process of the group.

    Args:
        folder: of the training, with its logs.
        logs: names of the files in `folder` that grow while it trains.
    """

    def __init__(self, folder: Path, logs: Sequence[str], rank: int, world: int) -> None:
        self.folder, self.root, self.logs, self.rank, self.world = folder, folder / "checkpoints", logs, rank, world
        self.latest = self.root / "latest.json"
        self.best: dict[str, Any] | None = None  # name, bytes and sha256 of the best weights' file

    def keep(self, weights: Mapping[str, Any], step: int) -> None:
        """Write the best weights beside those that ``latest.json`` names (process 0)."""
        from safetensors.torch import save_file

        partial, path = self.root / "best.partial", self.root / f"best-{step:06d}.safetensors"
        save_file(weights, partial)
        os.replace(partial, path)
        self.best = {"name": path.name, **describe(self.root, [path])[path.name]}

    def name(self, tag: str, state: Mapping[str, Any]) -> None:
        """Make the checkpoint `tag`, once every process has written its part, the one to go on from; remove the last one."""
        files: dict[str, Any] = {}
        for part in self._gather(lambda: describe(self.root, written_by(self.root / tag, self.rank, self.world))):
            files |= part
        if self.rank == 0:
            logs = describe(self.folder, [path for name in self.logs if (path := self.folder / name).is_file()])
            write_sealed(self.latest, {"tag": tag, "files": files, "logs": logs, "best_file": self.best, **state})
            self._sweep(tag)

    def find(self) -> dict[str, Any] | None:
        """What ``latest.json`` says of the checkpoint to go on from; None if there is none, or if anything of it is not as it was written.

        What came behind it is dropped, from the logs too.
        """
        found = self._gather(lambda: read_sealed(self.latest) or {} if self.latest.is_file() else None)[0]
        wrong = ""
        if found is not None:
            self.best = found.get("best_file")
            named, ended = self.root / (self.best or {}).get("name", ""), self.root / BEST
            if self.rank == 0 and not named.exists() and ended.is_file():  # killed behind `finish`
                os.replace(ended, named)
            wrong = next(filter(None, self._gather(lambda: self._changed(found) if found else str(self.latest))), "")
        if wrong:
            found = self.best = None
        if self.rank == 0:
            if wrong:
                self.latest.unlink()
                notice(f"{wrong}: is not as it was written; this training begins again")
            self._sweep(found["tag"] if found else "")
            for name in self.logs:
                if (self.folder / name).is_file():
                    os.truncate(self.folder / name, found["logs"].get(name, {"bytes": 0})["bytes"] if found else 0)
        return found

    def finish(self) -> None:
        """Leave the best weights where `open_best` looks for them (process 0)."""
        if self.best:
            best = self.best.copy()
            os.replace(self.root / best.pop("name"), self.root / BEST)
            write_sealed(self.root / "best.json", {BEST: best})

    def _changed(self, found: Mapping[str, Any]) -> str:
        """The first file of this process' share of the checkpoint that is not as it was written; empty if all are."""
        best = dict(self.best or {})
        files = sorted((found["files"] | ({best.pop("name"): best} if best else {})).items())
        if wrong := changed(self.root, dict(files[self.rank::self.world])):
            return wrong
        logs = ((self.folder / name, fact) for name, fact in found["logs"].items() if self.rank == 0)
        return next((str(p) for p, fact in logs if not p.is_file() or start_of(p, fact["bytes"]) != fact), "")

    def _sweep(self, tag: str) -> None:
        """Remove what ``latest.json`` does not name."""
        for path in self.root.iterdir():
            if path.name in (self.latest.name, tag, (self.best or {}).get("name")):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _gather(self, part: Callable[[], Any]) -> list[Any]:
        """What `part` returns in each process, once all have come here."""
        if self.world == 1:
            return [part()]
        import torch.distributed as dist

        dist.barrier()
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part())
        return parts


def open_best(folder: Path) -> dict[str, Any]:
    """The weights that `Checkpoints.finish` left under a training's folder, by name.

    Raises:
        XalignError: when their file is not as it was written.
    """
    from safetensors.torch import load_file

    root = folder / "checkpoints"
    told = read_sealed(root / "best.json") if (root / "best.json").is_file() else None
    if wrong := changed(root, told) if told else str(root / "best.json"):
        raise XalignError(f"{wrong}: is not as it was written; repeat the command to train from the last good checkpoint or the start")
    return load_file(root / BEST)


def written_by(folder: Path, rank: int, world: int) -> list[Path]:
    """The files of a checkpoint that process `rank` has written, by the number in their names."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        number = re.search(r"rank_(\d+)", path.name)
        if int(number[1] if number else 0) % world == rank:
            found.append(path)
    return found


def changed(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The first of `files`, path in `folder` → bytes and sha256, that is not as it was written; empty if all are."""
    return next((str(folder / name) for name, fact in sorted(files.items()) if not intact(folder / name, fact)), "")


def start_of(path: Path, size: int) -> dict[str, Any]:
    """Bytes and sha256 of a file's first `size` bytes."""
    with open(path, "rb") as f:
        data = f.read(size)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
