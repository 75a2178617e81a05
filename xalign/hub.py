"""Models of the Hugging Face hub as stages: one commit's files, each checked against what the hub says of it."""
from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from xalign.cache import Artifact, Stage
from xalign.config import XalignError
from xalign.progress import notice

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def hub_stage(name: str, revision: str = "main", code: bool = False) -> Stage:
    """A model of the Hugging Face hub: safetensors, configuration and tokenizer files only.

    A branch or tag stands for the commit that it names when it is fetched: the receipt tells it, and a notice how to pin it.

    Args:
        code: the model's Python files too; for ``trust_remote_code`` alone.
    Raises (when run):
        XalignError: no network, unknown name or revision, no right to read it, no safetensors weights, a file whose size or digest
            is not what the hub says.
    """
    wanted = (*WANTED, "*.py") if code else WANTED

    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        from huggingface_hub import HfApi, snapshot_download

        try:
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
            files = {f.rfilename: f for f in info.siblings or () if any(fnmatch(f.rfilename, p) for p in wanted)}
            for file in files:
                if escapes(file):
                    raise XalignError(f"{name}@{revision}: its file {file!r} would be written outside its folder; do not use this model")
            for file in _damaged(folder, files):  # the client takes a file that an earlier run has finished as it is
                notice(f"{name}@{revision}: {file} is not as the hub has it; fetching it again")
                (folder / file).unlink()
            snapshot_download(name, revision=info.sha, local_dir=str(folder), allow_patterns=list(wanted))
        except XalignError:
            raise
        except OSError as e:
            if e.errno:
                raise
            raise XalignError(_message(name, revision, e)) from None
        except Exception as e:  # the hub's client raises errors of several HTTP libraries
            raise XalignError(_message(name, revision, e)) from None
        for file, wrong in _damaged(folder, files).items():
            (folder / file).unlink()
            raise XalignError(f"{name}@{revision}: {file} came damaged ({wrong}) and is removed; repeat the command to fetch it again")
        if absent := sorted(file for file in files if not (folder / file).is_file()):
            raise XalignError(f"{name}@{revision}: {absent[0]} did not come; repeat the command to fetch it again")
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".spent")):
            if path.relative_to(folder).as_posix() not in files:  # of a branch's earlier commit, where a download was killed
                path.unlink()
        if not list(folder.glob("*.safetensors")):
            raise XalignError(f"{name}@{revision}: has no safetensors weights; choose another revision, "
                              "or convert it and name the folder")
        if not re.fullmatch("[0-9a-f]{40}", revision):
            notice(f"{name}@{revision} is commit {info.sha} now; set revision={info.sha} to get the same files anywhere and any time")
        return {"name": name, "revision": revision, "commit": info.sha}

    params = {"hub": name, "revision": revision, **({"code": True} if code else {})}
    return Stage("weights", 1, params, work, seconds=600, label=f"download {name}@{revision}", resumable=True)


def escapes(name: str) -> bool:
    """True for the name of an archive's or repository's file that would not stay in the folder it is written to."""
    inner = PurePosixPath(name)
    return inner.is_absolute() or ".." in inner.parts or not inner.parts or bool(re.search(r"[\\\0]|^[A-Za-z]:", name))


def _damaged(folder: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """Those of `files` that are there and differ from what the hub says of them, and how."""
    there = {file: folder / file for file in files if (folder / file).is_file()}
    return {file: wrong for file, path in there.items() if (wrong := _differs(path, files[file]))}


def _differs(path: Path, told: Any) -> str:
    """How a file differs from what the hub says of it; empty if it does not, or if the hub says nothing."""
    size, lfs = path.stat().st_size, getattr(told, "lfs", None)
    if told.size is not None and size != told.size:
        return f"{size:,} bytes, expected {told.size:,}"
    expected = (lfs.sha256 if hasattr(lfs, "sha256") else lfs["sha256"]) if lfs else told.blob_id
    digest = hashlib.sha256() if lfs else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)  # git's name of a small file
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return f"digest {digest.hexdigest()}, expected {expected}" if expected and digest.hexdigest() != expected else ""


def _message(name: str, revision: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (f"{name}@{revision}: cannot be fetched from the hub ({reason[:200]}); check name, revision, network and access "
            "token, or name a local model folder")
