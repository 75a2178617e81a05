"""Every wrong input of ``inputs_*.py``: one line that names the place and the remedy, exit code 2, nothing lost."""
from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from faultkit import forked, refusal
from inputs import Case

TABLES = [importlib.import_module(p.stem) for p in sorted(Path(__file__).parent.glob("inputs_*.py"))]
CASES: list[Case] = [case for table in TABLES for case in table.CASES]
ACCEPTED: list[Case] = [case for table in TABLES for case in getattr(table, "CASES_ACCEPTED", ())]


for module in ("hydra", "xalign.__main__", "xalign.plan", "xalign.data.contamination"):  # once here, not in every child
    importlib.import_module(module)


def forget() -> None:
    """In the child: no module of xalign that an earlier test loaded still holds torch."""
    for name, module in list(sys.modules.items()):
        if name.startswith("xalign.") and "torch" in vars(module):
            del sys.modules[name]


def answer(case: Case, tmp_path: Path, cache: Path, parallel: Path):
    """What the command of `case` did, and its words, with the placeholders filled in."""
    with case.served() as url:
        def fill(text: str) -> str:
            for name, value in {"dir": tmp_path, "parallel": parallel, "cache": cache, "url": url}.items():
                text = text.replace(f"{{{name}}}", str(value))
            return text

        env = {"XALIGN_CACHE": str(cache), **{k: fill(v) for k, v in case.env.items()}}
        done = forked([fill(a) for a in case.argv], tmp_path, env, () if case.heavy else ("torch",), None if case.heavy else forget)
        return done, [fill(w) for w in case.words]


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file under `folder`."""
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def table(cases: list[Case]) -> list:
    return [pytest.param(c, id=c.name, marks=pytest.mark.long if c.long else ()) for c in cases]


@pytest.mark.parametrize("case", table(CASES))
def test_a_wrong_input_is_one_line_and_nothing_is_lost(case, tmp_path, cache, parallel_files):
    (tmp_path / "runs" / "earlier").mkdir(parents=True)
    for name in ("rows.jsonl", "run.json"):
        (tmp_path / "runs" / "earlier" / name).write_text("{}\n")
    (cache / "kept").write_text("an artifact")
    case.write(tmp_path)
    before = stamps(tmp_path) | stamps(cache)
    done, words = answer(case, tmp_path, cache, parallel_files)
    line = refusal(done)
    assert [w for w in words if w not in line] == [], line
    for shape in ("<class", "ListConfig", "DictConfig", "PosixPath", "omegaconf", "object at 0x"):
        assert shape not in line, line
    assert not (tmp_path / "executed").exists()
    after = stamps(tmp_path) | stamps(cache)
    assert {p: after.get(p) for p in before} == before
    assert [p for p in after if p.name in ("rows.jsonl", "run.json") and p not in before
            and p.is_relative_to(tmp_path)] == []


@pytest.mark.parametrize("case", table(ACCEPTED))
def test_an_unusual_but_right_input_is_taken(case, tmp_path, cache, parallel_files):
    case.write(tmp_path)
    done, words = answer(case, tmp_path, cache, parallel_files)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert [w for w in words if w not in done.stdout] == [], done.stdout


def test_the_table_is_full():
    names = [c.name for c in CASES + ACCEPTED]
    assert len(CASES) >= 300
    assert [n for n in set(names) if names.count(n) > 1] == []
