"""Runs that shared a budget of translation rows: what they trained on, the tests against the uniform split, what the laws predicted."""
from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY, xalign

from xalign.config import ConfigError, XalignError
from xalign.methods.coit import CoIT, MuIT
from xalign.report.runs import load_runs
from xalign.studies.__main__ import make_study
from xalign.studies.allocate import main


def finished(root: Path, name: str, rows: dict[str, int], scores: dict[str, np.ndarray], settings: dict[str, Any] | None,
             method: str = "muit", seed: int = 0) -> None:
    """A finished run's files, with these per-item COMET scores."""
    folder = root / name
    folder.mkdir(parents=True)
    config = {"method": {"budget": 999, "allocation": "uniform"}, "mode": "train", "lang": list(rows), "source": "eng", "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "choices": {"method": method, "backbone": "hf"}}))
    lines = []
    for lang, values in scores.items():
        place = folder / "predictions" / "after" / lang
        place.mkdir(parents=True)
        examples = [[f"{i}:{lang}", str(i), float(v)] for i, v in enumerate(values)]
        (place / "per_example_scores.jsonl").write_text(json.dumps({"task": f"flores:eng-{lang}", "metric": "comet", "examples": examples}))
        lines.append({"run": name, "method": method, "lang": lang, "source": "eng", "backbone": "hf", "task": f"flores:eng-{lang}",
                      "metric": "comet", "value": float(values.mean()), "se": float(values.std(ddof=1) / len(values) ** 0.5),
                      "n": len(values), "seed": seed, "when": "after", "signature": "wmt22-comet-da"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"rows": sum(rows.values()), "subsets": {"mt": sum(rows.values())}, "translation instructions": rows}
    (folder / "run.json").write_text(json.dumps({"cost": {"stages": [{"label": f"rows {method}", "key": "k", "facts": facts}]}}))
    (folder / "receipts.json").write_text(json.dumps([{"name": "rows", "params": {"budget": settings}, "facts": facts}]))


GAINS = {"fin": -0.02, "ind": 0.05}
LAW = {"fin": {"alpha": 60.0, "beta": -0.1, "gamma": 0.5}, "ind": {"alpha": 70.0, "beta": -0.2, "gamma": 1.0}}
EVEN, BEST = {"fin": 5000, "ind": 5000}, {"fin": 4000, "ind": 6000}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(2)
    base = {lang: 0.7 + 0.1 * rng.standard_normal(60) for lang in GAINS}
    other = {lang: base[lang] + gain + 0.05 * rng.standard_normal(60) for lang, gain in GAINS.items()}
    finished(tmp_path / "runs", "muit-1", EVEN, base, {"rows": 10_000, "strategy": "uniform", "laws": None, "given": None, "seed": 0})
    finished(tmp_path / "runs", "muit-2", BEST, other, {"rows": 10_000, "strategy": "optimised", "laws": LAW, "given": None, "seed": 0})
    return tmp_path / "runs", {lang: (base[lang], other[lang]) for lang in GAINS}


def test_the_study_tests_the_difference_to_the_uniform_split(runs: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    from scipy.stats import ttest_rel

    folder, items = runs
    found = make_study("allocation").findings(load_runs([folder]))
    table = list(csv.DictReader(found.files["allocation.csv"].splitlines()))
    rows = {(r["allocation"], r["lang"]): r for r in table}
    assert {k: int(rows["optimised", k]["rows"]) for k in BEST} == BEST  # not the configuration's
    assert table[0]["budget"] == "10000" and table[0]["allocation"] == "uniform" and table[0]["difference"] == ""
    for lang, (a, b) in items.items():
        got = rows["optimised", lang]
        assert float(got["score"]) == pytest.approx(100 * b.mean()) and float(got["difference"]) == pytest.approx(100 * (b - a).mean())
        assert float(got["p"]) == pytest.approx(ttest_rel(b, a).pvalue, abs=0.02)
    both = np.mean([b - a for a, b in items.values()], axis=0)  # items of the same number are translations of one text
    mean_ = rows["optimised", "mean"]
    assert float(mean_["difference"]) == pytest.approx(100 * both.mean())
    half = 1.96 * 100 * both.std(ddof=1) / len(both) ** 0.5
    assert float(mean_["low"]) == pytest.approx(100 * both.mean() - half, abs=0.15 * half)
    assert float(mean_["high"]) == pytest.approx(100 * both.mean() + half, abs=0.15 * half)
    law = {"fin": (60 * 0.5**-0.1, -0.1), "ind": (70.0, -0.2)}

    def mean(rows_: dict[str, int]) -> float:
        return sum(100 - a * rows_[k] ** b for k, (a, b) in law.items()) / 2

    for way, rows_ in (("uniform", EVEN), ("optimised", BEST)):
        assert float(rows[way, "mean"]["predicted"]) == pytest.approx(mean(rows_))
    told = {row[0]: row for row in found.grids[1].rows}
    assert told["optimised - uniform, predicted"][3] == f"{mean(BEST) - mean(EVEN):+.2f}"
    assert told["optimised - uniform"][2].startswith(f"{100 * (items['ind'][1] - items['ind'][0]).mean():+.2f}**")
    assert f"mean {100 * both.mean():+.2f}" in found.plots[0].caption and "Diamonds" in found.plots[0].caption


def test_rows_of_a_file_seeds_and_other_runs(runs: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    folder, items = runs
    first = {lang: a for lang, (a, _) in items.items()}
    given = {"rows": 0, "strategy": "uniform", "laws": None, "given": {"fin": 3333, "ind": 6666}, "seed": 0}
    finished(folder, "muit-3", {"fin": 3333, "ind": 6666}, first, given)  # 9,999 rows: the same budget
    finished(folder, "muit-4", EVEN, {k: v + 0.02 for k, v in first.items()},
             {"rows": 10_000, "strategy": "uniform", "laws": None, "given": None, "seed": 1}, seed=1)
    finished(folder, "coit-1", {"fin": 10}, {"fin": first["fin"]}, None, method="coit")
    found = make_study("allocation").findings(load_runs([folder]))
    assert [row[0] for row in found.grids[0].rows] == ["10,000 rows", "uniform", "optimised", "None"]
    assert found.grids[0].rows[1][-1] == "0, 1" and found.grids[1].rows[1][1].startswith(f"{100 * first['fin'].mean() + 1:.2f}")


def test_what_compares_nothing_is_refused(runs: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    folder, items = runs
    study, loaded = make_study("allocation"), load_runs([folder])
    with pytest.raises(XalignError, match=r"no budget was shared in two ways \(10,000 rows uniform\); make them by -m method=muit"):
        study.findings(loaded[:1])
    finished(folder.parent / "others", "coit-1", {"fin": 10}, {"fin": items["fin"][0]}, None, method="coit")
    with pytest.raises(XalignError, match="compares trained runs of method=muit, and here are runs of coit"):
        study.findings(load_runs([folder.parent / "others"]))
    (folder / "muit-1" / "receipts.json").write_text("[]")
    with pytest.raises(XalignError, match="muit-1/receipts.json: does not say how the translation rows were shared"):
        study.findings(load_runs([folder]))


def test_from_fitted_laws_to_trained_models(tmp_path: Path, cache: Path, parallel_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """study=scaling writes law.yaml, the command and method.law take it as it is, study=allocation reads what was trained."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for lang, a, b in (("fin", 120.0, -0.2), ("jpn", 90.0, -0.1)):
        for x in (10, 40, 160, 640):
            scores = np.full(40, (100 - a * x**b) / 100) + 0.01 * rng.standard_normal(40)
            finished(tmp_path / "fit", f"coit-{lang}-{x}", {lang: x}, {lang: scores}, None, method="coit")
    law = make_study("scaling", {"resamples": 200}).findings(load_runs(["fit"])).files["law.yaml"]
    Path("law.yaml").write_text(law)
    assert main(["law.yaml", "--budget", "30", "--most", "fin=40,jpn=40"]) == 0
    rows = yaml.safe_load(Path("allocation/allocation.yaml").read_text())
    assert sum(rows.values()) == 30 and rows["fin"] > rows["jpn"] + 5
    done = xalign("-m", "method=muit", "lang=[fin,jpn]", *TINY, "task.choice_items=4", "task.open_items=0", "study=allocation",
                  "method.law=law.yaml", "method.budget=30", "method.allocation=uniform,optimised", f"parallel.path={parallel_files}",
                  f"cache={cache}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written, = (tmp_path / "runs" / "sweeps").glob("*/allocation/allocation.csv")
    trained = {(r["allocation"], r["lang"]): r["rows"] for r in csv.DictReader(written.read_text().splitlines()) if r["rows"]}
    assert trained == {("uniform", "fin"): "15", ("uniform", "jpn"): "15", **{("optimised", k): str(n) for k, n in rows.items()}}
    assert (written.parent / "allocation.png").is_file()


def test_the_study_wants_muit() -> None:
    study = make_study("allocation")
    study.check_run(SimpleNamespace(mode="train", method=MuIT(), choices={"method": "muit"}))
    for mode, method, what in (("train", CoIT(), "method=coit"), ("evaluate", MuIT(), "mode=evaluate")):
        with pytest.raises(ConfigError, match=f"{what} shares none; take method=muit, or leave the study out"):
            study.check_run(SimpleNamespace(mode=mode, method=method, choices={"method": "coit"}))
