"""The scaling law: what the fit recovers, how sure it says it is, and the study of finished runs."""
from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from xalign.analysis.allocation import Law, read_laws
from xalign.analysis.scaling import fit, further_rows, item_errors, score
from xalign.config import ConfigError, XalignError
from xalign.report.runs import FinishedRun, load_runs
from xalign.studies.__main__ import main, make_study
from xalign.studies.base import Findings, Study
from xalign.studies.scaling_points import trained_rows

ROWS = [15, 60, 240, 960]
PAPER = [10_000, 30_000, 100_000, 300_000]
LAW = Law(alpha=110.0, beta=-0.06)


def points(law: Law, rows: list[int], noise: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    return [(x, law.score(x) + noise * rng.standard_normal()) for x in rows]


# the fit


@pytest.mark.parametrize(("rows", "law"), [(ROWS, LAW), (PAPER, Law(600.0, -0.28)), (PAPER, Law(9e4, -0.9)), (ROWS[:3], Law(80.0, -0.01))])
def test_noise_free_points_give_the_law_that_a_line_on_the_log_scale_gives(rows: list[int], law: Law) -> None:
    exact = points(law, rows)
    beta, a = np.polyfit(np.log(rows), np.log([100 - s for _, s in exact]), 1)
    found = fit(exact, resamples=0)
    assert (found.law.alpha, found.law.beta) == pytest.approx((np.exp(a), beta), rel=1e-7)
    assert (found.law.alpha, found.law.beta) == pytest.approx((law.alpha, law.beta), rel=1e-7)
    assert found.rmse < 1e-9 and found.r2 == pytest.approx(1) and found.bound is None
    assert found.interval(lambda a, b: b) is None


@pytest.mark.parametrize("seed", range(5))
def test_noisy_points_give_the_least_squares_that_scipy_finds(seed: int) -> None:
    from scipy.optimize import curve_fit

    noisy = points(Law(600.0, -0.28), [*PAPER, *PAPER], 2.0, seed)
    x, s = np.array(noisy).T
    (a, beta), _ = curve_fit(lambda x, a, b: 100 - np.exp(a) * (x / 1e4) ** b, x, s, p0=(4, -0.3), xtol=1e-14)
    found = fit(noisy, resamples=0)
    assert (found.law.alpha, found.law.beta) == pytest.approx((np.exp(a) * 1e4**-beta, beta), rel=1e-5)
    rest = s - found.law.score(x)
    assert found.rmse == pytest.approx(np.sqrt((rest**2).mean())) and found.r2 == pytest.approx(1 - rest.var() / s.var(), abs=1e-3)


def test_many_points_recover_the_law_within_their_interval() -> None:
    found = fit(points(LAW, ROWS * 6, 1.0, seed=1))
    for true, value in ((LAW.beta, lambda a, b: b), (LAW.alpha, lambda a, b: a), (LAW.score(9600), lambda a, b: score(a, b, 9600))):
        low, high = found.interval(value)
        assert low < true < high
    low, high = found.interval(lambda a, b: b)
    assert high - low < 0.03


def test_languages_that_share_a_law_recover_it_from_their_gammas() -> None:
    rng = np.random.default_rng(0)
    law = Law(600.0, -0.28)
    shared = [(g * x, law.score(g * x) + 0.5 * rng.standard_normal()) for g in (0.3, 0.5, 0.8) for x in PAPER]
    found = fit(shared)
    assert found.points == 12 and found.law.gamma == 1
    for true, value in ((law.beta, lambda a, b: b), (law.alpha, lambda a, b: a)):
        low, high = found.interval(value)
        assert low < true < high


@pytest.mark.parametrize("trainings", [0.0, 1.5])
def test_about_95_of_100_intervals_hold_the_true_value(trainings: float) -> None:
    """Four points with errors of their own, and with errors of shared test items (known, correlated .7) beside them."""
    rng = np.random.default_rng(2)
    x, sets, resamples = np.array(ROWS), 200, 300
    truth, held, shared = np.array([LAW.score(v) for v in ROWS]), np.zeros(3), trainings > 0

    def items(n: int) -> np.ndarray:
        return np.sqrt(0.7) * rng.standard_normal((n, 1)) + np.sqrt(0.3) * rng.standard_normal((n, 4))

    for k in range(sets):
        seen = truth + (trainings or 1.0) * rng.standard_normal(4) + (items(1)[0] if shared else 0)
        found = fit(list(zip(x, seen, strict=True)), items(resamples) if shared else None, resamples, seed=k)
        spans = found.interval(lambda a, b: b), *(found.interval(lambda a, b, at=at: score(a, b, at)) for at in (60, 2000))
        held += [low <= true <= high for true, (low, high) in zip((LAW.beta, LAW.score(60), LAW.score(2000)), spans, strict=True)]
    # of 2,000 sets .945; here less three binomial errors; normal errors in place of Student's would hold .81
    assert (held / sets > 0.89).all() and (held / sets < 0.998).all(), held / sets


def test_fewer_than_three_amounts_are_refused() -> None:
    for few in ([], [(15.0, 8.0)], [(15.0, 8.0), (60.0, 9.0), (60.0, 9.5), (15.0, 8.5)]):
        with pytest.raises(XalignError, match=r"coit fin: a scaling law needs 3 different numbers.*the runs have [012] \("):
            fit(few, name="coit fin")
    with pytest.raises(XalignError, match="finite scores at more than 0 rows"):
        fit([(0, 5.0), (10, 6.0), (20, 7.0)])
    with pytest.raises(XalignError, match="every score is 100"):
        fit([(10, 100.0), (20, 100.0), (30, 100.0)])


def test_beta_stops_at_its_bounds_and_says_so() -> None:
    falling, steep = fit([(10, 30.0), (100, 20.0), (1000, 10.0)]), fit([(10, 1.0), (100, 99.0), (1000, 99.99)])
    assert (falling.bound, steep.bound) == (0, -1)
    assert -1 < steep.law.beta < -0.999 and -0.001 < falling.law.beta < 0
    flat = fit([(10, 20.0), (100, 20.0), (1000, 20.0)])
    assert flat.bound == 0 and flat.r2 is None and flat.law.score(1e5) == pytest.approx(20, abs=0.1)


def test_rows_for_one_more_point_raise_the_law_by_one_point() -> None:
    more = float(further_rows(LAW.alpha, LAW.beta, 960))
    assert LAW.score(960 + more) == pytest.approx(LAW.score(960) + 1)
    assert further_rows(np.array([0.5]), np.array([-0.1]), 10)[0] == np.inf


def test_item_errors_are_the_bootstrap_over_clusters_that_all_runs_share() -> None:
    """Two runs of one mean metric on the same items: the spread is the textbook's, and equal runs move together."""
    rng = np.random.default_rng(0)
    values = rng.normal(50, 10, 400)
    a = {f"i{k}": [v, f"c{k // 2}"] for k, v in enumerate(values)}
    b = {f"i{k}": [v + 3, f"c{k // 2}"] for k, v in enumerate(values)} | {"only here": [0.0, "x"]}
    errors = item_errors("judge", [a, b], 4000)
    assert errors.shape == (4000, 2) and np.allclose(errors[:, 0], errors[:, 1]) and abs(errors.mean()) < 1e-9
    clusters = values.reshape(-1, 2).mean(1)
    assert errors[:, 0].std() == pytest.approx(clusters.std() / np.sqrt(200), rel=0.05)
    assert item_errors("judge", [{"i": [1.0, "c"]}, {"j": [1.0, "c"]}], 10) is None


def test_item_errors_of_a_corpus_metric_are_those_of_its_summed_statistics() -> None:
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    pairs = [(f"the lamp {k} is {w}", f"the lamp {k} is on") for k, w in enumerate(["on", "off", "green", "on", "there", "on"] * 5)]
    sums = [metric._extract_corpus_statistics([hyp], [[ref]])[0] for hyp, ref in pairs]
    errors = item_errors("chrf", [{str(k): [0.0, str(k), s] for k, s in enumerate(sums)}], 2000)
    rng = np.random.default_rng(0)
    drawn = [metric._compute_score_from_stats(np.sum([sums[k] for k in rng.integers(0, 30, 30)], 0).tolist()).score for _ in range(400)]
    assert errors.std() == pytest.approx(np.std(drawn), rel=0.15)


# the study


def make_run(root: Path, lang: str, rows: int, value: float | None, *, method: str = "coit", seed: int = 0, epoch: float = 1.0,
             metric: str = "chrf", subsets: dict[str, int] | None = None, items: bool = True, settings: str = "") -> Path:
    """The files of a finished run that the study reads; 40 items whose mean is `value`."""
    folder = root / f"{method}-{lang}-tiny-s{seed}-{rows}{settings}"
    row: dict[str, Any] = {
        "run": folder.name, "method": method, "lang": lang, "source": "eng", "backbone": "tiny", "seed": seed, "when": "after",
        "task": f"sentences:eng-{lang}", "metric": metric, "value": value, "se": 0.5, "n": 40, "signature": f"{metric}|lang:{lang}"}
    other = {**row, "task": f"sentences:{lang}-eng"}
    copy = {**row, "when": "baseline:copy", "value": 3.5}
    scores = folder / "predictions" / "after" / lang / "per_example_scores.jsonl"
    scores.parent.mkdir(parents=True)
    lines = [{**row, "when": "before", "value": 5.0, "se": 0.3}, copy, row, other]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8")
    if items and value is not None:
        examples = [[f"s{k}", f"s{k}", value + 3 * (-1) ** k] for k in range(40)]
        scores.write_text(json.dumps({"task": row["task"], "metric": metric, "examples": examples}) + "\n", encoding="utf-8")
    config = {"lang": [lang], "source": "eng", "seed": seed, "parallel": {"sentences": 2 * rows, "path": f"data/{lang}.txt"},
              "trainer": {"lr": settings or 1}, "choices": {"method": method, "backbone": "tiny", "task": "lab"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    counts = subsets or {"D": 9, "mt": rows}
    made = {"subsets": counts, "rows": sum(counts.values()), **({} if subsets else {"translation instructions": {lang: rows}})}
    total = sum(counts.values())
    text = [{"label": f"rows text {lang}", "facts": {"rows": rows, "subsets": {"text": rows}}}] if method == "cpt" else []
    training = {"rows": total, "train_rows": total - 1}
    stages = [*text, {"label": f"rows {method}", "facts": made}, {"label": f"train {method}", "facts": training}]
    (folder / "run.json").write_text(json.dumps({"cost": {"stages": stages}}), encoding="utf-8")
    passes = [{"step": 1, "epoch": epoch / 2, "stage": f"train {method}"}, {"step": 2, "epoch": epoch, "stage": f"train {method}"}]
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in passes), encoding="utf-8")
    return folder


def curve(root: Path, lang: str, law: Law, rows: list[int] = ROWS, **more: Any) -> None:
    for k, x in enumerate(rows):
        make_run(root, lang, x, law.score(x) + 0.2 * (-1) ** k, **more)


def study(**settings: Any) -> Study:
    return make_study("scaling", settings)


def found(root: Path, **settings: Any) -> Findings:
    return study(resamples=200, **settings).findings(load_runs([root]))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    curve(root, "fin", LAW)
    curve(root, "ind", Law(105.0, -0.09))
    return root


def test_the_study_shows_points_laws_and_a_picture(two: Path, tmp_path: Path) -> None:
    result = found(two)
    laws, points_ = result.grids
    assert laws.title == "Scaling law S(X) = 100 - alpha (gamma X)^beta, chrf, sentences eng→target over X translation rows"
    assert [row[:2] for row in laws.rows] == [["fin", "4"], ["ind", "4"]] and laws.columns[:4] == ["language", "points", "alpha", "beta"]
    assert points_.rows[0][:3] == ["fin", "untrained", "5.0"] and points_.rows[1][:3] == ["fin", "copy", "3.5"]
    assert [row[1] for row in points_.rows[2:6]] == ["15", "60", "240", "960"] and points_.rows[2][3] == "40"
    table = list(csv.DictReader(result.files["scaling.csv"].splitlines()))
    assert [float(r["x"]) for r in table] == [*ROWS, *ROWS]
    (tmp_path / "law.yaml").write_text(result.files["law.yaml"], encoding="utf-8")
    read = read_laws(str(tmp_path / "law.yaml"), "method.law", ["fin", "ind"])
    for row in table:
        assert read[row["lang"]].score(float(row["x"])) == pytest.approx(float(row["fitted"]), abs=1e-5)
    assert read["fin"].beta == pytest.approx(LAW.beta, abs=0.01) and read["fin"].gamma == 1
    [plot] = result.plots
    assert plot.name == "scaling" and "Finnish: alpha" in plot.alt
    assert "n 40 test items" in plot.caption and "copy 3.5 (Finnish)" in plot.caption
    [legend] = [axis.get_legend() for axis in plot.axes]
    assert [t.get_text().split(":")[0] for t in legend.get_texts()] == ["Finnish", "Indonesian"]


def test_a_shared_law_takes_gamma_from_a_file(two: Path, tmp_path: Path) -> None:
    gamma = tmp_path / "gamma.yaml"
    gamma.write_text("fin: 0.2\nind: 0.9\n", encoding="utf-8")
    result = found(two, mode="shared", gamma=str(gamma))
    laws = result.grids[0]
    assert [row[1] for row in laws.rows] == ["8", "8"] and [row[laws.columns.index("gamma")] for row in laws.rows] == ["0.200", "0.900"]
    read = read_laws(yaml.safe_load(result.files["law.yaml"]), "method.law", ["fin", "ind"])
    assert (read["fin"].alpha, read["fin"].beta) == (read["ind"].alpha, read["ind"].beta) and read["fin"].gamma == 0.2
    with pytest.raises(ConfigError, match=r"study.gamma=.*has nothing for ind"):
        found(two, mode="shared", gamma={"fin": 0.2})


def test_figure_7_gives_each_method_a_law_and_only_translation_rows_a_file(tmp_path: Path) -> None:
    curve(tmp_path, "fin", LAW)
    curve(tmp_path, "fin", Law(98.0, -0.01), method="cpt", subsets={"D": 9, "T": 9})
    result = found(tmp_path)
    assert [row[:3] for row in result.grids[0].rows] == [["fin", "coit", "4"], ["fin", "cpt", "4"]]
    assert set(result.files) == {"scaling.csv", "law.yaml"} and list(yaml.safe_load(result.files["law.yaml"])) == ["fin"]
    table = csv.DictReader(result.files["scaling.csv"].splitlines())
    assert {(r["system"], r["unit"]) for r in table} == {("coit", "rows"), ("cpt", "texts")}
    legend = result.plots[0].axes[0].get_legend()
    assert [t.get_text().split(":")[0] for t in legend.get_texts()] == ["Finnish, coit", "Finnish, cpt"]


def test_many_languages_get_a_panel_each(tmp_path: Path) -> None:
    for lang in ("ara", "ell", "hin", "tur", "vie"):
        curve(tmp_path, lang, LAW, items=False)
    [plot] = found(tmp_path).plots
    assert [axis.get_title(loc="left").split(":")[0] for axis in plot.axes] == ["Arabic", "Greek", "Hindi", "Turkish", "Vietnamese"]


def test_seeds_are_points_of_one_law_and_narrow_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seed in range(3):
        for x in ROWS:
            make_run(tmp_path, "fin", x, LAW.score(x) + rng.standard_normal(), seed=seed)
    one, all_ = study().findings(load_runs(sorted(tmp_path.glob("*-s0-*")))), found(tmp_path)
    assert all_.grids[0].rows[0][1] == "12" and all_.grids[1].columns[2] == "seed"

    def width(findings: Findings) -> float:
        low, high = findings.grids[0].rows[0][3].split("[")[1].rstrip("]").split(", ")
        return float(high) - float(low)

    assert width(all_) < 0.7 * width(one)


def test_what_speaks_against_a_law_is_said(tmp_path: Path) -> None:
    for x, value in zip(ROWS, (20.0, 18.0, 15.0, 14.0), strict=True):
        make_run(tmp_path, "fin", x, value)
    curve(tmp_path, "ind", LAW)
    result = found(tmp_path)
    notes = "\n".join(result.grids[0].notes)
    assert "WARNING Finnish: beta ran into its bound 0 (the scores do not rise with X)" in notes
    assert "WARNING Finnish: the score does not rise everywhere: 15 to 60 rows: 20.0 to 18.0;" in notes
    law = result.files["law.yaml"]
    assert list(yaml.safe_load(law)) == ["ind"] and "left out, beta ran into its bound: fin" in law
    assert "Of all rows of a training" in notes and "held out" in notes


def test_rows_are_those_that_were_trained_on(tmp_path: Path) -> None:
    """Not the configuration's number (twice as large here); of a training that ended early, the share that it saw."""
    def of(folder: Path) -> FinishedRun:
        return load_runs([folder])[0]

    assert trained_rows(of(make_run(tmp_path, "fin", 60, 8.0)), "fin") == (60, False)
    assert trained_rows(of(make_run(tmp_path, "fin", 80, 8.0, epoch=0.25)), "fin") == (20, False)
    assert trained_rows(of(make_run(tmp_path, "fin", 90, 8.0, epoch=3.0)), "fin") == (90, False)
    sdrrl = make_run(tmp_path, "fin", 70, 8.0, method="sdrrl", subsets={"LL": 9, "mt": 70, "comp": 70})
    assert trained_rows(of(sdrrl), "fin") == (70, False)
    assert trained_rows(of(make_run(tmp_path, "fin", 50, 8.0, method="cpt", subsets={"D": 9})), "fin") == (50, True)
    folder = make_run(tmp_path, "fin", 61, 8.0, method="muit")
    (folder / "config.yaml").write_text("lang: [fin, deu]", encoding="utf-8")
    facts = {"subsets": {"D": 9, "mt": 91}, "rows": 100, "translation instructions": {"deu": 30, "fin": 61}}
    (folder / "run.json").write_text(json.dumps({"cost": {"stages": [{"label": "rows muit", "facts": facts}]}}), encoding="utf-8")
    assert [trained_rows(of(folder), lang)[0] for lang in ("fin", "deu")] == [61, 30]
    (folder / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(XalignError, match="run.json does not count the training rows"):
        trained_rows(of(folder), "fin")


def test_a_training_that_ended_early_is_told(tmp_path: Path) -> None:
    curve(tmp_path, "fin", LAW, epoch=0.5)
    result = found(tmp_path)
    assert [row[1] for row in result.grids[1].rows[2:]] == ["8", "30", "120", "480"]
    assert any("ended within its first pass" in note for note in result.grids[0].notes)


def test_runs_that_differ_in_more_than_size_are_no_curve(tmp_path: Path) -> None:
    curve(tmp_path, "fin", LAW)
    make_run(tmp_path, "fin", 30, 50.0, settings="2")
    make_run(tmp_path, "fin", 40, 8.0, method="sft", subsets={"D": 9})
    result = found(tmp_path)
    assert result.grids[0].rows[0][1] == "4"
    notes = "\n".join(result.grids[0].notes)
    assert "Left out, no law goes through so few amounts of data: coit fin (30)." in notes
    assert "Left out, trained on no translation rows: sft-fin-tiny-s0-40." in notes


def test_runs_that_show_no_law_are_one_line(tmp_path: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for x in ROWS[:2]:
        make_run(tmp_path, "fin", x, 9.0)
    assert main(["scaling", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "xalign: study=scaling: coit fin: a scaling law needs 3 different numbers of translation rows or more, and the runs have 2 "
        "(15, 60); add runs with other amounts of parallel text\n")
    none = tmp_path / "none"
    make_run(none, "fin", 7, None)
    make_run(none, "fin", 5, 4.0, method="sft", subsets={"D": 9})
    for runs, given, message in ((none, ["score=comet"], "study.score=comet: no trained run has this score"),
                                 (none, [], "no run was trained on translation rows; make them by a sweep over parallel.sentences"),
                                 (two, ["mode=shared"], "study.gamma=None: study.mode=shared tells the languages apart by it"),
                                 (two, ["gamma=.5"], "study.gamma=0.5: of a single language it cannot be told from alpha"),
                                 (two, ["mode=shared", "gamma=2"], "study.gamma=2: fin has 2; a similarity is a number in"),
                                 (two, ["resamples=5"], "study.resamples=5: must be at least 200")):
        assert main(["scaling", str(runs), *given]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_the_score_is_chosen_by_task_and_metric(two: Path, tmp_path: Path) -> None:
    runs = load_runs([two])
    for given in ("auto", "chrf", "sentences:src-tgt/chrf", "sentences:eng-fin/chrf"):
        assert study(score=given).scored(runs) == ("sentences:src-tgt", "chrf"), given
    assert study(score="sentences:tgt-src/chrf").scored(runs) == ("sentences:tgt-src", "chrf")
    make_run(tmp_path, "fin", 15, 0.2, metric="comet")
    assert study().scored([*runs, *load_runs([tmp_path])]) == ("sentences:src-tgt", "comet")
    curve(tmp_path / "low", "fin", Law(1.0, -0.1), metric="off_target")
    with pytest.raises(XalignError, match="study.score=off_target: lower is better"):
        study(score="off_target").scored(load_runs([tmp_path / "low"]))


def test_shares_are_put_on_the_scale_to_100(tmp_path: Path) -> None:
    for x in ROWS:
        make_run(tmp_path, "fin", x, LAW.score(x) / 100, metric="comet", items=False)
    result = found(tmp_path)
    [row] = csv.DictReader(result.files["scaling.csv"].splitlines()[:2])
    assert float(row["score"]) == pytest.approx(LAW.score(15)) and float(row["se"]) == 50
    assert "comet times 100: the law's ceiling is 100." in result.grids[1].notes
    assert yaml.safe_load(result.files["law.yaml"])["fin"]["beta"] == pytest.approx(LAW.beta, rel=1e-6)


def test_runs_that_cannot_show_it_are_refused_before_they_start(tmp_path: Path) -> None:
    from xalign.methods.coit import CoIT

    class Asked:
        mode, lang, choices, method = "train", ("fin",), {"method": "coit"}, CoIT()

    study().check_run(Asked)
    Asked.method = CoIT(subsets=["D", "T"])
    with pytest.raises(ConfigError, match="method=coit is set to train on no translation rows"):
        study().check_run(Asked)
    Asked.mode = "evaluate"
    with pytest.raises(ConfigError, match="mode=evaluate trains nothing"):
        study().check_run(Asked)
    Asked.mode, Asked.method = "train", CoIT()
    with pytest.raises(ConfigError, match=r"study.gamma=.*no such file"):
        study(mode="shared", gamma=str(tmp_path / "gamma.yaml")).check_run(Asked)


def test_the_command_needs_no_torch(two: Path, tmp_path: Path) -> None:
    code = ("import sys; from xalign.studies.__main__ import main; code = main(sys.argv[1:]); "
            "assert not {'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules); sys.exit(code)")
    given = ["scaling", str(two), "resamples=200", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *given], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["law.yaml", "scaling.csv", "scaling.pdf", "scaling.png", "tables.md"]


def test_an_experiments_report_shows_its_study_on_a_page_too(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    from xalign.report.papers import main as report

    monkeypatch.chdir(tmp_path)
    assert report(["experiment=xllm_figure3_lab", str(two), "--html", "page.html", "--markdown", "report.md"]) == 0
    shown, page = capsys.readouterr().out, Path("page.html").read_text(encoding="utf-8")
    assert "x-LLM Figure 3" in shown and "study    study/xllm_figure3_lab/law.yaml" in shown and "page     page.html" in shown
    report_text = Path("report.md").read_text(encoding="utf-8")
    assert "Scaling law S(X)" in page and "Scaling law S(X)" in report_text
    assert page.index("Scaling law S") < page.index("x-LLM Figure 3") and page.count("data:image/png") >= 1
    make_run(tmp_path / "few", "fin", 15, 7.0)
    assert report(["experiment=xllm_figure3_lab", "few"]) == 2  # the paper's table first, then why there is no law
    said = capsys.readouterr()
    assert "x-LLM Figure 3" in said.out and said.err.count("\n") == 1 and "study=scaling: " in said.err and "3 different" in said.err
