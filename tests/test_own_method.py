"""The README's page on a method of one's own, done as it says: its two blocks, its command."""
from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import ROOT, TINY, xalign


def test_a_method_of_ones_own_in_one_file_and_one_yaml(tmp_path: Path, cache: Path, parallel_files: Path) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8").split("## Add your own method")[1].split("\n## ")[0]
    code, settings = (re.search(rf"```{kind}\n(.*?)```", page, re.S)[1] for kind in ("python", "yaml"))
    command = re.search(r"python -m xalign (.+)", page)[1].split()
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "target_only.py").write_text(code, encoding="utf-8")
    (tmp_path / "conf" / "method" / "target_only.yaml").write_text(settings, encoding="utf-8")
    done = xalign(*command, *TINY, f"parallel.path={parallel_files}", f"cache={cache}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run, = (tmp_path / "runs").glob("target_only-fin-tiny-*")
    receipts = {r["label"]: r for r in json.loads((run / "receipts.json").read_text(encoding="utf-8"))}
    assert receipts["train target_only"]["params"]["loss"] == {"loss": "smoothed ce", "smoothing": 0.2}
    assert receipts["rows"]["facts"]["subsets"] == {"T": 12}
    wrong = xalign("--config-dir", "conf", "method=target_only", "lang=fin", "method.smoothing=2", *TINY, cwd=tmp_path)
    assert wrong.returncode == 2 and "method.smoothing=2.0: must be in [0, 1]" in wrong.stderr
