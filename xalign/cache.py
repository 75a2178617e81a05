"""Content-keyed artifacts: a stage runs once, its folder is reused by everyone who wants the same thing.

A stage's key hashes its name, version, parameters and the keys of its inputs, so anything that could
change the content changes the key. The folder is written under ``<key>.partial`` and renamed last: no
receipt, no artifact. An exclusive file lock (released by the kernel when its holder dies, however it
dies) makes processes that want the same artifact wait for the first one. A stage is locked before its
inputs, and nothing is locked the other way round, so jobs whose stages overlap cannot wait in a circle.

On a network file system this needs two things: `flock` that holds between machines (NFS 4 and NFS 3 with
its lock service, Lustre mounted with `flock`, GPFS, CephFS) and a rename within a folder that others see
at once or not at all. Where a machine's view lags behind (NFS attribute caching), a stage may be made
twice, with the same content; where `flock` is missing, filelock takes lock files instead, and one that is
left by a killed process may have to be deleted by hand.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xalign.config import XalignError
from xalign.meter import Meter

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


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the exclusive lock at `path`; `wait` is called once if another process has it.

    The file stays: deleting it would let two processes lock two files of one name.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(path))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        wait()
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


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
        self._renewed: dict[str, int] = {}  # key → age of the receipt that shall not count

    def folder(self, stage: Stage) -> Path:
        """Where the stage's artifact is, or will be."""
        return self.root / stage.name / stage.key

    def has(self, stage: Stage) -> bool:
        """True if the artifact is finished (not verified yet)."""
        age = self._age(stage)
        return age is not None and self._renewed.get(stage.key) != age

    def started(self, stage: Stage) -> bool:
        """True if an unfinished folder waits to be continued."""
        return stage.resumable and not self.has(stage) and self._partial(stage).is_dir()

    def renew(self, stage: Stage) -> None:
        """Make `get` run a finished stage again, unless another process did so since; until then its files stay for others."""
        age = self._age(stage)
        if age is not None:
            self._renewed[stage.key] = age

    def _age(self, stage: Stage) -> int | None:
        """When the artifact was finished, in the file system's time; None if it is not."""
        try:
            return (self.folder(stage) / RECEIPT).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def get(self, stage: Stage) -> Artifact:
        """Return the stage's artifact, running it (and its inputs) if it is not there.

        Another process that makes it is waited for, with one line that says so.

        Raises:
            XalignError: for a full or read-only disk; whatever the stage itself raises.
        """
        found = self._open(stage, quiet=True)
        if found:
            return found
        waited: list[float] = []

        def wait() -> None:
            self.say(f"{stage.title}: another job makes it; waiting …")
            waited.append(time.perf_counter())

        try:
            (self.root / stage.name).mkdir(parents=True, exist_ok=True)
            with locked(self.folder(stage).with_name(stage.key + ".lock"), wait):
                found = self._open(stage)
                if found and waited:
                    self.say(f"{stage.title}: made by another job, after {time.perf_counter() - waited[0]:.0f} s")
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
        with Meter(partial / ".spent" if stage.resumable else None) as meter:
            facts = dict(stage.work(partial, inputs) or {})
        cost = meter.cost()
        seconds = cost.pop("seconds")
        files = {str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
                 for p in sorted(partial.rglob("*")) if p.is_file()}
        receipt = {"name": stage.name, "label": stage.title, "version": stage.version, "key": stage.key,
                   "params": dict(stage.params), "inputs": [s.key for s in stage.inputs], "files": files,
                   "facts": facts, "seconds": seconds, "device_hours": round(seconds * cost["devices"] / 3600, 6), "cost": cost}
        write_json(partial / RECEIPT, receipt)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _verified.add(str(final))
        return Artifact(final, receipt)

    def _open(self, stage: Stage, quiet: bool = False) -> Artifact | None:
        """The finished artifact, digests checked once a process; None where there is none, or a damaged one, or one to renew."""
        final = self.folder(stage)
        say = (lambda line: None) if quiet else self.say
        if not self.has(stage):
            return None
        try:
            receipt = json.loads((final / RECEIPT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            say(f"{stage.title}: the cached receipt is damaged; making it again")
            return None
        if str(final) not in _verified:
            for name, fact in receipt["files"].items():
                path = final / name
                try:
                    intact = path.stat().st_size == fact["bytes"] and file_sha256(path) == fact["sha256"]
                except FileNotFoundError:
                    intact = False
                if not intact:
                    say(f"{stage.title}: cached file {name} is missing or changed; making it again")
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
