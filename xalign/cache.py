"""Content-keyed artifacts: a stage runs once, its folder is reused by everyone who wants the same thing.

A stage's key hashes its name, version, parameters and the keys of its inputs, so anything that could
change the content changes the key. The folder is written under ``<key>.partial`` and renamed last: no
receipt, no artifact. An exclusive file lock (released by the kernel when its holder dies) makes
processes that want the same artifact wait for the first one.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xalign.config import XalignError

RECEIPT = "receipt.json"
_verified: set[str] = set()


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=list).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside `path` and rename, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as f:
        f.write(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(partial, path)


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and receipt."""

    path: Path
    receipt: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """The path of one file of the artifact."""
        return self.path / name


@dataclass(frozen=True)
class Stage:
    """One cached step.

    Attributes:
        name: folder name under the cache, e.g. ``translate``.
        version: raise it when `work` would write something else for the same parameters.
        params: JSON-able; everything that decides the content besides the inputs.
        inputs: stages whose artifacts `work` receives, in this order.
        work: ``work(folder, inputs) -> facts``; writes files into `folder` and returns JSON-able facts
            (counts, tokens) for the receipt. It may find its own unfinished files there if `resumable`.
        seconds: estimated cost on two cores, for the plan.
        label: what the plan calls it, e.g. ``translate eng→jpn``.
        resumable: keep an unfinished folder so that a killed run continues in it.
    """

    name: str
    version: int
    params: Mapping[str, Any]
    work: Callable[[Path, list[Artifact]], Mapping[str, Any] | None]
    inputs: tuple[Stage, ...] = ()
    seconds: float = 1.0
    label: str = ""
    resumable: bool = False
    key: str = field(init=False)

    def __post_init__(self) -> None:
        recipe = {"name": self.name, "version": self.version, "params": dict(self.params), "inputs": [s.key for s in self.inputs]}
        object.__setattr__(self, "key", digest_of(recipe)[:20])

    @property
    def title(self) -> str:
        return self.label or self.name

    def all(self) -> list[Stage]:
        """This stage and everything it needs, inputs first, each once."""
        seen: dict[str, Stage] = {}

        def visit(stage: Stage) -> None:
            if stage.key not in seen:
                for s in stage.inputs:
                    visit(s)
                seen.setdefault(stage.key, stage)

        visit(self)
        return list(seen.values())


class Cache:
    """A folder of artifacts.

    Args:
        root: created if absent.
        say: called with one line when a stage starts or is reused.
    """

    def __init__(self, root: str | Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.root = Path(root).expanduser()
        self.say = say

    def folder(self, stage: Stage) -> Path:
        """Where the stage's artifact is, or will be."""
        return self.root / stage.name / stage.key

    def has(self, stage: Stage) -> bool:
        """True if the artifact is finished (not verified yet)."""
        return (self.folder(stage) / RECEIPT).is_file()

    def started(self, stage: Stage) -> bool:
        """True if an unfinished folder waits to be continued."""
        return stage.resumable and not self.has(stage) and self._partial(stage).is_dir()

    def get(self, stage: Stage) -> Artifact:
        """Return the stage's artifact, running it (and its inputs) if it is not there.

        Raises:
            XalignError: for a full or read-only disk; whatever the stage itself raises.
        """
        from filelock import FileLock

        found = self._open(stage)
        if found:
            return found
        try:
            (self.root / stage.name).mkdir(parents=True, exist_ok=True)
            with FileLock(str(self.folder(stage)) + ".lock"):
                found = self._open(stage)
                return found or self._make(stage)
        except OSError as e:
            raise disk_error(e, self.root) from e

    def _partial(self, stage: Stage) -> Path:
        return self.folder(stage).with_name(stage.key + ".partial")

    def _make(self, stage: Stage) -> Artifact:
        inputs = [self.get(s) for s in stage.inputs]
        partial, final = self._partial(stage), self.folder(stage)
        if not stage.resumable:
            shutil.rmtree(partial, ignore_errors=True)
        self.say(f"{stage.title}{' (continued)' if partial.is_dir() else ''} …")
        partial.mkdir(parents=True, exist_ok=True)
        spent = partial / ".spent"
        before = float(spent.read_text()) if spent.is_file() else 0.0
        start = time.perf_counter()
        try:
            facts = dict(stage.work(partial, inputs) or {})
        except BaseException:
            if stage.resumable and partial.is_dir():
                with contextlib.suppress(OSError):
                    spent.write_text(str(before + time.perf_counter() - start))
            raise
        seconds = before + time.perf_counter() - start
        spent.unlink(missing_ok=True)
        files = {str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
                 for p in sorted(partial.rglob("*")) if p.is_file()}
        receipt = {"name": stage.name, "label": stage.title, "version": stage.version, "key": stage.key,
                   "params": dict(stage.params), "inputs": [s.key for s in stage.inputs], "files": files,
                   "facts": facts, "seconds": round(seconds, 3), "device_hours": round(seconds / 3600, 6)}
        write_json(partial / RECEIPT, receipt)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _verified.add(str(final))
        return Artifact(final, receipt)

    def _open(self, stage: Stage) -> Artifact | None:
        """The finished artifact, digests checked once a process; a damaged one is moved aside."""
        final = self.folder(stage)
        try:
            receipt = json.loads((final / RECEIPT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            self.say(f"{stage.title}: the cached receipt is damaged; making it again")
            return None
        if str(final) not in _verified:
            for name, fact in receipt["files"].items():
                path = final / name
                if not path.is_file() or path.stat().st_size != fact["bytes"] or file_sha256(path) != fact["sha256"]:
                    self.say(f"{stage.title}: cached file {name} is missing or changed; making it again")
                    return None
            _verified.add(str(final))
        return Artifact(final, receipt)


def disk_error(e: OSError, folder: Path) -> XalignError:
    """An OSError of the file system as one line with a remedy."""
    where = e.filename or folder
    if e.errno == errno.ENOSPC:
        return XalignError(f"{where}: the disk is full; free some space or choose another folder with cache=DIR and runs=DIR, "
                           "then repeat the command (finished stages are kept)")
    if e.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return XalignError(f"{where}: not writable ({e.strerror}); choose another folder with cache=DIR and runs=DIR")
    return XalignError(f"{where}: {e.strerror or e}")
