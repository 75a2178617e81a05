"""Records that a stage writes down one by one, so that a killed run goes on behind them. No torch.

Beside a file of records stands ``<file>.sums``, a digest for each of its lines and all that stand before it. What does not
agree with them, and all behind it, is not used but made again. `finish` removes them: a finished file is under its artifact's
receipt.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from xalign.config import XalignError

SUMS, PARTIAL = ".sums", ".partial"
_WIDTH = 17  # bytes of one digest and its line break


class Journal:
    """One file of records, appended as they come; a killed run reads back what is there.

    A file without digests is a finished one, and read as it is.

    Attributes:
        done: id → record.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, dict[str, dict[str, Any]]()
        self._sums = sums_of(path)
        self._last, self._unwritten = b"", b""  # the last line's digest; digests of a file that has none, until it is added to
        if path.is_file() or self._sums.is_file():
            self._read_back()

    def _read_back(self) -> None:
        data = self.path.read_bytes() if self.path.is_file() else b""
        told = self._sums.read_bytes() if self._sums.is_file() else None
        kept = lines = 0
        for line in data.splitlines(keepends=True):
            digest, record = _digest(self._last, line), None
            if line.endswith(b"\n") and (told is None or told[lines * _WIDTH:(lines + 1) * _WIDTH] == digest):
                with suppress(ValueError):
                    record = json.loads(line)
            if not isinstance(record, dict) or "id" not in record:
                break
            self.done[record["id"]] = record
            self._last, kept, lines = digest, kept + len(line), lines + 1
            self._unwritten += digest if told is None else b""
        # a kill leaves a line without its digest, or a part of one; a digest without its line is damage
        if told is not None and len(told) // _WIDTH > lines:
            from xalign.progress import notice

            notice(f"{self.path}:{lines + 1}: is not as it was written; this line and all behind it are made again")
        if kept < len(data):
            os.truncate(self.path, kept)
        if told is not None and len(told) > lines * _WIDTH:
            os.truncate(self._sums, lines * _WIDTH)

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append `records`, each with an ``id``."""
        with open(self.path, "ab") as f, open(self._sums, "ab") as sums:
            for record in records:
                line = _line(record)
                self._last = _digest(self._last, line)
                self._unwritten += self._last
                f.write(line)
                self.done[record["id"]] = record
            f.flush()  # the lines first: a digest without its line is damage
            sums.write(self._unwritten)
            self._unwritten = b""

    def arrange(self, ids: Iterable[str]) -> None:
        """Put the records of `ids` in this order, behind all others: they came as they were finished, which a kill changes."""
        order = dict.fromkeys(ids)
        records = [r for i, r in self.done.items() if i not in order] + [self.done[i] for i in order]
        if [r["id"] for r in records] != list(self.done):
            rewrite(self.path, records)
            self.__init__(self.path)  # type: ignore[misc]


def rewrite(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Put `records` in the place of what the journal at `path` holds; a kill leaves the one or the other."""
    lines, sums, last = [], [], b""
    for record in records:
        lines.append(_line(record))
        sums.append(last := _digest(last, lines[-1]))
    partial = [p.with_name(p.name + PARTIAL) for p in (path, sums_of(path))]
    for p, parts in zip(partial, (lines, sums), strict=True):
        p.write_bytes(b"".join(parts))
    sums_of(path).unlink(missing_ok=True)  # first: killed behind this, the file is read as it is
    os.replace(partial[0], path)
    os.replace(partial[1], sums_of(path))


def sums_of(path: Path) -> Path:
    """Where the digests of a journal stand."""
    return path.with_name(path.name + SUMS)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _digest(before: bytes, line: bytes) -> bytes:
    return hashlib.sha256(before + line).hexdigest()[:_WIDTH - 1].encode() + b"\n"


def finish(folder: Path) -> None:
    """Check the journals of a stage that has done its work, and remove their digests and what killed runs left half written.

    Raises:
        XalignError: for one that is not as it was written; repeating the stage makes its damaged end again.
    """
    found = sorted(folder.glob("*" + SUMS))
    for sums in found:
        told, last = sums.read_bytes(), b""
        path = sums.with_name(sums.name.removesuffix(SUMS))
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines):
            last = _digest(last, line)
            if told[number * _WIDTH:(number + 1) * _WIDTH] != last:
                raise XalignError(f"{path}:{number + 1}: is not as it was written, the disk or another program has changed it; repeat the "
                                  "command, which makes this line and all behind it again")
        if len(told) != len(lines) * _WIDTH:
            raise XalignError(f"{path}: holds {len(lines)} lines where {len(told) // _WIDTH} were written; repeat the command, which "
                              "makes the others again")
    for path in (*found, *(p for p in folder.glob(f"[!.]*{PARTIAL}") if p.is_file())):  # and what a kill left of a file in the writing
        path.unlink()
