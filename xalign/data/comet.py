"""Reference-free translation quality (COMET-Kiwi), scored in a process of its own.

Run as a file by an interpreter that has unbabel-comet, it reads a file of ``{"src", "mt"}`` JSON lines and
writes a file with the list of scores: so COMET's pins never meet the rest of xalign.
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def quality_scores(pairs: Sequence[tuple[str, str]], model: str, python: str | None = None, batch_size: int = 32) -> list[float]:
    """Quality in [0, 1] of each (original, translation).

    Args:
        pairs: texts as they were translated.
        model: local checkpoint (``.../checkpoints/model.ckpt``) or hub id.
        python: interpreter with unbabel-comet; None is this one.
    Raises:
        XalignError: when COMET cannot be imported, loaded or run, with its last line and the remedy.
    """
    from xalign.config import XalignError

    if not pairs:
        return []
    local = Path(model).expanduser()
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "pairs.jsonl", Path(folder) / "scores.json"
        source.write_text("".join(json.dumps({"src": s, "mt": t}) + "\n" for s, t in pairs), encoding="utf-8")
        model_path = str(local) if local.is_file() else model
        command = [python or sys.executable, __file__, model_path, str(batch_size), str(source), str(result)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode or not result.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise XalignError(f"filter.cometkiwi={model}: could not be scored by {command[0]} ({last}); name a checkpoint that "
                              "COMET opens and, in filter.comet_python, an interpreter that has it, or set filter.cometkiwi=null")
        scores = json.loads(result.read_text(encoding="utf-8"))
    if len(scores) != len(pairs):
        raise XalignError(f"filter.cometkiwi={model}: gave {len(scores)} scores for {len(pairs)} texts")
    return scores


def main(model: str, batch_size: str, source: str, result: str) -> None:
    """Score the file `source` with COMET and write the list of scores to `result`."""
    import torch
    from comet import download_model, load_from_checkpoint

    path = model if Path(model).is_file() else download_model(model)
    scorer = load_from_checkpoint(path)
    pairs = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    scores = scorer.predict(pairs, batch_size=int(batch_size), gpus=int(torch.cuda.is_available()), progress_bar=False).scores
    Path(result).write_text(json.dumps([float(s) for s in scores]), encoding="utf-8")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its neighbours must not shadow COMET's imports
    main(*sys.argv[1:])
