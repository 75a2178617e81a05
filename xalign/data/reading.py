"""The files that users bring, read strictly: every refusal is one line that names the file, the line in it and the remedy.

Text is UTF-8, with or without a byte order mark. ``\\n`` and ``\\r\\n`` end a line, ``\\r`` does in a file without any ``\\n``, and nothing
else: texts from the web hold U+2028, form feeds and lone carriage returns. What is refused: anything but a regular file (a pipe would
wait for ever), other encodings, NUL, which tokenizers and C libraries take for the end of a text, and JSON that is not what it seems:
NaN, a key twice in one object, half a surrogate pair, which no file could hold again.
"""
from __future__ import annotations

import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xalign.config import ConfigError, XalignError

CONVERT = "convert the file to UTF-8"
MISSING = "no such file"
MAGIC = {b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip file", b"PAR1": "a Parquet file", b"BZh": "a bzip2 file",
         b"\xfd7zXZ": "an xz file", b"\x28\xb5\x2f\xfd": "a zstandard file", b"ARROW1": "an Arrow file", b"SQLite format 3": "a database"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # UTF-32's begins with one of them, or with NUL
_ESCAPE = re.compile(r"\\u[dD][89abAB]\w{2}\\u[dD][c-fC-F]\w{2}|(\\u[dD][89a-fA-F]\w{2})|(\\u0000)|\\.")  # a pair, half of one, NUL, others


def trouble(path: Path) -> str:
    """Why `path` cannot be read as a file, empty if it can; opens nothing."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to nothing" if path.is_symlink() else MISSING
    except (OSError, ValueError) as e:
        return f"cannot be read ({getattr(e, 'strerror', None) or e})"
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(mode):
        return "is a pipe or a device, not a regular file"
    readable = os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
    return "" if readable else "is not readable by this user"


def check_file(key: str, value: str | Path, remedy: str) -> Path:
    """The file that ``key=value`` names; ConfigError with the remedy unless it can be read."""
    path = Path(value).expanduser()
    if why := trouble(path):
        raise ConfigError(f"{key}={value}: {why}; {remedy}")
    return path


def text_of_file(path: Path, remedy: str = CONVERT) -> str:
    """The whole text of a file, without a byte order mark.

    Raises:
        XalignError: it is no regular file, cannot be read, is binary, is not UTF-8 or holds NUL.
    """
    if why := trouble(path):
        raise XalignError(f"{path}: {why}")
    data = path.read_bytes()
    for magic, kind in MAGIC.items():
        if data.startswith(magic):
            raise XalignError(f"{path}: is {kind}, not text, whatever its name says; unpack or export it as UTF-8 text")
    if data.startswith(UTF_16):
        raise XalignError(f"{path}:1: not UTF-8 (begins as UTF-16 or UTF-32); {remedy}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:  # e.start counts behind the mark that was taken off
        start = e.start + 3 * data.startswith(b"\xef\xbb\xbf")
        raise XalignError(f"{path}:{data.count(10, 0, start) + 1}: not UTF-8 ({e.reason} at byte {start}); {remedy}") from None
    if (nul := data.find(0)) >= 0:
        raise XalignError(f"{path}:{data.count(10, 0, nul) + 1}: holds a NUL byte (byte {nul}), so it is no UTF-8 text; {remedy}")
    return text


def text_lines(path: Path, remedy: str = CONVERT) -> list[tuple[int, str]]:
    """(line number, text) of every line, the empty ones too, without line ends. Raises as `text_of_file`."""
    return split_lines(text_of_file(path, remedy))


def split_lines(text: str) -> list[tuple[int, str]]:
    """(line number, line) of a text; see the module."""
    lines = text.split("\n" if "\n" in text else "\r")
    if lines[-1] == "":
        lines.pop()
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1)]


class _Refused(ValueError):
    """JSON that Python's reader would take."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"has the key {twice[:60]!r} twice in one object; keep one of them")
    return out


def _no_number(name: str) -> Any:
    raise _Refused(f"holds {name}, which is no JSON; write null, or leave the key out")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)
_OWN = json.JSONDecoder()


def parse_json(text: str, where: Callable[[int], str], remedy: str, own: bool = False) -> Any:
    """A JSON value.

    Args:
        where: line of `text` (from 1; 0: unknown) → what the message begins with.
        own: our own file: NaN and NUL may be in it, and no key is there twice.
    Raises:
        XalignError: it is not valid, holds what is refused, is nested too deeply or has a number that is too long.
    """
    try:
        value = (_OWN if own else _STRICT).decode(text)
    except json.JSONDecodeError as e:
        line = text.split("\n")[e.lineno - 1]
        if "\0" in line:
            raise XalignError(f"{where(e.lineno)}: holds a NUL byte, so it is no UTF-8 text; {CONVERT}") from None
        why = "a byte order mark in the middle of the file" if line.startswith("\ufeff") else e.msg
        raise XalignError(f"{where(e.lineno)}: not valid JSON ({why} at column {e.colno}); {remedy}") from None
    except _Refused as e:
        raise XalignError(f"{where(0)}: {e}") from None
    except RecursionError:
        raise XalignError(f"{where(0)}: not valid JSON (nested too deeply); {remedy}") from None
    except ValueError:  # Python's limit
        raise XalignError(f"{where(0)}: holds a number of more than 4,300 digits; write it as text, in quotes") from None
    for found in _ESCAPE.finditer(text) if _escapes(text, own) else ():
        if found[1] or found[2] and not own:
            what = f"half a surrogate pair ({found[1]})" if found[1] else "NUL (\\u0000)"
            raise XalignError(f"{where(text.count(chr(10), 0, found.start()) + 1)}: holds {what}, which is no character; remove it")
    return value


def _escapes(text: str, own: bool) -> bool:
    """Whether escapes in a JSON text have to be looked at."""
    return "\\u" in text and ("\\ud" in text or "\\uD" in text or "\\u0000" in text and not own)


def numbered(path: Path, remedy: str = "write one JSON object a line", own: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty; a file whose name ends in ``.gz`` is unpacked.

    Args:
        own: see `parse_json`.
    Raises:
        XalignError: for a line that is no JSON object and whatever else `text_of_file` and `parse_json` refuse.
    """
    if why := trouble(path):
        raise XalignError(f"{path}: {why}")
    packed, decode = path.suffix == ".gz", (_OWN if own else _STRICT).decode
    try:
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                if line.isspace():
                    continue
                try:
                    value = decode(line)
                    odd = "\\u" in line
                except (ValueError, RecursionError):
                    odd = True
                if odd:
                    value = parse_json(line, lambda _, n=number: f"{path}:{n}", remedy, own)
                if not isinstance(value, dict):
                    raise XalignError(f"{path}:{number}: expected a JSON object, found {kind_of(value)}; {remedy}")
                yield number, value
    except UnicodeDecodeError:
        _decode_lines(path, packed, remedy)
        raise
    except XalignError:
        if not packed:  # a file that is no text has a better reason
            text_of_file(path)
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise XalignError(f"{path}: cannot be unpacked ({e}); {remedy}") from None


def _decode_lines(path: Path, packed: bool, remedy: str) -> None:
    """Raise XalignError for the first line that is not UTF-8."""
    if not packed:
        text_of_file(path)
    with gzip.open(path) as f:
        for number, line in enumerate(f, 1):
            try:
                line.decode()
            except UnicodeDecodeError as e:
                raise XalignError(f"{path}:{number}: not UTF-8 ({e.reason}); {remedy}") from None


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    return "a number" if isinstance(value, (int, float)) else "text" if isinstance(value, str) else \
        "a list" if isinstance(value, list) else "an object"


def ident_of(row: Mapping[str, Any], key: str, default: Any, where: str) -> str:
    """The id of a record as text, `default` where it has none; XalignError at `where` unless it is text or a whole number."""
    value = row.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise XalignError(f"{where}: '{key}' must be text or a whole number, found {kind_of(value) if value != '' else 'nothing'}; "
                          "give each record its own")
    return str(value)


def unchanged(files: Iterable[tuple[Path, str]]) -> None:
    """Raise XalignError if a file is not what its digest (SHA-256) says: it was edited between the plan and the reading."""
    from xalign.digests import file_sha256

    for path, digest in files:
        if file_sha256(path) != digest:
            raise XalignError(f"{path}: was changed after this run was planned; repeat the command, which then takes the file as it is now")
