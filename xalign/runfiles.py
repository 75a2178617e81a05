"""A run's files and their digests: run.json lists them, and whoever reads a run has them checked first. No torch.

run.json is written last. A run folder of an older version has one without digests; it is read as it is, and repeating its
command writes it anew.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xalign.config import XalignError
from xalign.digests import describe, files_below, intact, read_sealed, unreadable, write_sealed

FACTS = "run.json"
SINGLE = ("config.yaml", "rows.jsonl", "cost.jsonl", "receipts.json", "log.jsonl", "samples.jsonl")
READ = ("predictions", "study/*/before", "study/*/after")  # folders that reports read whole: nothing else may stand there
MODEL = "model"
CARD = f"{MODEL}/README.md"  # people add to it, a licence first of all
AGAIN = "repeat the run's command to write it again"


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write run.json with the digests of all files of the run: the last step of writing it."""
    paths = [p for p in (folder / name for name in SINGLE) if p.is_file()]
    paths += [*_read(folder), *files_below(folder / MODEL)]
    write_sealed(folder / FACTS, {**facts, "files": describe(folder, paths)})


def _read(folder: Path) -> list[Path]:
    return [p for pattern in READ for part in sorted(folder.glob(pattern)) for p in files_below(part)]


def read_facts(folder: Path) -> dict[str, Any]:
    """What run.json says; without ``files`` where an older version wrote it.

    Raises:
        XalignError: there is none, or it is damaged.
    """
    path = folder / FACTS
    try:
        facts = read_sealed(path)
        if facts is None:
            facts = json.loads(path.read_bytes())
            if not isinstance(facts, dict) or "files" in facts or "digest" in facts:
                raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise XalignError(f"{folder}: has no {FACTS}; the run is not finished, repeat its command") from None
    except (ValueError, IsADirectoryError, RecursionError):
        raise XalignError(f"{path}: is damaged; {AGAIN}") from None
    except OSError as e:
        raise unreadable(e, path) from e
    return facts


def check(folder: Path) -> dict[str, Any]:
    """run.json of a run whose files are as the run wrote them; its model aside, which reports do not read.

    Predictions or studies that are not there at all pass: people copy a run without them.

    Raises:
        XalignError: the run is not finished, a file was changed, is missing, or is none of the run's.
    """
    facts = read_facts(folder)
    files = facts.get("files", {})
    absent = {part for name in files if (part := name.partition("/")[0]) == MODEL or part not in SINGLE and not (folder / part).exists()}
    _refuse(folder, {name: fact for name, fact in files.items() if name.partition("/")[0] not in absent})
    if files and (path := stranger(folder, files)):
        raise XalignError(f"{path}: is no file of this run; move it elsewhere")
    return facts


def check_path(path: Path) -> None:
    """Check a file or folder that may be of a run, e.g. its model or predictions, by the run.json that lists it; what none lists passes.

    Raises:
        XalignError: a file was changed or is missing.
    """
    path = path.resolve()
    for folder in (path, *path.parents[:5]):
        if (folder / FACTS).is_file() and (folder / SINGLE[0]).is_file():
            below = path.relative_to(folder).as_posix()
            _refuse(folder, {name: fact for name, fact in read_facts(folder).get("files", {}).items()
                             if name == below or below == "." or name.startswith(below + "/")})
            return


def _refuse(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, fact in files.items():
        path = folder / name
        if not (path.is_file() if name == CARD else intact(path, fact)):
            raise XalignError(f"{path}: {'was changed since the run wrote it' if path.is_file() else 'is missing'}; {AGAIN}")


def stranger(folder: Path, files: Mapping[str, Any]) -> Path | None:
    """The first file among a run's predictions and studies that is not the run's."""
    return next((p for p in _read(folder) if p.relative_to(folder).as_posix() not in files), None)


def sound(folder: Path) -> bool:
    """True if a run's folder is written and a quick look finds no damage: large files that nobody wrote to since are not read.

    Raises:
        XalignError: a file cannot be read, or writing the run again would delete one that is none of the run's.
    """
    path = folder / FACTS
    try:
        files, since = read_facts(folder).get("files"), path.stat().st_mtime_ns
    except (XalignError, FileNotFoundError):
        return False
    if not files:
        return False
    if other := stranger(folder, files):
        raise XalignError(f"{other}: is no file of this run; move it elsewhere and repeat the command")
    return all((folder / name).is_file() if name == CARD else intact(folder / name, fact, since) for name, fact in files.items())
