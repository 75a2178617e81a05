"""COMET and COMETKiwi, scored in a process of their own.

Run as a file by an interpreter that has unbabel-comet, this module scores a file of texts: so COMET's pins, its slow
imports and its memory never meet the rest of xalign. Only the standard library is imported at the top, for that reason.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

INSTALL = "pip install -e '.[comet]'"
ANSWER = 60.0  # seconds within which an interpreter says which COMET it has
SILENCE = 7200.0  # seconds without a scored batch (a model may first be downloaded) after which the process is given up
# what each class of checkpoint reads; a unified one lists its own as input_segments
SIDES = {"regression_metric": ("src", "mt", "ref"), "referenceless_regression_metric": ("src", "mt"),
         "unified_metric": ("src", "mt", "ref"), "xcomet_metric": ("src", "mt", "ref")}
_VERSION = re.compile(r"[0-9][\w.+!-]{0,40}")


@dataclass(frozen=True)
class Quality:
    """COMET's scores, one a text in the order given, and the recipe they were made by."""

    scores: list[float]
    signature: str


def sides(hparams: Mapping[str, Any], references: bool) -> tuple[str, ...]:
    """What a checkpoint is given: ``src``, ``mt`` and, if it takes one and `references` says so, ``ref``.

    Args:
        hparams: of its hparams.yaml, where alone ``class_identifier`` stands.
    Raises:
        ValueError: for a class that scores no segment, or that needs the reference that it does not get.
    """
    name = hparams.get("class_identifier")
    if not isinstance(name, str) or name not in SIDES:
        raise ValueError(f"hparams.yaml has class_identifier {name}, known are {', '.join(SIDES)}")
    if name == "regression_metric" and not references:
        raise ValueError("is a regression_metric, which needs references; COMETKiwi is a referenceless or unified one")
    segments = hparams.get("input_segments") or SIDES[name]
    if not isinstance(segments, (list, tuple)):
        raise ValueError(f"hparams.yaml has input_segments {segments}, which is no list")
    own = SIDES[name] if name != "unified_metric" else ("mt", *segments)
    return tuple(side for side in ("src", "mt", "ref") if side in own and (references or side != "ref"))


def check_checkpoint(key: str, model: str, references: bool) -> None:
    """Raise ConfigError for a local checkpoint that is not there, is none, has no hparams.yaml or is of the wrong class; never opened."""
    from xalign.config import ConfigError

    path = Path(model).expanduser()
    if not path.is_file():
        if path.is_dir() or model.endswith(".ckpt") or model.startswith(("/", ".", "~")) or model.count("/") > 1:
            raise ConfigError(f"{key}={model}: no such file; name a checkpoint (.../checkpoints/model.ckpt), a hub id, or null for none")
        return
    try:
        if not _is_checkpoint(path):
            raise ValueError("is no PyTorch checkpoint, or one that was cut short")
        sides(_hparams(path), references)
    except (OSError, ValueError) as e:
        missing = isinstance(e, FileNotFoundError)
        why = f"has no {_above(path)}" if missing else f"{e.filename} cannot be read ({e.strerror})" if isinstance(e, OSError) else str(e)
        raise ConfigError(f"{key}={model}: {why}; name the checkpoints/model.ckpt of a model that COMET saved, its hparams.yaml "
                          "one folder above") from None


def _is_checkpoint(path: Path) -> bool:
    """True for what torch.save writes: a complete zip archive, or before torch 1.6 a pickle."""
    with open(path, "rb") as f:
        return zipfile.is_zipfile(f) or not f.seek(0) and f.read(2) == b"\x80\x02"


def _above(checkpoint: Path) -> Path:
    """Where a checkpoint's hyper-parameters stand."""
    return checkpoint.absolute().parent.parent / "hparams.yaml"


def check_python(key: str, python: str) -> None:
    """Raise ConfigError for an interpreter that is not there."""
    from xalign.config import ConfigError

    if not shutil.which(Path(python).expanduser()):
        raise ConfigError(f"{key}={python}: no such interpreter; name one that has unbabel-comet ({INSTALL} in an environment of its own)")


def checkpoint_params(model: str) -> dict[str, str]:
    """What identifies a checkpoint: the digests of a local one's files, else its hub id."""
    path = Path(model).expanduser()
    if not path.is_file():
        return {"hub": model}
    from xalign.assets import folder_digests
    from xalign.digests import file_sha256

    # folder_digests remembers: a checkpoint of two gigabytes is not read again for every plan
    path = path.absolute()
    return {"sha256": folder_digests(path.parent)[path.name], "hparams": file_sha256(_above(path))}


def comet_version(python: str | None) -> str:
    """The version of unbabel-comet that `python` has, ``none`` if it has none: once it is installed, the scores are made."""
    return _asked(python) or "none"


@lru_cache
def _asked(python: str | None) -> str | None:
    """As `comet_version`; None for an interpreter that does not answer."""
    code = "from importlib.metadata import version; print(version('unbabel-comet'))"
    with tempfile.TemporaryFile() as out:  # no pipe: a process that the interpreter leaves behind would hold it open
        try:
            done = subprocess.run([_interpreter(python), "-c", code], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL,
                                  timeout=ANSWER)
        except OSError:
            return "none"
        except subprocess.TimeoutExpired:
            return None
        out.seek(0)
        found = out.read(100).decode("utf-8", "replace").strip()
    return found if not done.returncode and _VERSION.fullmatch(found) else "none"


def comet_scores(rows: Sequence[Mapping[str, str]], model: str, references: bool, python: str | None = None, batch_size: int = 16,
                 key: str = "metric.comet.model", python_key: str = "metric.comet.python") -> Quality:
    """Segment scores of translations, as COMET's own ``predict`` gives them; their mean is COMET's system score.

    Args:
        rows: ``src`` (original), ``mt`` (translation) and, with `references`, ``ref``; not empty.
        model: local checkpoint (``.../checkpoints/model.ckpt``) or hub id.
        references: give the model the reference too, if it takes one.
        python: interpreter with unbabel-comet; None is this one.
        key, python_key: the configuration keys that error messages name.
    Raises:
        XalignError: when COMET cannot be imported, loaded or run, with the reason and the remedy.
    Source: unbabel-comet (Rei et al. 2020, 2022).
    """
    from xalign.config import XalignError
    from xalign.meter import work
    from xalign.progress import bar

    work.uncounted = "COMET computes in another process, without being counted"
    local = Path(model).expanduser()
    digest = checkpoint_params(model).get("sha256")
    job = {"model": str(local.absolute()) if digest else model, "digest": digest, "references": references, "batch_size": batch_size,
           "rows": [dict(row) for row in rows]}
    program = _interpreter(python)

    def failed(reason: str) -> XalignError:
        return XalignError(f"{key}={model}: could not be scored by {program} ({reason}); name a checkpoint that COMET opens and, in "
                           f"{python_key}, an interpreter that has it ({INSTALL} in an environment of its own)")

    if _asked(python) is None:
        raise failed(f"it does not answer within {ANSWER:.0f} s")
    name = "comet" if references else "cometkiwi"
    with tempfile.TemporaryDirectory() as folder, bar(total=len(rows), desc=name, unit="text") as progress:
        source, result, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        source.write_text(json.dumps(job), encoding="utf-8")
        with open(log, "wb") as errors:
            try:
                process = subprocess.Popen([program, __file__, str(source), str(result)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                           stderr=errors)
            except OSError as e:
                raise failed(e.strerror or str(e)) from None
            try:
                for done in _progress(process):
                    progress.update(done)
                process.wait()
            except TimeoutError:
                raise failed(f"no text was scored within {SILENCE:.0f} s") from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                process.stdout.close()
        if process.returncode or not result.is_file():
            lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
            raise failed(lines[-1][:300] if lines else f"exit code {process.returncode}")
        try:
            found = json.loads(result.read_text(encoding="utf-8"))
            if "error" in found:
                raise failed(found["error"])
            scores = [float(s) for s in found["scores"]]
            told = [str(found[k]) for k in ("sha256", "class", "comet", "transformers")] + [str(s) for s in found["sides"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise failed("what it wrote is no result of COMET") from None
    if len(scores) != len(rows) or not all(math.isfinite(s) for s in scores):
        raise failed(f"it gave {sum(math.isfinite(s) for s in scores)} finite scores for {len(rows)} texts")
    sha, kind, comet, transformers, *own = told
    which = local.absolute().parents[1].name if digest else model
    return Quality(scores, f"{name}|model:{which}|sha256:{sha[:12]}|class:{kind}|inputs:{'+'.join(own)}|v:{comet}|"
                           f"transformers:{transformers}")


def _progress(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """The numbers that `process` prints, one a line, as they come; TimeoutError when none comes for `SILENCE` seconds."""
    assert process.stdout
    rest, last = b"", time.monotonic()
    while select.select([process.stdout], [], [], max(last + SILENCE - time.monotonic(), 0))[0]:
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest[-1000:] + chunk).split(b"\n")
        found = [int(line) for line in lines if len(line) < 9 and line.isdigit()]
        last = time.monotonic() if found else last
        yield from found
    raise TimeoutError


def _tail(log: Path) -> str:
    with open(log, "rb") as f:
        f.seek(max(log.stat().st_size - 10_000, 0))
        return f.read().decode("utf-8", "replace")


def _interpreter(python: str | None) -> str:
    return shutil.which(Path(python).expanduser()) or python if python else sys.executable


def _hparams(checkpoint: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_above(checkpoint).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{_above(checkpoint)} is not YAML ({str(e).splitlines()[0]})") from None
    return found if isinstance(found, dict) else {}


def _score(model: str, digest: str | None, references: bool, batch_size: int, rows: list[dict[str, str]], done: Any) -> dict[str, Any]:
    """Score `rows` with COMET, here; `done` is called with the number of texts of each finished batch."""
    # A checkpoint is a pickle, which can run code when it is opened. COMET passes no weights_only, so torch is told
    # through its environment to take tensors and plain values alone, unless the user has told it the contrary.
    if not os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    import pickle
    from importlib.metadata import version

    import torch
    from comet import download_model, load_from_checkpoint

    path = Path(model)
    if not digest:
        from huggingface_hub import snapshot_download

        # a hub id has a slash; the names of older models have none, and COMET knows where they are
        name, _, revision = model.partition("@")
        path = Path(snapshot_download(name, revision=revision or None), "checkpoints", "model.ckpt") if "/" in model else \
            Path(download_model(model))
        sha = hashlib.sha256()
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                sha.update(block)
        digest = sha.hexdigest()
    hparams = _hparams(path)
    own = sides(hparams, references)
    try:
        scorer = load_from_checkpoint(str(path), local_files_only=Path(str(hparams.get("pretrained_model"))).is_dir())
    except pickle.UnpicklingError:
        raise ValueError("the checkpoint is damaged, or holds more than weights and could run code; if you trust its source, set the "
                         "environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1") from None
    step = scorer.predict_step

    def predict_step(*args: Any, **kwargs: Any) -> Any:
        found = step(*args, **kwargs)
        done(len(found.scores))
        return found

    scorer.predict_step = predict_step
    scores = scorer.predict([{side: row[side] for side in own} for row in rows], batch_size=batch_size,
                            gpus=int(torch.cuda.is_available()), progress_bar=False).scores
    return {"scores": [float(s) for s in scores], "sides": own, "class": hparams["class_identifier"], "sha256": digest,
            "comet": version("unbabel-comet"), "transformers": version("transformers")}


def main(source: str, result: str) -> None:
    """Score the job in the file `source` and write what came of it, or one line of error, to `result`."""
    progress, sys.stdout = sys.stdout, sys.stderr  # what COMET prints is no progress
    try:
        found = _score(**json.loads(Path(source).read_text(encoding="utf-8")), done=lambda n: print(n, file=progress, flush=True))
    except Exception as e:
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        plain = isinstance(e, (ImportError, ValueError)) and lines
        found = {"error": lines[0] if plain else f"{type(e).__name__}: {lines[0] if lines else 'no message'}"}
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent  # of this file, whose own name would shadow COMET's
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    main(*sys.argv[1:])
