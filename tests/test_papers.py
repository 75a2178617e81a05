"""The papers' numbers: true to the papers, their arithmetic and their errata; ours beside them, and when the two can be compared."""
from __future__ import annotations

import csv
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from xalign.compose import package_folder
from xalign.languages import LANGUAGES
from xalign.report.against import compose, fits
from xalign.report.beside import beside, corrected, verdict
from xalign.report.facts import AVERAGE, _file, blocks, commands, facts, names
from xalign.report.papers import finished, main
from xalign.rows import percent

PUBLISHED = Path(__file__).parents[2] / "shared" / "design" / "paper_results.json"
EXPERIMENTS = list(_file()["experiments"])
TABLES = [(name, block) for name in EXPERIMENTS for block in blocks(name)]
SCORES = {"sft": 0.40, "t_sft": 0.42, "cit": 0.45, "xcot": 0.44, "sdrrl": 0.50}


def exactly(values, n: int | None = None) -> Fraction:
    """The mean of published decimals, without binary fractions in between."""
    values = [Fraction(repr(v)) for v in values]
    return sum(values, Fraction()) / (n or len(values))


def close(stated: float, true: Fraction) -> bool:
    """Equal when rounded to two decimals, halves either way."""
    return abs(Fraction(repr(stated)) - true) <= Fraction(1, 200)


def rounded(value: Fraction, digits: int = 2) -> float:
    """Half up, as by hand."""
    return int(value * 10**digits + Fraction(1, 2)) / 10**digits


def block_of(experiment: str, name: str):
    return next(b for b in blocks(experiment) if b.name == name)


def test_every_paper_has_its_experiments_and_every_experiment_a_file():
    tables = ["mlipd_table1", *(f"sdrrl_table{n}" for n in range(2, 14)), "xllm_table2", "xllm_table4", "xllm_table6"]
    assert set(EXPERIMENTS) == {*tables, "sdrrl_figure2", "sdrrl_figure3", *(f"xllm_figure{n}" for n in range(3, 8))}
    for name in names():
        known = facts(name)
        assert (package_folder("experiments") / f"{known['experiment']}.yaml").is_file(), name
        assert commands(known["experiment"])[0].startswith("python -m xalign"), name
        assert all(isinstance(text, str) for text in (*known["says"], *known["unsaid"])), name
        for block in blocks(name):
            assert all(lang in LANGUAGES for parts in block.parts.values() for p in parts for lang in p.langs), (name, block.name)
    assert "sdrrl_table3_lab" in names() and facts("sdrrl_table3_lab")["experiment"] == "sdrrl_table2_lab"


@pytest.mark.parametrize(("name", "block"), TABLES, ids=lambda v: v if isinstance(v, str) else v.name)
def test_averages_are_those_of_the_columns_or_an_erratum_says_so(name, block):
    if AVERAGE not in block.columns[1:]:
        return
    for row, values in block.rows.items():
        columns = [corrected(facts(name), block.name, row, c) or v for c, v in values.items() if c != AVERAGE]
        fixed = corrected(facts(name), block.name, row, AVERAGE)
        assert close(values[AVERAGE] if fixed is None else fixed, exactly(columns)), (row, float(exactly(columns)))
        assert fixed is None or not close(values[AVERAGE], exactly(columns)), f"{row}: the erratum changes nothing"


def published_mean(experiment: str, name: str, row: str, langs) -> Fraction:
    return exactly([block_of(experiment, name).rows[row][lang] for lang in langs])


def test_table_6_and_7_and_12_follow_from_the_tables_they_average():
    def stated(experiment, name, row):
        fixed = corrected(facts(experiment), name, row, AVERAGE)
        return block_of(experiment, name).rows[row][AVERAGE] if fixed is None else fixed

    of = _file()["experiments"]["sdrrl_table6"]["blocks"]["ablation"]["parts"]
    for column, value in block_of("sdrrl_table6", "ablation").rows["full"].items():
        tables = [block_of(*part.split(".")) for part in of[column]]
        true = sum((exactly([b.rows["sdrrl"][lang] for lang in b.singles]) for b in tables), Fraction()) / len(tables)
        assert close(value, true), (column, float(true))
    for block in blocks("sdrrl_table7"):
        of = _file()["experiments"]["sdrrl_table7"]["blocks"][block.name]["parts"]
        for row, values in block.rows.items():
            for column, (part,) in of.items():
                assert (corrected(facts("sdrrl_table7"), block.name, row, column) or values[column]) == stated(*part.split("."), row)
    node = _file()["experiments"]["sdrrl_table12"]["blocks"]["gain"]
    for column, parts in node["parts"].items():
        gains = []
        for part in parts:
            experiment, name = part.split(".")
            there = [lang for lang in node["langs"] if lang in block_of(experiment, name).columns]
            gains.append(published_mean(experiment, name, "sdrrl", there) - published_mean(experiment, name, "sft", there))
        assert rounded(sum(gains, Fraction()) / len(gains)) == block_of("sdrrl_table12", "gain").rows["english"][column]


def test_errata_in_words_are_true():
    """What the sentences under `errata` and `says` claim, from the tables."""
    xquad, mlqa = block_of("xllm_table2", "xquad"), block_of("xllm_table2", "mlqa")
    gains = [exactly([b.rows["coit"][c] for c in b.columns]) - exactly([b.rows["sft"][c] for c in b.columns]) for b in (xquad, mlqa)]
    assert [rounded(g * 100) for g in gains] == [27.83, 35.75]
    cost = facts("mlipd_table1")["cost"]
    hours = {m: v["hours"] * v["gpus"] for m, v in cost["methods"].items()}
    assert hours == {"ml_dft": 800, "rl_ia": 2400, "pl_bl": 480, "ml_ipd": 200}
    assert {m: rounded(1 - Fraction(hours["ml_ipd"], hours[m]), 3) for m in cost["claimed"]} == cost["implied"] != cost["claimed"]
    bleu = {row: v[AVERAGE] for row, v in block_of("sdrrl_table3", "to_english_bleu").rows.items()}
    assert rounded(exactly([bleu["sft"], -bleu["cit"]], 1)) == 1.97 and rounded(exactly([bleu["sft"], -bleu["t_sft"]], 1)) == 1.36
    r1, rl = (block_of("sdrrl_table4", f"target_rouge{k}").rows for k in "1L")
    assert [rounded(exactly([r["sdrrl"][AVERAGE], -r["t_sft"][AVERAGE]], 1)) for r in (r1, rl)] == [0.55, 0.31]
    khmer = block_of("sdrrl_table10", "to_english_bleu")
    for row, values in khmer.rows.items():  # the stated average is that of two columns
        assert abs(exactly([values["ind"], values["khm"]]) - Fraction(repr(values[AVERAGE]))) <= Fraction(1, 200), row
    for name, rows in facts("xllm_table4")["allocation"].items():
        budget = 300_000 if "300k" in name else 1_200_000
        assert abs(sum(rows) - budget) <= len(rows)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the papers' numbers are not beside the checkout")
def test_every_number_is_the_published_one():
    listed = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    ours = {"SFT": "sft", "T-SFT": "t_sft", "CIT": "cit", "XCOT": "xcot", "COT": "xcot", "SDRRL": "sdrrl"}
    seen = 0
    for table in listed["sdrrl"]:
        tables = blocks(f"sdrrl_table{table['table']}")
        assert len(tables) == len(table["data"])
        for block, rows in zip(tables, table["data"].values(), strict=True):
            columns = [{"THM": "khm"}.get(c, c.lower().rstrip(".")) for c in table["columns"]]
            if table["table"] in (2, 3, 4, 5, 8, 9, 10, 11):
                assert [c if c != AVERAGE else "avg" for c in block.columns] == columns
                assert list(block.rows) == [ours[r] for r in rows]
            assert [list(v.values()) for v in block.rows.values()] == [list(v.values()) for v in rows.values()]
            seen += sum(len(v) for v in rows.values())
    assert seen > 900
    mlipd, xllm = listed["mlipd"], listed["xllm"]
    assert block_of("mlipd_table1", "accuracy").rows == {k: {AVERAGE: mlipd["table1"][n]} for k, n in (
        ("ml_dft", "ML-DFT"), ("rl_ia", "RL-IA"), ("pl_bl", "PL-BL"), ("ml_ipd", "ML-IPD"))}
    assert list(block_of("mlipd_table1", "gain").rows["ml_ipd"].values()) == list(mlipd["gain_over_MLDFT"].values())
    assert {n: list(v.values()) for n, v in facts("mlipd_table1")["cost"]["methods"].items()} == {
        n.lower().replace("-", "_"): v for n, v in mlipd["hours_x_gpus"].items()}
    for name, key in (("xllm_table2", "table2_chatgpt_acc"), ("xllm_table6", "table6_exact_match")):
        labels = {"sft": "Alpaca-7B", "chinese_alpaca": "Chinese-Alpaca-7B", "bayling": "Bayling-7B", "coit": "x-LLaMA-7B"}
        for row, label in labels.items():
            assert [v for b in ("xquad", "mlqa") for v in block_of(name, b).rows[row].values()] == xllm[key][label]
        english = [block_of(name, f"{b}_english").rows["sft"]["eng"] for b in ("xquad", "mlqa")]
        assert english == list(xllm[key]["en_reference_Alpaca"].values())
    flores = block_of("xllm_table4", "flores").rows
    assert [list(v.values()) for v in flores.values()] == [[r["COMET"], r["BLEURT"], r["BLEU"]] for r in xllm["table4_allocation"]]
    assert list(facts("xllm_table4")["allocation"].values()) == [r["x"] for r in xllm["table4_allocation"]]
    assert [list(v.values()) for v in facts("xllm_table4")["parallel_thousands"].values()] == [
        list(v.values()) for k, v in xllm["table1_parallel_k"].items()]
    assert [v["zho"] for v in block_of("xllm_figure6", "mixes").rows.values()] == [r["acc"] for r in xllm["fig6_ablation_zh_xquad"]]
    duel = facts("xllm_figure4")["duel"]
    assert {k: duel[k] for k in ("win", "loss", "tie")} == xllm["mieval_en_mLLaMA_vs_Alpaca"]


def make_run(root: Path, method: str, lang: str, score: float, experiment: str = "sdrrl_table2", seed: int = 0, task: str = "belebele",
             metric: str = "accuracy_raw", n: int = 900, signature: str = "options:raw|shots:0", **changed) -> Path:
    """A finished run with the configuration that an experiment's file asks for, and what is `changed` in it."""
    flat = {**compose(experiment, (("method", json.dumps(method)),)), "lang": [lang], "seed": seed, **{k.replace("__", "."): v
                                                                                                     for k, v in changed.items()}}
    config: dict = {}
    for key, value in flat.items():
        *path, last = key.split(".") if "/" not in key else [key]
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    folder = root / f"{method}-{lang}-s{seed}-{abs(hash(str(sorted(changed.items()))))}"
    folder.mkdir(parents=True)
    shared = {"run": folder.name, "method": method, "source": "eng", "backbone": flat["choices.backbone"], "seed": seed, "task": task,
              "metric": metric, "se": 0.016, "n": n, "signature": signature}
    rows = [{**shared, "lang": code, "when": when, "value": value} for code, gain in ((lang, 0.0), ("eng", 0.2))
            for when, value in (("before", 0.3), ("after", score + gain))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def report(capsys, *argv: str) -> str:
    assert main([*argv]) == 0
    return capsys.readouterr().out


def test_ours_stand_beside_the_papers_and_can_be_compared_where_everything_is_the_same(tmp_path, capsys):
    for method, score in SCORES.items():
        for lang in ("fin", "jpn"):
            for seed in (0, 1):
                make_run(tmp_path, method, lang, score + 0.02 * seed, seed=seed)
    tables = beside("sdrrl_table2", finished([str(tmp_path)]))
    ours = tables[0].ours["sdrrl", "fin"]
    assert (round(ours.value, 6), round(ours.se, 6), ours.n, ours.seeds) == (51.0, 1.0, 900, (0, 1))  # sd .0141 over sqrt(2)
    assert tables[1].ours["sdrrl", "fin"].value == pytest.approx(71.0)  # English, of the run that was trained for Finnish
    assert verdict(tables[0], "sdrrl", facts("sdrrl_table2")) == "yes"
    out = report(capsys, "experiment=sdrrl_table2", str(tmp_path), "--csv", str(tmp_path / "a.csv"), "--markdown", str(tmp_path / "a.md"),
                 "--latex", str(tmp_path / "a.tex"))
    assert "Comparable: yes" in out and max(map(len, out.splitlines())) <= 120
    assert "missing: sft, t_sft, cit, xcot, sdrrl in ces dan ukr bul hun nob ind kor por slv vie pol" in " ".join(out.split())
    assert "python -m xalign -m experiment=sdrrl_table2" in out
    # paper: means of the Finnish and the Japanese column; sft 40.895, t_sft 44.335, cit 45.62, xcot 45.01, sdrrl 47.685: the same order
    assert "Kendall's tau +1.000" in out and "4 of 4 gains have the paper's sign" in out
    with open(tmp_path / "a.csv", encoding="utf-8") as f:
        cell = next(r for r in csv.DictReader(f) if (r["block"], r["row"], r["column"]) == ("target", "sdrrl", "fin"))
    assert (cell["paper"], cell["seeds"], cell["within_2_se"], cell["comparable"]) == ("49.56", "0 1", "True", "yes")
    assert float(cell["difference"]) == pytest.approx(51 - 49.56)
    assert r"| 49.56 | 51.0 ±1.0 | +1.4\~ |" in (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "tabular" in (tmp_path / "a.tex").read_text(encoding="utf-8")


def test_what_is_not_the_same_is_named(tmp_path, capsys):
    make_run(tmp_path, "sft", "fin", 0.4, n=100)
    make_run(tmp_path, "sdrrl", "fin", 0.5, choices__backbone="smollm2", backbone__name=None, method__code_switch=0.3, trainer__epochs=1,
             trainer__micro_tokens=17)
    known, tables = facts("sdrrl_table2"), beside("sdrrl_table2", finished([str(tmp_path)]))
    assert verdict(tables[0], "sft", known) == "no: test 100 items instead of belebele, 900 items"
    assert verdict(tables[0], "sdrrl", known) == ("no: backbone smollm2 instead of Llama-2-7B; trainer.epochs 1 instead of 4; "
                                                  "method.code_switch 0.3 instead of 0.15")
    out = report(capsys, "experiment=sdrrl_table2", str(tmp_path))
    assert "Comparable: no" in out and "not as experiments/sdrrl_table2.yaml asks" in out


def test_a_bleu_of_another_tokenizer_is_another_metric(tmp_path):
    for tok in ("13a", "flores200:abcd"):
        folder = tmp_path / tok[:3]
        make_run(folder, "sft", "fin", 30.0, "sdrrl_table3", task="flores:fin-eng", metric="bleu", n=1012,
                 signature=f"bleu|tok:{tok}|smooth:exp")
        table = beside("sdrrl_table3", finished([str(folder)]))[0]
        assert table.ours["sft", "fin"].value == 30.0  # 0 to 100 already
        reasons = verdict(table, "sft", facts("sdrrl_table3"))
        assert ("bleu signature" in reasons) == (tok == "13a"), reasons


def test_of_several_configurations_the_one_nearest_to_the_experiment_is_shown(tmp_path, capsys):
    make_run(tmp_path, "sdrrl", "fin", 0.2, method__code_switch=0.5)
    make_run(tmp_path, "sdrrl", "fin", 0.5)
    assert beside("sdrrl_table2", finished([str(tmp_path)]))[0].ours["sdrrl", "fin"].value == 50.0
    assert "other configurations are left out" in " ".join(report(capsys, "experiment=sdrrl_table2", str(tmp_path)).split())


def test_a_run_from_another_source_language_stands_in_no_row_that_is_from_english(tmp_path):
    folder = make_run(tmp_path, "sdrrl", "fin", 0.2, source="fra")
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace('"eng"', '"fra"'), encoding="utf-8")
    run, = finished([str(tmp_path)])
    assert not fits(run, {"method": "sdrrl"}) and fits(run, {"method": "sdrrl", "source": "fra"})
    make_run(tmp_path, "sdrrl", "fin", 0.5)
    assert beside("sdrrl_table2", finished([str(tmp_path)]))[0].ours["sdrrl", "fin"].value == 50.0


def test_rows_that_are_settings_are_found_by_their_settings(tmp_path):
    for name, gain in (("full", 0.0), ("no_cross", -0.1)):
        spec = facts("sdrrl_table6")["systems"][name]
        keys = {k.replace(".", "__"): v for k, v in spec.items() if k != "method"}
        make_run(tmp_path, "sdrrl", "fin", 0.5 + gain, "sdrrl_table6", **keys)
    table = beside("sdrrl_table6", finished([str(tmp_path)]))[0]
    assert {k: o.value for k, o in table.ours.items()} == pytest.approx({("full", "nlu_target"): 50.0, ("no_cross", "nlu_target"): 40.0,
                                                                         ("full", "nlu_english"): 70.0, ("no_cross", "nlu_english"): 60.0})
    assert len(table.ours["full", "nlu_target"].lacking) == 13  # of the paper's fourteen languages


def test_the_experiments_make_what_the_tables_ask_for():
    for name in EXPERIMENTS:
        file = (package_folder("experiments") / f"{name}.yaml").read_text(encoding="utf-8")
        for task in {p.paper.benchmark for b in blocks(name) for parts in b.parts.values() for p in parts}:
            assert task in file.partition("override /task:")[2].splitlines()[0], (name, task)
        specs = [spec for spec in facts(name)["systems"].values() if spec]
        if specs:
            composed = compose(name, tuple(sorted((k, json.dumps(v)) for k, v in specs[-1].items())))
            assert all(k in composed or k in ("method", "source") for spec in specs for k in spec), name
            assert {k: composed[k] for k in specs[-1] if "." in k} == {k: v for k, v in specs[-1].items() if "." in k}


def test_the_laboratory_shows_no_differences_but_orders(tmp_path, capsys):
    for method, score in SCORES.items():
        make_run(tmp_path, method, "fin", score, "sdrrl_table2_lab", task="choice", metric="accuracy_pmi", n=405)
    out = report(capsys, "experiment=sdrrl_table2_lab", str(tmp_path))
    assert "the scales have nothing in common" in " ".join(out.split()) and "Comparable: no" in out and "Kendall's tau" in out
    assert not any(line.split()[:2] == ["paper", "ours"] and "diff" in line for line in out.splitlines())
    with pytest.raises(StopIteration):  # nothing but the paper's setting differs: the runs are as the laboratory's file asks
        next(line for line in out.splitlines() if "not as experiments/" in line)
    assert "experiment=sdrrl_table2_lab" in report(capsys, "experiment=sdrrl_table2", str(tmp_path))


def test_without_runs_the_papers_numbers_stand_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in names():
        out = report(capsys, f"experiment={name}")
        assert facts(name)["paper"]["url"] in out and commands(facts(name)["experiment"])[0].split("'")[0].strip() in " ".join(out.split())
        assert max(map(len, out.splitlines())) <= 120, name
    assert "no numbers published" in report(capsys, "experiment=sdrrl_figure3")
    assert "28.49†" in report(capsys, "experiment=sdrrl_table10")


def test_an_unknown_experiment_is_one_line(capsys, tmp_path):
    assert main(["experiment=sdrrl_tabel2"]) == 2
    assert "did you mean 'sdrrl_table2'?" in capsys.readouterr().err
    assert main(["experiment=sdrrl_table2", str(tmp_path / "nothing")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_metrics_have_the_scale_that_papers_assume():
    assert [percent(m) for m in ("accuracy_raw", "bleu", "rougeL", "f1_best", "comet", "chrf")] == [False, True, True, False, False, True]


def test_no_torch():
    code = ("import sys\nfrom xalign.report.papers import main\nassert main(['experiment=sdrrl_table2']) == 0\n"
            "heavy = {'torch', 'transformers', 'matplotlib', 'pandas', 'datasets'} & set(sys.modules)\nassert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
