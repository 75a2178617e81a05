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

Nothing damaged is used: a receipt lists every file with its digest and carries one of its own. An artifact is checked
when it is used, once a process; what is missing or changed is made again.
"""
from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xalign.config import XalignError
from xalign.digests import describe, digest_of, files_below, intact, read_sealed, remove, unreadable, write_sealed
from xalign.journal import finish
from xalign.meter import Meter

RECEIPT = "receipt.json"
_verified: set[str] = set()


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
        return " ".join((self.label or self.name).split())  # a folder's name may hold a line break

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
        self.made: set[str] = set()  # keys of what this object made, not found
        self._renewed: dict[str, int] = {}  # key → age of the receipt that shall not count
        self._sound: set[str] = set()

    def folder(self, stage: Stage) -> Path:
        """Where the stage's artifact is, or will be."""
        return self.root / stage.name / stage.key

    def has(self, stage: Stage) -> bool:
        """True if the artifact is finished; whether it is intact shows when it is used. Cheap: for plans."""
        age = self._age(stage)
        return age is not None and self._renewed.get(stage.key) != age

    def find(self, stage: Stage) -> Artifact | None:
        """The finished artifact, checked as `get` does; None where `get` would make it."""
        return self._open(stage, quiet=True)

    def sound(self, stage: Stage) -> bool:
        """True if the artifact is finished and a quick look finds no damage: large files that nobody wrote to since are not read.

        Who uses them reads them.
        """
        if stage.key not in self._sound and self._open(stage, quiet=True, quick=True):
            self._sound.add(stage.key)
        return stage.key in self._sound and self.has(stage)

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
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise unreadable(e, self.folder(stage)) from e

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
        except XalignError:
            raise
        except Exception as e:
            if trouble := e if isinstance(e, OSError) else disk_trouble(e):
                raise disk_error(trouble, self.root) from e
            raise

    def _partial(self, stage: Stage) -> Path:
        return self.folder(stage).with_name(stage.key + ".partial")

    def _make(self, stage: Stage) -> Artifact:
        inputs = [self.get(s) for s in stage.inputs]
        partial, final = self._partial(stage), self.folder(stage)
        if not stage.resumable or not partial.is_dir():
            remove(partial)
        self.say(f"{stage.title}{' (continued)' if partial.is_dir() else ''} …")
        partial.mkdir(parents=True, exist_ok=True)
        for name in (RECEIPT, RECEIPT + ".partial"):  # of a job that was killed before it could rename the folder
            remove(partial / name)
        with Meter(partial / ".spent" if stage.resumable else None) as meter:
            facts = dict(stage.work(partial, inputs) or {})
            finish(partial)
        cost = meter.cost()
        seconds = cost.pop("seconds")
        receipt = write_sealed(partial / RECEIPT, {
            "name": stage.name, "label": stage.title, "version": stage.version, "key": stage.key, "params": dict(stage.params),
            "inputs": [s.key for s in stage.inputs], "files": describe(partial, files_below(partial)), "facts": facts,
            "seconds": seconds, "device_hours": round(seconds * cost["devices"] / 3600, 6), "cost": cost})
        old = final.with_name(stage.key + ".old")  # renamed before it is deleted: another job may be reading it
        remove(old)
        with contextlib.suppress(FileNotFoundError):
            os.replace(final, old)
        os.replace(partial, final)
        remove(old)
        _verified.add(str(final))
        self.made.add(stage.key)
        return Artifact(final, receipt)

    def _open(self, stage: Stage, quiet: bool = False, quick: bool = False) -> Artifact | None:
        """The finished artifact, digests checked once a process; None where there is none, or a damaged one, or one to renew.

        Args:
            quiet: say nothing; for a look without the lock, which may fall in the moment in which another job replaces the folder.
            quick: see `sound`.
        Raises:
            XalignError: a file cannot be read, or (not `quiet`) one does not belong there.
        """
        final, age = self.folder(stage), self._age(stage)
        say = (lambda line: None) if quiet else self.say
        if not self.has(stage):
            return None
        try:
            receipt = read_sealed(final / RECEIPT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError:
            receipt = None
        except OSError as e:
            raise unreadable(e, final / RECEIPT) from e
        if receipt is None or receipt["key"] != stage.key:
            say(f"{stage.title}: the cached receipt is damaged; making it again")
            return None
        if str(final) not in _verified:
            for name, fact in receipt["files"].items():
                if not intact(final / name, fact, age if quick else None):
                    say(f"{stage.title}: cached file {name} is missing or changed; making it again")
                    return None
            for path in files_below(final):
                if (name := path.relative_to(final).as_posix()) not in receipt["files"] and name != RECEIPT:
                    if quiet:
                        return None
                    raise XalignError(f"{path}: does not belong to this artifact of the cache; move it elsewhere and repeat the command")
            if not quick:
                _verified.add(str(final))
        return Artifact(final, receipt)


def disk_trouble(e: BaseException | None) -> OSError | None:
    """The file system's error that another one wraps: torch and safetensors raise types of their own; None where there is none."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    while e:
        if isinstance(e, OSError):
            return e if e.errno in codes else None
        if found := next((code for code in codes if os.strerror(code) in str(e) or f"(os error {code})" in str(e)), None):
            return OSError(found, os.strerror(found))
        if "PytorchStreamWriter failed" in str(e) or "inline_container.cc" in str(e):  # torch tells no reason
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        e = e.__cause__ or (None if e.__suppress_context__ else e.__context__)
    return None


def disk_error(e: OSError, folder: Path) -> XalignError:
    """An OSError of the file system as one line with a remedy."""
    where, elsewhere = e.filename2 or e.filename or folder, "choose another folder with cache=DIR and runs=DIR"
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full" if e.errno == errno.ENOSPC else "your share of the disk (quota) is used up"
        return XalignError(f"{where}: {what}; free some space or {elsewhere}, then repeat the command (finished stages are kept)")
    if e.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return XalignError(f"{where}: not writable ({e.strerror}); {elsewhere}")
    if e.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        return XalignError(f"{where}: a file stands where a folder is needed, or the other way round ({e.strerror}); move it elsewhere, "
                           f"or {elsewhere}")
    if e.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        return XalignError(f"{where}: this file system has no locks ({e.strerror}); {elsewhere} on one that has")
    if e.errno in (errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE):
        return XalignError(f"{where}: the file system refuses ({e.strerror}); {elsewhere} on another disk, then repeat the command")
    return XalignError(f"{where}: {e.strerror or e}; repeat the command, or {elsewhere}")
