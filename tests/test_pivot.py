"""Tables of runs: means, errors, marks and averages against arithmetic done here; what is never averaged; what the command says."""
from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from xalign.analysis.significance import paired
from xalign.config import XalignError
from xalign.data.examples import write_jsonl
from xalign.report.__main__ import main
from xalign.report.layout import best_and_second, pivot_grid, pivot_grids
from xalign.report.pivot import pivots
from xalign.report.runs import load_runs
from xalign.rows import LOWER_IS_BETTER, as_roles, read_rows
from xalign.tables import folded, markdown

ITEMS = 40
TASK, METRIC = "belebele", "accuracy_raw"


def items(right: int, shift: int = 0) -> list[list]:
    """`right` of the items right, from the item `shift` on."""
    return [[f"q{i}", f"q{i}", float((i - shift) % ITEMS < right)] for i in range(ITEMS)]


def make(root: Path, method: str, langs: tuple[str, ...] = ("fin",), seed: int = 0, right: int = 20, before: int = 10, english: int = 30,
         backbone: str = "tiny", mode: str = "train", p: float | None = 0.2, name: str = "", se: float | None = 0.05,
         metric: str = METRIC, **config) -> Path:
    """A finished run: `right` of 40 items right after training (two more with every further language), `before` before it."""
    folder = root / (name or f"{method}-{'_'.join(langs)}-{backbone}-s{seed}-{len(list(root.glob('*'))):08x}")
    rows = []

    def add(when: str, lang: str, count: int, shift: int = 0, **more) -> None:
        rows.append({"run": folder.name, "method": "none" if mode == "evaluate" else method, "lang": lang, "source": "eng",
                     "backbone": backbone, "seed": seed, "task": TASK, "metric": metric, "value": count / ITEMS, "se": se, "n": ITEMS,
                     "signature": f"options:raw|lang:{lang}", "when": when, "reason": None, **more})
        path = folder / "predictions" / when / lang / "per_example_scores.jsonl"
        if when in ("before", "after"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, [{"task": TASK, "metric": metric, "examples": items(count, shift)}])

    for lang in (*langs, "eng"):
        add("baseline:chance", lang, ITEMS // 4)
        add("before", lang, 12 if lang == "eng" else before)
    if mode == "train":
        for i, lang in enumerate(langs):
            add("after", lang, right + 2 * i, seed, p=p)
        add("after", "eng", english, seed, p=p)
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(
        {"mode": mode, "seed": seed, "lang": list(langs), "source": "eng", "backbone": {"name": backbone}, "method": config or {"x": 1},
         "choices": {"method": method, "backbone": backbone, "task": "belebele"}}, sort_keys=False))
    (folder / "run.json").write_text(json.dumps({"name": folder.name, "mode": mode}))
    return folder


def table(root: Path, **how):
    """(the target table, the source table) of all runs in a folder."""
    found = pivots(load_runs([root]), **how)
    return (*(next((p for p in found if p.role == role), None) for role in ("target", "source")),)


def test_the_mean_over_seeds_and_its_error(tmp_path):
    for seed, right in enumerate((20, 26, 23)):
        make(tmp_path, "sft", seed=seed, right=right)
    make(tmp_path, "cit", right=21)
    target, _ = table(tmp_path)
    cell = target.cells["sft", "fin"]
    values = [20 / 40, 26 / 40, 23 / 40]
    assert cell.value == pytest.approx(sum(values) / 3) and cell.seeds == (0, 1, 2) and cell.n == 40
    assert cell.se == pytest.approx(statistics.stdev(values) / sqrt(3))
    one = target.cells["cit", "fin"]
    assert (one.value, one.se, one.seeds) == (21 / 40, 0.05, (0,))  # one seed: the items' own error
    text = " ".join(pivot_grid(target).notes)
    assert "over seeds where there are two or more, else over items" in text and "cit (fin): seed 0" in text
    assert target.rows == ["chance", "untrained", "sft", "cit"] and target.reference == {"chance", "untrained"}
    assert target.cells["untrained", "fin"].value == 10 / 40 and target.cells["untrained", "fin"].seeds == ()


def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(tmp_path):
    make(tmp_path, "sdrrl", code_switch=0.15)
    make(tmp_path, "sdrrl", code_switch=0.15, seed=1)
    make(tmp_path, "sdrrl", code_switch=0.0, right=24)
    make(tmp_path, "sft", backbone="big")
    make(tmp_path, "sft")
    again = make(tmp_path, "cit", right=30)
    twice = make(tmp_path, "cit", right=32)  # the same configuration and seed
    target, _ = table(tmp_path)
    systems = [row for row in target.rows if row not in target.reference]
    tags = [f.name.rpartition("-")[2] for f in (again, twice)]
    assert sorted(systems) == sorted(["sdrrl code_switch=0.15", "sdrrl code_switch=0.0", "sft big", "sft tiny",
                                      *(f"cit {tag}" for tag in tags)])
    assert target.cells["sdrrl code_switch=0.15", "fin"].seeds == (0, 1)
    assert [target.cells[f"cit {tag}", "fin"].value for tag in tags] == [30 / 40, 32 / 40]
    assert "the same configuration and seed as another run" in " ".join(target.notes)
    assert {"untrained big", "untrained tiny", "chance"} == target.reference  # guessing needs no model
    # asked for as a key, the setting is in the label or a column and nothing is left to add
    target, _ = table(tmp_path, by=("method", "method.code_switch"))
    assert target.columns == ["0.0", "0.15", "none"] and "sdrrl" in target.rows
    assert target.cells["sdrrl", "0.0"].value == 24 / 40 and target.cells["sdrrl", "0.15"].seeds == (0, 1)
    target, _ = table(tmp_path, by=("method", "backbone", "lang"))
    assert "sft big" in target.rows and "sdrrl tiny code_switch=0.0" in target.rows


def test_a_difference_that_is_too_long_for_a_label_is_noted(tmp_path):
    for k in (1, 2):
        make(tmp_path, "sft", alpha_long_name=k, beta_long_name=k, gamma_long_name=k)
    target, _ = table(tmp_path)
    assert [row for row in target.rows if row not in target.reference] == ["sft alpha_long_name=1", "sft alpha_long_name=2"]
    assert "sft alpha_long_name=1: method.beta_long_name=1, method.gamma_long_name=1" in target.notes


def test_marks_are_the_runs_own_tests_with_holm_over_the_table(tmp_path):
    ps = {"cit": 0.01, "coit": 0.03, "sft": 0.04, "xcot": 0.5}
    for method, p in ps.items():
        make(tmp_path, method, p=p)
    target, _ = table(tmp_path)
    assert target.tests == 4 and target.baseline == "untrained"
    # Holm: .01 * 4 = .04; .03 * 3 = .09
    assert [target.cells[m, "fin"].mark for m in ps] == ["**", "*", "*", ""]
    assert [target.cells[m, "fin"].p for m in ps] == list(ps.values())


def test_over_seeds_and_against_another_system_the_paired_test_is_done_here(tmp_path):
    for seed, right in enumerate((30, 34)):
        make(tmp_path, "sdrrl", seed=seed, right=right, p=None)
        make(tmp_path, "sft", seed=seed, right=right - 12, p=None)

    def scores(right: int, shift: int) -> list[float]:
        return [e[2] for e in sorted(items(right, shift))]

    target, _ = table(tmp_path)
    theirs = paired([scores(10, 0)] * 2, [scores(30, 0), scores(34, 1)])
    assert target.cells["sdrrl", "fin"].p == theirs.p_randomisation and target.tests == 2
    target, _ = table(tmp_path, baseline="sft")
    theirs = paired([scores(18, 0), scores(22, 1)], [scores(30, 0), scores(34, 1)])
    assert target.cells["sdrrl", "fin"].p == theirs.p_randomisation < 0.01 and target.cells["sdrrl", "fin"].mark == "**"
    assert target.cells["sft", "fin"].p is None and target.tests == 1 and target.baseline == "sft"
    assert any("of each system against sft" in note for note in pivot_grid(target).notes)
    alone = pivots([r for r in load_runs([tmp_path]) if r.method == "sft"], baseline="sft")
    assert [p.tests for p in alone] == [0, 0] and any("Nothing is tested" in note for note in pivot_grid(alone[0]).notes)


def test_a_baseline_of_several_backbones_is_the_one_of_the_rows_own(tmp_path):
    for backbone, right in (("tiny", 12), ("big", 34)):
        make(tmp_path, "sft", backbone=backbone, right=right)
        make(tmp_path, "sdrrl", backbone=backbone, right=34)
    target, _ = table(tmp_path, baseline="sft")
    assert target.cells["sdrrl tiny", "fin"].p < 0.01 and target.cells["sdrrl big", "fin"].p == 1
    assert target.baseline == "sft"
    with pytest.raises(XalignError, match="--baseline gpt: is no system .* untrained, sft big, sft tiny, sdrrl big, sdrrl tiny"):
        table(tmp_path, baseline="gpt")


LANGS = ("deu", "fin", "jpn", "ara")


def test_the_average_is_over_the_languages_that_all_systems_have(tmp_path):
    right = {"sft": dict(zip(LANGS, (20, 22, 18, 25), strict=True)), "sdrrl": dict(zip(LANGS[:3], (24, 30, 20), strict=True))}
    for method, by_lang in right.items():
        for lang, count in by_lang.items():
            make(tmp_path, method, (lang,), right=count, before=9 + LANGS.index(lang))
    target, source = table(tmp_path)
    common = LANGS[:3]
    sdrrl = target.average["sdrrl"]
    assert sdrrl.value == pytest.approx((24 + 30 + 20) / 3 / ITEMS)
    assert target.average["sft"].value == pytest.approx((20 + 22 + 18) / 3 / ITEMS)
    assert sdrrl.se == pytest.approx(sqrt(3 * 0.05**2) / 3)
    theirs = stats.ttest_rel([right["sdrrl"][x] for x in common], [9 + LANGS.index(x) for x in common])
    assert sdrrl.p == pytest.approx(theirs.pvalue)
    assert any("ara not scored for every system" in note for note in target.notes)
    assert target.cells["sdrrl", "ara"].value is None and target.cells["sdrrl", "ara"].reason
    # the models of a source block answer the same items: no independent errors
    assert source.average["sft"].se == pytest.approx(0.05) and source.average["sft"].p is None
    target, _ = table(tmp_path, baseline="sft")
    theirs = stats.ttest_rel([right["sdrrl"][x] for x in common], [right["sft"][x] for x in common])
    assert target.average["sdrrl"].p == pytest.approx(theirs.pvalue)


def test_the_averages_error_over_seeds_is_that_of_each_seeds_average(tmp_path):
    right = {("deu", 0): 20, ("fin", 0): 26, ("deu", 1): 24, ("fin", 1): 21}
    for (lang, seed), count in right.items():
        make(tmp_path, "sft", (lang,), seed=seed, right=count)
    target, _ = table(tmp_path)
    by_seed = [(20 + 26) / 2 / ITEMS, (24 + 21) / 2 / ITEMS]
    assert target.average["sft"].value == pytest.approx(statistics.fmean(by_seed))
    assert target.average["sft"].se == pytest.approx(statistics.stdev(by_seed) / sqrt(2))
    assert any("it needs 3 languages, there are 2" in note for note in target.notes)


def test_a_model_of_several_languages_has_one_score_in_the_source_language(tmp_path):
    make(tmp_path, "muit", LANGS[:3], english=31, p=0.02)
    make(tmp_path, "sft", ("fin",), english=28, p=0.02)
    target, source = table(tmp_path)
    assert [target.cells["muit", x].value * ITEMS for x in LANGS[:3]] == [20, 22, 24]
    assert {source.cells["muit", x].value for x in LANGS[:3]} == {31 / ITEMS} and source.average["muit"].se == pytest.approx(0.05)
    assert source.tests == 2 and source.cells["muit", "deu"].mark == "**"  # .02 * 2; counted in each column, .02 * 4 would be too much
    assert any("has one score in eng" in note for note in source.notes)
    assert source.cells["sft", "deu"].value is None


def test_evaluated_models_are_rows_and_the_untrained_one_is_recognised(tmp_path):
    make(tmp_path, "sft")
    make(tmp_path, "none", mode="evaluate", backbone="big", before=25)
    make(tmp_path, "none", mode="evaluate")  # the model that sft started from
    target, _ = table(tmp_path)
    assert target.rows == ["chance", "untrained", "big", "sft"] and target.cells["big", "fin"].value == 25 / ITEMS
    assert target.cells["big", "fin"].p is None


def test_best_and_second_are_marked_as_printed_and_lower_can_be_better(tmp_path):
    for method, right in (("a", 30), ("b", 25), ("c", 20), ("d", 20)):
        make(tmp_path, method, right=right)
    target, _ = table(tmp_path)
    assert best_and_second(target) == {("a", "fin"): "best", ("b", "fin"): "second"}
    grid = pivot_grid(target)
    place = {row[0]: i for i, row in enumerate(grid.rows) if grid.dim >= {i} or len(row) > 1}
    assert grid.marks[place["a"], 1] == "best" and grid.marks[place["b"], 1] == "second"
    assert "| a | **.750** ±.050 |" in markdown([grid]) and "| b | <u>.625</u> ±.050 |" in markdown([grid])
    target.lower = True
    assert best_and_second(target) == {("c", "fin"): "best", ("d", "fin"): "best"}
    for row in "ab":
        del target.cells[row, "fin"]
        target.rows.remove(row)
    assert best_and_second(target) == {}  # all the same: nobody is best
    assert "judge_unparsable".startswith(LOWER_IS_BETTER)
    make(tmp_path / "off", "sft", metric="off_target", right=30)
    make(tmp_path / "off", "cit", metric="off_target", right=3)
    target, _ = table(tmp_path / "off", metrics=("off_target",))
    assert target.lower and best_and_second(target)["cit", "fin"] == "best"
    assert "off_target: lower is better." in pivot_grid(target).notes


def test_an_absent_number_has_its_reason_and_is_no_zero(tmp_path):
    folder = make(tmp_path, "sft")
    make(tmp_path, "cit")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    write_jsonl(folder / "rows.jsonl", [r | ({"value": None, "reason": "no judge"} if r["when"] == "after" else {}) for r in rows])
    target, _ = table(tmp_path)
    assert (target.cells["sft", "fin"].value, target.cells["sft", "fin"].reason) == (None, "no judge")
    grid = pivot_grid(target)
    assert next(row for row in grid.rows if row[0] == "sft") == ["sft", "absent"]
    assert any(note.startswith("absent: belebele accuracy_raw (target, sft, fin): no judge") for note in grid.notes)


def test_roles_stand_for_languages_in_names():
    assert as_roles("sentences:eng-fin", "eng", "fin") == "sentences:src-tgt"
    assert as_roles("flores:fin-deu", "eng", "deu") == "flores:fin-tgt" and as_roles("final:x", "eng", "fin") == "final:x"


def test_languages_in_rows_turn_the_table_and_other_columns_make_a_table_a_language(tmp_path):
    for lang in ("fin", "deu"):
        for method in ("sft", "cit"):
            make(tmp_path, method, (lang,))
    target, _ = table(tmp_path, by=("lang", "method"))
    grid = pivot_grid(target)
    assert grid.columns == ["", "n", "chance", "untrained", "sft", "cit"] and [r[0] for r in grid.rows[1:]] == ["fin", "deu", "average"]
    found = pivots(load_runs([tmp_path]), by=("method", "backbone"))
    assert [(p.lang, p.role, p.columns) for p in found] == [(x, role, ["tiny"]) for x in ("deu", "fin") for role in ("target", "source")]
    assert pivot_grids(found)[1].title == "belebele accuracy_raw by method and backbone, fin"
    target, _ = table(tmp_path, by=("seed", "method"))
    assert target.rows == ["chance", "untrained", "seed=0"] and target.cells["untrained", "cit"].value == 10 / ITEMS


def test_wide_tables_fold_on_a_terminal_and_lose_nothing(tmp_path):
    for lang in LANGS:
        for method in ("sft", "sdrrl", "cit"):
            make(tmp_path, method, (lang,))
    grid = pivot_grids(pivots(load_runs([tmp_path])))[0]
    parts = folded(grid, 40)
    assert len(parts) > 1 and [c for part in parts for c in part.columns[1:]] == grid.columns[1:]
    assert [c for part in parts for c in part.rows[4][1:]] == grid.rows[4][1:] and parts[-1].notes == grid.notes
    assert {(i, c) for part in parts for i, c in ((i, part.columns[j]) for i, j in part.marks)} == \
        {(i, grid.columns[j]) for i, j in grid.marks}
    assert folded(grid, 200) == [grid]


def test_the_command_writes_what_it_shows(tmp_path, capsys):
    runs = tmp_path / "runs"
    for method, right in (("sft", 20), ("cit", 30)):
        make(runs, method, right=right)
    (runs / "sft-unfinished").mkdir()
    (runs / "sft-unfinished" / "config.yaml").write_text("lang: fin\nchoices: {}\n")
    files = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "markdown", "latex")}
    assert main([str(runs), "--by", "method,lang", "--metric", "accuracy", *(x for k, f in files.items() for x in (f"--{k}", str(f)))]) == 0
    shown = capsys.readouterr()
    assert "target language" in shown.out and "source: English (eng)" in shown.out and "sft-unfinished" in shown.err
    with files["csv"].open(newline="") as f:
        rows = {(r["role"], r["row"]): r for r in csv.DictReader(f)}
    assert float(rows["target", "cit"]["value"]) == 30 / ITEMS and rows["source", "sft"]["lang"] == "fin"
    assert rows["target", "cit"]["p"] == "0.2" and rows["target", "chance"]["reference"] == "yes"
    assert "<u>" not in files["markdown"].read_text() and "**.750** ±.050" in files["markdown"].read_text()
    assert r"\textbf{.750}" in files["latex"].read_text()


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys):
    runs = tmp_path / "runs"
    make(runs, "sft")
    empty = tmp_path / "empty"
    empty.mkdir()
    half = make(tmp_path / "half", "sft")
    (half / "rows.jsonl").unlink()
    for arguments, says in [([], "required: RUN"), ([runs, "--nope"], "--nope"), ([empty], "has no rows.jsonl and holds no finished run"),
                            ([half], "the run is not finished, repeat its command"), ([half.parent], f"not finished: {half.name}"),
                            ([f"{tmp_path}/zz*"], "no finished run matches"), ([runs, "--metric", "acuracy"], "nearest: accuracy_raw"),
                            ([runs, "--task", "flores"], "--task flores"), ([runs, "--by", "method,lnag"], "nearest: lang"),
                            ([runs, "--by", "lang,lang"], "name each key once"),
                            ([runs, "--baseline", "sdrrl"], "there are untrained, sft"),
                            ([runs, "--by", "method,lang", "--csv", f"{tmp_path}/no/where.csv"], "No such file")]:
        assert main([str(x) for x in arguments]) == 2, arguments
        err = capsys.readouterr().err
        assert says in err and err.startswith("xalign: ") and err.count("\n") == 1, err
    (half / "rows.jsonl").write_text('{"run": 1}\n')
    assert main([str(half.parent)]) == 2
    assert f"{half}/rows.jsonl: row 1 has no 'method'" in capsys.readouterr().err


def test_a_hundred_runs_are_read_in_seconds_and_without_torch(tmp_path):
    rng = np.random.default_rng(0)
    for lang in ("deu", "fin", "jpn", "ara", "zho"):
        for method in ("sft", "cit", "xcot", "sdrrl", "coit", "pl_bl", "t_sft", "rl_ia", "muit", "ml_ipd"):
            for seed in (0, 1):
                make(tmp_path, method, (lang,), seed=seed, right=int(rng.integers(10, 30)))
    code = ("import sys, time; t = time.perf_counter(); from xalign.report.__main__ import main; code = main(sys.argv[1:]);"
            "assert not {'torch', 'matplotlib', 'pandas', 'jinja2'} & set(sys.modules); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), "--by", "method,lang"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "the 50 tests of a block and metric" in " ".join(done.stdout.split())


def test_a_score_over_few_items_says_so_and_does_not_compete(tmp_path):
    for method, right in (("sft", 20), ("cit", 30), ("sdrrl", 25)):
        make(tmp_path, method, ("fin", "deu"), right=right)
    folder = next(tmp_path.glob("cit-*"))
    rows = [dict(r, n=19) if (r["when"], r["lang"]) == ("after", "fin") else r for r in read_rows(folder)]
    write_jsonl(folder / "rows.jsonl", rows)
    target, _ = table(tmp_path)
    marks = best_and_second(target)
    assert {k: v for k, v in marks.items() if k[1] == "fin"} == {("sdrrl", "fin"): "best"}  # two compete: no second
    assert marks["cit", "deu"] == "best" and ("cit", "average") not in marks and marks["sdrrl", "average"] == "best"
    lines = {row[0]: row for row in pivot_grid(target).rows}
    assert "n=19" in lines["cit"][1] and "n=" not in "".join(lines["cit"][2:] + lines["sdrrl"])
    assert any(note.startswith("n=: scored on fewer than half") for note in pivot_grid(target).notes)
