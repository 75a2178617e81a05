"""Ablation tables: what a variant is and is called, differences against arithmetic done here, what is never compared."""
from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from math import comb, sqrt
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import yaml

from xalign.analysis.pooled import compare_over
from xalign.analysis.significance import holm, paired
from xalign.analysis.systems import Scored
from xalign.config import ConfigError, XalignError
from xalign.data.examples import write_jsonl
from xalign.report.runs import load_runs
from xalign.studies.__main__ import main, make_study
from xalign.studies.base import Findings

ITEMS = 12
FULL = ["LL", "TL", "LT", "TT", "mt", "comp"]
OTHER = {"subsets": FULL, "self_distill": True, "code_switch": 0.15}


def make(root: Path, right: dict[str, set[int]] | set[int], english: set[int] | None = None, method: str = "sdrrl",
         langs: tuple[str, ...] = ("fin",), source: str = "eng", seed: int = 0, items: int = ITEMS, **config) -> Path:
    """A finished run: which of 12 items are right in each target language and in the source language (before: the first three)."""
    folder = root / f"{method}-{'_'.join(langs)}-s{seed}-{len(list(root.glob('*'))):08x}"
    rows, scores = [], {}

    def add(when: str, lang: str, chosen: set[int], task: str = "choice", metric: str = "accuracy_pmi") -> None:
        value = len(chosen) / items
        rows.append({"run": folder.name, "method": method, "lang": lang, "source": source, "backbone": "tiny", "seed": seed, "task": task,
                     "metric": metric, "value": value, "se": sqrt(value * (1 - value) / items), "n": items, "signature": "options:pmi",
                     "when": when, "reason": None})
        scores.setdefault((when, lang), []).append({"task": task, "metric": metric,
                                                    "examples": [[f"q{i}", f"q{i}", float(i in chosen)] for i in range(items)]})

    for lang in (*langs, source):
        add("before", lang, {0, 1, 2})
        own = english or {0} if lang == source else right if isinstance(right, set) else right[lang]
        add("after", lang, own)
        if lang != source:
            add("after", lang, own, f"sentences:{source}-{lang}", "accuracy_raw")
    for (when, lang), listed in scores.items():
        path = folder / "predictions" / when / lang / "per_example_scores.jsonl"
        path.parent.mkdir(parents=True)
        write_jsonl(path, listed)
    write_jsonl(folder / "rows.jsonl", rows)
    own = (OTHER if method == "sdrrl" else {}) | config
    (folder / "config.yaml").write_text(yaml.safe_dump(
        {"mode": "train", "seed": seed, "lang": list(langs), "source": source, "method": own,
         "dictionary": {"path": f"muse/{source}-{langs[0]}.txt" if method != "muit" else None},
         "choices": {"method": method, "backbone": "tiny", "task": "lab"}}, sort_keys=False))
    (folder / "run.json").write_text("{}")
    return folder


def findings(root: Path, **settings) -> Findings:
    return make_study("ablation", {"scores": ["choice/accuracy_pmi"], **settings}).findings(load_runs([root]))


def numbers(found: Findings) -> dict[tuple[str, str, str], dict[str, str]]:
    """(variant, role, language) → a line of ablation.csv."""
    return {(r["variant"], r["score"].split("/")[0], r["lang"]): r for r in csv.DictReader(found.files["ablation.csv"].splitlines())}


def labels(found: Findings) -> list[str]:
    return [row[0] for row in found.grids[0].rows]


def exact(gained: int, lost: int) -> float:
    """Two-sided p of the sign test on the items that changed: what the randomisation test is for right and wrong."""
    n, k = gained + lost, max(gained, lost)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k, n + 1)) / 2**n)


def test_variants_are_called_by_what_they_lack_and_differences_are_paired_exact_and_corrected(tmp_path):
    full = set(range(10))
    make(tmp_path, full)
    make(tmp_path, {0, 1}, subsets=["mt", "comp"])
    make(tmp_path, {0, 1, 2, 10}, self_distill=False)
    make(tmp_path, {*range(9), 11}, code_switch=0.0)
    make(tmp_path, {4, 5, 6, 7, 8, 9}, subsets=["LL", "TT", "mt", "comp"])
    found = findings(tmp_path)
    grid, lines = found.grids[0], numbers(found)
    right = {"full": full, "without code_switch": {*range(9), 11}, "without self_distill": {0, 1, 2, 10},
             "without TL and LT": {4, 5, 6, 7, 8, 9}, "only mt and comp": {0, 1}}
    assert labels(found) == ["untrained", *right, "n"]
    ps = {name: exact(len(own - full), len(full - own)) for name, own in right.items() if name != "full"}
    for (name, p), adjusted in zip(ps.items(), holm(list(ps.values())), strict=True):
        line = lines[name, "target", "fin"]
        assert float(line["difference"]) == pytest.approx((len(right[name]) - 10) / ITEMS) and line["against"] == "full"
        assert float(line["p"]) == pytest.approx(p) and float(line["p_holm"]) == pytest.approx(adjusted)
        got = paired([float(i in full) for i in range(ITEMS)], [float(i in right[name]) for i in range(ITEMS)])
        assert [float(line[k]) for k in ("ci_low", "ci_high")] == pytest.approx([got.ci_low, got.ci_high], abs=0.1)
    assert ps["only mt and comp"] == 2 / 2**8 and ps["without self_distill"] == pytest.approx(2 * 9 / 2**8)
    row = dict(zip(labels(found), grid.rows, strict=True))
    at = grid.columns.index("choice\naccuracy_pmi\nFinnish")
    assert row["full"][at].startswith(".833 ±") and row["full"][at + 1] == "–" and row["untrained"][at].startswith(".250")
    assert row["only mt and comp"][at + 1] == "-.667**" and row["without self_distill"][at + 1] == "-.500" and row["n"][at] == "12"
    # parts as ticks, as the papers' tables have them
    assert grid.columns[1:at] == ["LL", "TL", "LT", "TT", "self_distill", "code_switch"]  # mt and comp are in every variant
    assert row["without TL and LT"][1:at] == ["✓", "", "", "✓", "✓", "✓"] and row["without code_switch"][1:at] == ["✓"] * 5 + [""]
    assert {e for p in found.plots for e in [p.name]} == {"ablation"} and "without TL and LT: -.333" in found.plots[0].alt


def test_the_reference_and_the_names_can_be_chosen(tmp_path):
    for subsets in (["D"], ["D", "T"], ["D", "T", "mt"]):
        for direction in ("target", "source") if "mt" in subsets else ("target",):
            make(tmp_path, set(range(3 * len(subsets))), method="coit", subsets=subsets, direction=direction)
    assert labels(findings(tmp_path))[1:-1] == ["full", "without mt", "direction=source", "only D"]  # the first of the two with all parts
    names = {"only D": "[D]", "only T": "[T]", "without mt": "[D,T]", "full": "[D,T] + mt"}
    found = findings(tmp_path, full="method.subsets=[D] method.direction=target", by=["method.subsets", "method.direction"])
    assert labels(found)[1:-1] == ["only D", "with T", "with T and mt", "with T and mt direction=source"]
    found = findings(tmp_path, names=names, full="method.subsets=[D,T,mt] method.direction=target")
    assert labels(found)[1:-1] == ["[D,T] + mt", "[D]", "[D,T]", "direction=source"]
    assert numbers(found)["[D]", "target", "fin"]["against"] == "[D,T] + mt"
    assert any(note.startswith("no run is called only T (study.names)") for note in found.grids[0].notes)
    assert found.grids[0].columns[1:4] == ["T", "mt", "choice\naccuracy_pmi\nFinnish"]


def test_gains_over_another_method_by_source_language(tmp_path):
    """SDRRL Table 12: each source language has a baseline of its own; scores in English and in French are not compared."""
    right = {("sft", "eng"): {0, 1, 2}, ("sdrrl", "eng"): set(range(9)), ("sft", "fra"): {0, 1}, ("sdrrl", "fra"): {0, 1, 2, 3}}
    for (method, source), own in right.items():
        make(tmp_path, own, english=own, method=method, source=source)
    found = findings(tmp_path, against="sft", names={"sdrrl from English": "English", "sdrrl from French": "French"})
    lines = numbers(found)
    assert labels(found)[2:-1] == ["sft from English", "sft from French", "English", "French"]
    assert found.grids[0].dim == {0, 1, 2, 3, 6} and found.grids[0].columns[-1] == "- sft"  # references stand for themselves
    for name, gained in (("English", 6), ("French", 2)):
        for role, lang in (("target", "fin"), ("source", "fin")):
            assert float(lines[name, role, lang]["difference"]) == pytest.approx(gained / ITEMS)
            assert float(lines[name, role, lang]["p"]) == pytest.approx(exact(gained, 0))
            assert lines[name, role, lang]["against"] == f"sft from {name}"
        assert float(lines[name, "target", "fin"]["p_holm"]) == pytest.approx(holm([exact(6, 0), exact(2, 0)])[name == "French"])
    # against one full variant the source language's own scores are of different questions
    found = findings(tmp_path, full="method=sdrrl source=eng")
    french = {role: numbers(found)["sdrrl from French", role, "fin"] for role in ("target", "source")}
    assert float(french["target"]["difference"]) == pytest.approx(-5 / ITEMS)
    assert french["source"]["difference"] == "" and "another language" in french["source"]["reason"]
    translated = findings(tmp_path, full="method=sdrrl source=eng", scores=["sentences/accuracy_raw"])  # fra→fin is not eng→fin
    assert numbers(translated)["sdrrl from French", "target", "fin"]["difference"] == ""
    assert numbers(translated)["sft from English", "target", "fin"]["difference"] != ""
    assert any("was asked in another language" in note for note in found.grids[0].notes)


def test_means_over_seeds(tmp_path):
    full, lacks = ({*range(6)}, {*range(4, 12)}), ({0, 1}, {2, 3, 4})
    for seed in (0, 1):
        make(tmp_path, full[seed], seed=seed)
        make(tmp_path, lacks[seed], seed=seed, code_switch=0.0)
    found = findings(tmp_path, scores=["target/choice/accuracy_pmi"])
    line = numbers(found)["without code_switch", "target", "fin"]
    values = [len(x) / ITEMS for x in lacks]
    assert float(line["value"]) == pytest.approx(fmean(values)) and line["seeds"] == "0 1"
    assert float(line["se"]) == pytest.approx(stdev(values) / sqrt(2))
    got = paired(*([[float(i in own) for i in range(ITEMS)] for own in side] for side in (full, lacks)))
    assert float(line["p"]) == got.p_randomisation and float(line["difference"]) == pytest.approx(got.diff)
    assert any(note.startswith("± standard error over seeds") and "seeds 0, 1" in note for note in found.grids[0].notes)


LANGS = ("fin", "deu")


def test_means_over_languages_are_tested_on_the_items_of_all(tmp_path):
    """A model a language, and one for both; a text has the same name in both languages, so its answers are exchanged together."""
    rng = np.random.default_rng(0)
    right = {kind: {lang: {int(i) for i in np.flatnonzero(rng.random(6) < share)} for lang in LANGS}
             for kind, share in (("one", 0.9), ("many", 0.3))}
    for lang in LANGS:
        make(tmp_path, right["one"], method="muit", langs=(lang,), items=6)
    make(tmp_path, right["many"], method="muit", langs=LANGS, items=6)
    make(tmp_path, {"jpn": {0}}, method="muit", langs=("jpn",), items=6)  # which the other has not
    found = findings(tmp_path, full="lang=[fin]", names={"one model for Finnish and German": "one for both"})
    line = numbers(found)["one for both", "target", "mean"]
    changes = [sum((i in right["many"][x]) - (i in right["one"][x]) for x in LANGS) for i in range(6)]
    observed = abs(sum(changes))
    p = fmean(abs(sum(s * c for s, c in zip(signs, changes, strict=True))) >= observed for signs in itertools.product((1, -1), repeat=6))
    assert observed and float(line["p"]) == pytest.approx(p) and float(line["difference"]) == pytest.approx(sum(changes) / 12)
    assert float(line["value"]) == pytest.approx(fmean(len(right["many"][x]) / 6 for x in LANGS)) and line["n"] == "12"
    for lang in LANGS:
        one, many = right["one"][lang], right["many"][lang]
        assert float(numbers(found)["one for both", "target", lang]["p"]) == pytest.approx(exact(len(many - one), len(one - many)))
    assert labels(found)[1:-1] == ["one model a language", "one for both"]
    assert any("which all variants have; without jpn" in note for note in found.grids[0].notes)


def test_languages_in_the_names_of_files_make_no_variants(tmp_path):
    """muse/eng-fin.txt and muse/eng-deu.txt; and one model a language stands first, whatever the folders are called."""
    for lang in LANGS:
        make(tmp_path / "files", {0, 1}, langs=(lang,))
        make(tmp_path / "files", {0}, langs=(lang,), code_switch=0.0)
    found = findings(tmp_path / "files")
    assert labels(found)[1:-1] == ["full", "without code_switch"] and ("full", "target", "mean") in numbers(found)
    make(tmp_path / "models", {0}, method="muit")
    make(tmp_path / "models", {0}, method="muit", langs=("deu", "fin"))
    assert labels(findings(tmp_path / "models"))[1:-1] == ["one model a language", "one model for German and Finnish"]


def scored(values) -> dict[int, Scored]:
    """One run of seed 0 with these scores or statistics."""
    examples = {f"q{i}": [None, f"q{i}", v] if isinstance(v, list) else [v, f"q{i}"] for i, v in enumerate(values)}
    return {0: Scored(0, True, examples, None)}


def test_languages_count_the_same_whatever_their_items():
    few, many = ([0.0, 0.0], [1.0, 1.0]), ([0.0] * 8, [1.0] + [0.0] * 7)
    whole, single = compare_over("accuracy", [tuple(map(scored, few)), tuple(map(scored, many))])
    assert [o.result.diff for o in single] == [1, 1 / 8] and whole.result.diff == pytest.approx((1 + 1 / 8) / 2)
    # q0 moved in both languages and is exchanged once, q1 in one: four patterns, of which ++ and -- are as far
    assert whole.result.p_randomisation == 0.5
    # summed statistics: right and asked tokens, a corpus score a language
    few, many = ([[1, 4], [1, 4]], [[3, 4], [4, 4]]), ([[5, 10]], [[7, 10]])
    whole, _ = compare_over("token_accuracy", [tuple(map(scored, few)), tuple(map(scored, many))])
    assert (whole.result.before, whole.result.after) == (pytest.approx((2 / 8 + 5 / 10) / 2), pytest.approx((7 / 8 + 7 / 10) / 2))
    # q0: +2/8 and +2/10, together; q1: +3/8. Patterns ++ and -- reach the sum
    assert whole.result.p_randomisation == 0.5


def test_main_scores_are_found_and_others_can_be_named(tmp_path):
    make(tmp_path, {0, 1, 2})
    make(tmp_path, {0}, code_switch=0.0)
    both, other = ["target/choice/accuracy_pmi", "source/choice/accuracy_pmi"], "target/sentences:src-tgt/accuracy_raw"
    for asked, there in (([], [both[0], other, both[1]]), (["choice/accuracy_pmi"], both), (["sentences/accuracy_raw"], [other])):
        rows = csv.DictReader(findings(tmp_path, scores=asked).files["ablation.csv"].splitlines())
        assert list(dict.fromkeys(r["score"] for r in rows)) == there


def test_mistakes_are_one_line(tmp_path, capsys):
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    make(one, {0}), make(one, {1}, seed=1), make(one, {2}, langs=("deu",))
    make(two, {0}), make(two, {1}, code_switch=0.0), make(two, {2}, code_switch=0.0, self_distill=False, langs=("fin",))
    make(three, {0}), make(three, {1}, code_switch=0.0, langs=("deu",))
    again = tmp_path / "again"
    make(again, {0}), make(again, {0}), make(again, {1}, code_switch=0.0)
    for where, arguments, says in [
            (one, [], "3 runs of one configuration, nothing differs but seed and language"),
            (two, ["full=method.code_switch=0.7"], "cannot be read"),
            (two, ["full='method.code_switch=0.7'"], "study.full=method.code_switch=0.7: no variant has these settings; there are method."),
            (two, ["full='method.code_switch=['"], "study.full=method.code_switch=[: cannot be read"),
            (two, ["scores=[choice/accuracy]"], "did you mean"), (two, ["scores=[accuracy]"], "'accuracy' is no score; write task/metric"),
            (two, ["scores=[both/choice/accuracy_pmi]"], "is no score"), (two, ["by=[seed]"], "study.by=seed"),
            (two, ["by=[method.subset]"], "nearest: method.subsets"), (two, ["by=[method.code_switch]"], "differ in method.self_distill"),
            (two, ["against=sft"], "no method of these variants"), (two, ["agianst=sft"], "did you mean 'against'"),
            (three, [], "the variants have no target language in common"), (again, [], "are the same variant in fin with seed 0")]:
        assert main(["ablation", str(where), *arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        err = capsys.readouterr().err
        assert says in err and err.startswith("xalign: ") and err.count("\n") == 1, err
    with pytest.raises(XalignError, match="has trained a model"):
        make_study("ablation").findings([])
    with pytest.raises(ConfigError, match=r"study.scores: 'accuracy'"):
        make_study("ablation", {"scores": ["accuracy"]})


def test_what_cannot_be_compared_is_absent_with_its_reason(tmp_path):
    make(tmp_path, {0, 1})
    folder = make(tmp_path, {0}, code_switch=0.0)
    for path in folder.rglob("per_example_scores.jsonl"):
        path.unlink()
    make(tmp_path, {0, 1, 2}, self_distill=False)
    few = make(tmp_path, {0, 1}, subsets=["TT", "mt"])  # of its answers q0 has no score
    path = few / "predictions" / "after" / "fin" / "per_example_scores.jsonl"
    path.write_text(path.read_text().replace('["q0", "q0", 1.0]', '["q0", "q0", null]'))
    lacks = make(tmp_path, {0}, subsets=["mt"])
    rows = [json.loads(line) for line in (lacks / "rows.jsonl").read_text().splitlines()]
    write_jsonl(lacks / "rows.jsonl", [r | ({"value": None, "reason": "no judge"} if r["when"] == "after" else {}) for r in rows])
    found = findings(tmp_path, scores=["target/choice/accuracy_pmi"])
    row = {r[0]: r for r in found.grids[0].rows}
    assert row["without code_switch"][-1] == "–" and row["only mt"][-2:] == ["–", "–"] and row["without self_distill"][-1] == "+.083"
    text = " ".join(found.grids[0].notes)
    assert row["only TT and mt"][-1] == ".000" and "on those which both have" in text  # 1 of 11 right, both
    assert "there are no per-example scores" in text and "only mt has no target/choice/accuracy_pmi: no judge" in text
    assert "only mt" not in found.plots[0].alt


def test_the_command_needs_no_torch(tmp_path):
    make(tmp_path / "runs", {0, 1, 2})
    make(tmp_path / "runs", {0}, code_switch=0.0)
    code = ("import sys; from xalign.__main__ import main; code = main(sys.argv[1:]);"
            "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, "study", "ablation", "runs", "--out", "out"], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0 and "without code_switch" in done.stdout, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"tables.md", "ablation.csv", "ablation.png", "ablation.pdf"}
