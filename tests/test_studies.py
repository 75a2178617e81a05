"""The frame of the papers' analyses, with an analysis of one's own: one file and one YAML."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY, xalign

from xalign.compose import keys_of, offered
from xalign.config import ConfigError
from xalign.studies.__main__ import make_study

MODULE = '''
"""How many letters the name of a language has, per layer of nothing."""
from dataclasses import dataclass
from typing import ClassVar

from xalign.cache import Stage
from xalign.config import XalignError, within
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.studies.base import Findings, Study, exported
from xalign.tables import Grid


@dataclass(frozen=True)
class Letters(Study):
    name: ClassVar[str] = "letters"
    alone: ClassVar[bool] = True

    times: int = within(1, 1, 9)

    def stages(self, run, weights, model):
        langs, times = list(run.lang), self.times

        def work(folder, inputs):
            write_jsonl(folder / "letters.jsonl", [{"lang": lang, "letters": times * len(lang)} for lang in langs])
            return {"langs": len(langs)}

        stages = {"before": weights, "after": model}
        return {when: Stage("letters", 1, {"langs": langs, "times": times}, work, (stage,)) for when, stage in stages.items() if stage}

    def rows(self, run, found):
        return [{"task": "letters", "lang": r["lang"], "metric": "letters", "value": r["letters"], "se": None, "n": 3,
                 "signature": f"times:{self.times}", "when": when}
                for when, artifact in found.items() for r in read_jsonl(artifact.file("letters.jsonl"))]

    def findings(self, runs):
        cells = [[run.name, when, str(len(list(read_jsonl(path / "letters.jsonl"))))]
                 for run in runs for when, path in exported(run, "letters").items()]
        if not cells:
            raise XalignError("no run has counted its letters; add study=letters to its command")
        from xalign.report.drawing import new_plot

        return Findings([Grid("Letters", ["run", "when", "languages"], cells)], [new_plot("letters", 2, 1)], {"letters.csv": "a,b\\n"})
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with an analysis and its YAML."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "letters.py").write_text(MODULE)
    (folder / "conf" / "study").mkdir(parents=True)
    (folder / "conf" / "study" / "letters.yaml").write_text("# letters of a language's name\n_target_: letters.Letters\ntimes: 1\n")
    return folder


def command(own: Path, cache: Path, parallel_files: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return xalign("--config-dir", "conf", "method=sft", *TINY, f"parallel.path={parallel_files}", f"cache={cache}", *more, cwd=own)


def test_a_run_computes_its_study_and_leaves_files_rows_and_a_table(own, cache, parallel_files):
    done = command(own, cache, parallel_files, "lang=fin", "study=letters")
    assert done.returncode == 0, done.stderr
    run, = (own / "runs").glob("sft-fin-*")
    for when in ("before", "after"):
        folder = run / "study" / "letters" / when
        assert json.loads((folder / "letters.jsonl").read_text()) == {"lang": "fin", "letters": 3}
        assert json.loads((folder / "receipt.json").read_text())["name"] == "letters"
    rows = [r for r in map(json.loads, (run / "rows.jsonl").read_text().splitlines()) if r["task"] == "letters"]
    assert [(r["when"], r["value"], r["n"], r["method"], r["run"]) for r in rows] == [
        ("before", 3, 3, "sft", run.name), ("after", 3, 3, "sft", run.name)]
    assert "Letters" in done.stdout and (run / "study" / "letters" / "tables.md").read_text().count("| after") == 1
    assert (run / "study" / "letters" / "letters.csv").read_text() == "a,b\n"
    assert (run / "study" / "letters" / "letters.png").read_bytes().startswith(b"\x89PNG")


def test_trackers_get_the_pictures_of_the_study_too(own, monkeypatch):
    from xalign.config import build
    from xalign.tracking.record import pictures

    monkeypatch.syspath_prepend(str(own))
    run, = (own / "runs").glob("sft-fin-*")
    with_study, without = ([name for name, png, _ in pictures(run, print, study) if png.startswith(b"\x89PNG")]
                           for study in (build({"_target_": "letters.Letters"}, "study"), make_study("ablation")))
    assert with_study == ["study/letters", *without] and "learning_curves" in without


def test_the_second_time_nothing_is_computed_and_what_is_gone_is_written_again(own, cache, parallel_files):
    run, = (own / "runs").glob("sft-fin-*")
    again = command(own, cache, parallel_files, "lang=fin", "study=letters")
    assert "finished earlier" in again.stdout and "Letters" in again.stdout
    (run / "study" / "letters" / "after" / "receipt.json").unlink()
    mended = command(own, cache, parallel_files, "lang=fin", "study=letters")
    assert mended.returncode == 0 and "finished earlier" not in mended.stdout
    assert (run / "study" / "letters" / "after" / "receipt.json").is_file()
    other = command(own, cache, parallel_files, "lang=fin", "study=letters", "study.times=2")  # the same run, another question
    assert other.returncode == 0 and json.loads((run / "study" / "letters" / "after" / "letters.jsonl").read_text())["letters"] == 6
    assert list((own / "runs").glob("sft-fin-*")) == [run]
    without = command(own, cache, parallel_files, "lang=fin")  # the run's scores do not depend on it
    assert "finished earlier" in without.stdout and "Letters" not in without.stdout


def test_a_sweep_shows_the_study_of_all_its_runs(own, cache, parallel_files):
    done = command(own, cache, parallel_files, "-m", "lang=fin,jpn", "study=letters")
    assert done.returncode == 0, done.stderr
    written, = (own / "runs" / "sweeps").glob("*/letters/tables.md")
    text = written.read_text()
    assert "sft-fin" in text and "sft-jpn" in text and text.count("| after") == 2


def test_a_backbone_as_it_is(own, cache, parallel_files):
    done = command(own, cache, parallel_files, "mode=study", "lang=[fin,jpn]", "study=letters")
    assert done.returncode == 0, done.stderr
    run, = (own / "runs").glob("study-letters-fin_jpn-tiny-*")
    assert {r["when"] for r in map(json.loads, (run / "rows.jsonl").read_text().splitlines())} == {"before"}
    assert not (run / "model").exists() and not (run / "study" / "letters" / "after").exists()


def test_what_cannot_be_studied_is_one_line(own, cache, parallel_files):
    for more, line in ((["mode=study"], "mode=study: study=none asks nothing of a backbone as it is"),
                       (["mode=study", "study=ablation"], "mode=study: study=ablation asks nothing of a backbone as it is"),
                       (["study=leters"], "study=leters: no such study"),
                       (["study=letters", "study.times=10"], "study.times=10: must be in [1, 9]"),
                       (["study=letters", "study.time=1"], "study.time")):
        done = command(own, cache, parallel_files, "lang=fin", *more)
        assert done.returncode == 2 and line in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def study(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xalign", "study", *argv], cwd=cwd, text=True, capture_output=True)


def test_studies_of_finished_runs(own, tmp_path):
    assert "studies:" in study("--help", cwd=tmp_path).stdout
    for argv, line in ((("scalin", "runs"), "study=scalin: no such study; did you mean 'scaling'?"),
                       (("scaling", "runs"), "runs"), (("scaling", "runs", "resample=3"), "resample: is no key of study=scaling"),
                       (("none", "runs"), "study=none: no such study"),
                       (("scaling", "runs", "resamples=x"), "study.resamples")):
        done = study(*argv, cwd=tmp_path)
        assert done.returncode == 2 and line in done.stderr and len(done.stderr.strip().splitlines()) == 1, (argv, done.stderr)


@pytest.mark.parametrize("name", [n for n in offered("study") if n != "none"])
def test_every_study_is_made_from_its_yaml(name):
    made = make_study(name)
    assert made.name == name and offered("study")[name] and all(key.startswith("study.") for key in keys_of("study", name))
    with pytest.raises(ConfigError, match=r"study\.nonsense: unknown key"):
        make_study(name, {"nonsense": 1})


def test_no_study_loads_torch_when_it_is_made():
    code = ("import sys\nfrom xalign.compose import offered\nfrom xalign.studies.__main__ import make_study\n"
            "[make_study(n) for n in offered('study') if n != 'none']\n"
            "print(sorted({'torch', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True).stdout.strip() == "[]"


def test_experiments_choose_studies_that_exist():
    from xalign.compose import package_folder

    for path in package_folder("experiments").glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        chosen = [e["override /study"] for e in values["defaults"] if "override /study" in e]
        assert all(make_study(name, values.get("study")) for name in chosen), path
