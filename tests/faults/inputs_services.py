"""Wrong COMET checkpoints, interpreters and judge endpoints that are refused before anything is computed."""
from __future__ import annotations

import io
import pickle
import zipfile

from inputs import Case, Content
from inputs_models import Plant

KIND = "class_identifier: regression_metric\n"


def archive() -> bytes:
    """An empty zip archive, the form of torch.save."""
    out = io.BytesIO()
    zipfile.ZipFile(out, "w").close()
    return out.getvalue()


def comet(name: str, *words: str, checkpoint: bytes | None = None, hparams: Content | None = KIND, key: str = "metric.comet.model",
          python: str = "") -> Case:
    files: dict[str, Content] = {"m/checkpoints/model.ckpt": archive() if checkpoint is None else checkpoint}
    if hparams is not None:
        files["m/hparams.yaml"] = hparams
    argv = [f"{key}={{dir}}/m/checkpoints/model.ckpt", *([f"metric.comet.python={python}"] if python else [])]
    return Case(f"COMET: {name}", argv, ("metric.comet.python=" if python else f"{key}={{dir}}/m/checkpoints/model.ckpt", *words), files)


def judge(name: str, url: str, *words: str, more: tuple[str, ...] = ()) -> Case:
    return Case(f"judge: {name}", [f"metric.judge.url='{url}'", "metric.judge.model=m", *more], words)


ADDRESS = ("metric.judge.url", "http://localhost:8000/v1")
# test_services.py asks all of them in one process
EVERY = [
    comet("not a checkpoint", "no PyTorch checkpoint", "checkpoints/model.ckpt", checkpoint=b"<html>"),
    comet("cut short", "cut short", checkpoint=b"PK\x03\x04" + b"x" * 200),
    comet("empty", "no PyTorch checkpoint", checkpoint=b""),
    comet("no hparams.yaml", "has no {dir}/m/hparams.yaml", "one folder above", hparams=None),
    comet("hparams.yaml that is not YAML", "hparams.yaml is not YAML", hparams="a: [1,"),
    comet("hparams.yaml that runs Python", "hparams.yaml is not YAML", hparams="a: !!python/object/apply:os.mkdir ['it-ran']\n"),
    comet("hparams.yaml in another encoding", "hparams.yaml is not YAML", hparams=b"a: \xff\xfe\n"),
    comet("hparams.yaml of another kind", "class_identifier None", hparams="- 1\n"),
    comet("a class that is a list", "class_identifier ['a']", hparams="class_identifier: [a]\n"),
    comet("a class that ranks", "class_identifier ranking_metric", "regression_metric", hparams="class_identifier: ranking_metric\n"),
    comet("input segments that are a number", "input_segments 3", hparams="class_identifier: unified_metric\ninput_segments: 3\n"),
    comet("COMET as COMETKiwi", "needs references", key="metric.comet.kiwi"),
    comet("COMET as filter", "needs references", key="filter.cometkiwi"),
    comet("an old pickle without hparams.yaml", "has no {dir}/m/hparams.yaml", checkpoint=pickle.dumps(Plant(), 2), hparams=None),
    comet("no such interpreter", "no such interpreter", "unbabel-comet", python="{dir}/nowhere/python"),
    Case("COMET: no such file", ["metric.comet.model=./no.ckpt"], ("metric.comet.model=./no.ckpt", "no such file")),
    judge("no address", "endpoint", *ADDRESS),
    judge("another protocol", "ftp://host/v1", *ADDRESS),
    judge("a space", "http://host/v 1", *ADDRESS),
    judge("letters that no address has", "http://host/ä", *ADDRESS),
    judge("a port that cannot be", "http://host:99999/v1", *ADDRESS),
    judge("a host that cannot be", f"http://{'a' * 70}.org/v1", *ADDRESS),
    judge("an empty model", "http://host/v1", "metric.judge.model", "name the model", more=("metric.judge.model=' '",)),
    judge("no time", "http://host/v1", "metric.judge.timeout=0", "greater than 0", more=("metric.judge.timeout=0",)),
    judge("an opponent that is not there", "http://host/v1", "metric.judge.against=nowhere", "run folder",
          more=("metric.judge.against=nowhere",)),
]
SHOWN = ("COMET: not a checkpoint", "COMET: no hparams.yaml", "COMET: hparams.yaml that runs Python", "COMET: COMET as filter",
         "COMET: no such interpreter", "judge: no address")
CASES = [c for c in EVERY if c.name in SHOWN]
