"""Files and their digests: what was written is told from what was changed, cut short or added since. No torch."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xalign.config import XalignError

LARGE = 64 * 2**20  # bytes; weights, hardly anything else
NOBODYS = (".nfs", ".DS_Store")  # how the names of what file systems and file managers leave in folders begin


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
        f.write(_text(value))
        f.flush()
        os.fsync(f.fileno())
    os.replace(partial, path)


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def write_sealed(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """`write_json` with a ``digest`` of all the rest; returns the value as `read_sealed` will."""
    plain = json.loads(json.dumps(value))  # keys as they come back: strings
    write_json(path, {**plain, "digest": digest_of(plain)})
    return plain


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, without the digest; None where a byte of it is not as it was written.

    Raises:
        OSError: it cannot be read.
    """
    try:
        text = path.read_bytes().decode()
        value = json.loads(text)
        digest = value.pop("digest")
        return value if digest == digest_of(value) and text == _text({**value, "digest": digest}) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # no JSON, or nothing with a digest
        return None


def describe(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Path below `folder` → bytes and sha256."""
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in paths}


def files_below(folder: Path) -> list[Path]:
    """Everything below `folder` that is no folder, in order of name, without `NOBODYS`."""
    return sorted(p for p in folder.rglob("*") if (p.is_symlink() or not p.is_dir()) and not p.name.startswith(NOBODYS))


def intact(path: Path, fact: Mapping[str, Any], since: int | None = None) -> bool:
    """True if the file has the bytes that `fact` (see `describe`) says.

    Args:
        since: when that was noted (ns). A large file that nobody wrote to later then counts as intact unread.
    Raises:
        XalignError: it is there and cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != fact["bytes"]:
            return False
        return since is not None and found.st_size > LARGE and found.st_mtime_ns <= since or file_sha256(path) == fact["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        raise unreadable(e, path) from e


def unreadable(e: OSError, path: Path) -> XalignError:
    """An OSError on reading as one line with a remedy."""
    own = e.errno in (errno.EACCES, errno.EPERM)
    remedy = "give yourself the right to read it" if own else "remove it if the disk cannot give it back"
    return XalignError(f"{path}: cannot be read ({e.strerror}); {remedy}, then repeat the command")


def remove(path: Path) -> None:
    """Delete a folder, a file or a link, whatever stands there; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
