"""Systems, pairing and the printed comparison, on run folders written by the test; corpus values against sacrebleu's."""
from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from xalign.analysis.corpus import rows_value
from xalign.analysis.significance import paired
from xalign.analysis.systems import find_runs, load_systems
from xalign.compare import compare_systems, details, language_tests, main, win_grid
from xalign.config import XalignError
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.metrics.statistics import value_of


@pytest.mark.parametrize(("metric", "k"), [("bleu", 10), ("bleu4", 10), ("chrf", 18), ("chrf++", 24), ("seqeval_f1", 3),
                                           ("seqeval_precision", 2), ("token_accuracy", 2)])
def test_many_resamples_at_once_have_the_metrics_own_values(metric, k):
    """Sums with zeros in every place: no match, no n-gram of an order, an empty output, an empty reference."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 40, (400, k)) * (rng.random((400, k)) > rng.random((400, 1)) * 0.7)
    rows[0] = 0
    if metric.startswith("bleu"):  # as many unigrams as words; what matches is at most what there is
        rows[:, 0] = rows[:, 6]
        rows[:, 2:6] = np.minimum(rows[:, 2:6], rows[:, 6:10])
    elif metric == "seqeval_f1":
        rows[:, 0] = np.minimum(rows[:, 0], rows[:, 1:].min(1))
    elif metric.startswith("chrf"):
        rows[:, 2::3] = np.minimum(rows[:, 2::3], np.minimum(rows[:, ::3], rows[:, 1::3]))
    mine = rows_value(metric)(rows.astype(float))
    theirs = [value_of(metric, row) for row in rows.tolist()]
    assert mine == pytest.approx(theirs, abs=1e-9)
    assert len(np.unique(mine)) > 50 and mine[0] == 0
    assert float(rows_value(metric)(rows[7].astype(float))) == pytest.approx(theirs[7], abs=1e-9)


def results(rng, n: int, right: float, cluster: int = 1) -> list[list]:
    return [[f"q{i}", f"c{i // cluster}", float(rng.random() < right)] for i in range(n)]


def write_run(folder: Path, scores: dict, method: str = "sdrrl", seed: int = 0, langs: tuple[str, ...] = ("fin",),
              signatures: dict | None = None, **config) -> Path:
    """A run's files; `scores`: when → language → (task, metric) → rows of per-example scores."""
    rows, trained = [], "after" in scores
    for when, by_lang in scores.items():
        for lang, found in by_lang.items():
            (folder / "predictions" / when / lang).mkdir(parents=True, exist_ok=True)
            write_jsonl(folder / "predictions" / when / lang / "per_example_scores.jsonl",
                        [{"task": t, "metric": m, "examples": examples} for (t, m), examples in found.items()])
            for (task, metric), examples in found.items():
                value = (value_of(metric, np.sum([e[3] for e in examples], 0)) if len(examples[0]) > 3
                         else float(np.mean([e[2] for e in examples])))
                rows.append({"run": folder.name, "method": method, "lang": lang, "source": "eng", "backbone": "tiny", "task": task,
                             "metric": metric, "value": value, "n": len(examples), "seed": seed, "when": when,
                             "signature": (signatures or {}).get(metric, metric)})
    write_jsonl(folder / "rows.jsonl", rows)
    whole = {"mode": "train" if trained else "evaluate", "seed": seed, "lang": list(langs), "source": "eng", "runs": str(folder.parent),
             "choices": {"method": method, "backbone": "tiny", "task": "belebele"}, **config}
    (folder / "config.yaml").write_text(json.dumps(whole))  # JSON is YAML
    (folder / "run.json").write_text("{}")
    return folder


ACC = ("belebele", "accuracy_raw")


def run_of(folder: Path, right: float, n: int = 60, lang: str = "fin", before: float = 0.3, **more) -> Path:
    rng = np.random.default_rng([len(folder.name), more.get("seed", 0), int(1000 * right), ord(lang[0])])
    scores = {"before": {lang: {ACC: results(np.random.default_rng(1), n, before)}}, "after": {lang: {ACC: results(rng, n, right)}}}
    return write_run(folder, scores, langs=(lang,), **more)


def lines_of(*folders: Path | str, **how) -> tuple[list, list]:
    systems = load_systems(find_runs([str(f) for f in folders]))
    baseline = how.pop("baseline", None)
    return systems, compare_systems(systems, baseline, **how)


def values(folder: Path, when: str = "after", lang: str = "fin") -> list[float]:
    first = next(read_jsonl(folder / "predictions" / when / lang / "per_example_scores.jsonl"))
    return [e[2] for e in sorted(first["examples"])]


def clusters(folder: Path) -> list[str]:
    first = next(read_jsonl(folder / "predictions" / "after" / "fin" / "per_example_scores.jsonl"))
    return [e[1] for e in sorted(first["examples"])]


def test_one_run_is_compared_with_its_untrained_model(tmp_path):
    a = run_of(tmp_path / "a", 0.6)
    systems, (line,) = lines_of(a)
    assert [s.label for s in systems] == ["untrained", "sdrrl"]
    assert line.test.result == paired(values(a, "before"), values(a), clusters(a))
    assert line.sign == 1 and line.adjusted == line.test.result.p_randomisation < 0.05


def test_runs_of_one_configuration_are_one_system_whatever_their_seed(tmp_path):
    runs = [run_of(tmp_path / f"{m}{s}", right, method=m, seed=s, trainer={"lr": lr})
            for m, right, lr in (("sft", 0.4, 1), ("sdrrl", 0.6, 1)) for s in (0, 1, 2)]
    other = run_of(tmp_path / "lr", 0.6, method="sft", trainer={"lr": 2})
    systems, lines = lines_of(tmp_path / "s*", other)
    assert [(s.label, len(s.models)) for s in systems] == [("sdrrl", 3), ("sft lr=1", 3), ("sft lr=2", 1)]
    got = lines[0].test.result
    assert got == paired([values(r) for r in runs[3:]], [values(r) for r in runs[:3]], clusters(runs[0])) and got.seeds == 3
    assert lines[1].test.result.seeds == 1 and "seed 1, 2 has no partner" in lines[1].test.note
    # the same configuration and seed in another folder is another system, not a second sample
    again = run_of(tmp_path / "again", 0.7, method="sft", trainer={"lr": 1})
    systems, _ = lines_of(runs[0], again)
    assert len({s.label for s in systems}) == 2


def test_an_evaluated_model_stands_beside_every_seed_and_other_seeds_are_paired_in_order(tmp_path):
    plain = write_run(tmp_path / "plain", {"before": {"fin": {ACC: results(np.random.default_rng(3), 60, 0.4)}}}, method="none",
                      backbone={"name": "/models/big"})
    runs = [run_of(tmp_path / f"t{s}", 0.6, seed=s) for s in (4, 5)]
    systems, (line,) = lines_of(plain, *runs)
    assert [s.label for s in systems] == ["big", "sdrrl"] and not line.test.note
    base = values(plain, "before")
    assert line.test.result == paired([base, base], [values(r) for r in runs], clusters(runs[0]))
    other = run_of(tmp_path / "other", 0.5, method="sft", seed=7)
    _, (line,) = lines_of(other, *runs)
    assert line.test.result.seeds == 1 and line.test.note == "no seed in common: seed 7 is compared with seed 4"


def test_only_common_items_are_compared_and_counted(tmp_path):
    a, b = run_of(tmp_path / "a", 0.6, n=60, method="sft"), run_of(tmp_path / "b", 0.4, n=45)
    systems, (line,) = lines_of(a, b)
    common = sorted(f"q{i}" for i in range(45))
    everything = dict(zip(sorted(f"q{i}" for i in range(60)), values(a), strict=True))
    assert line.test.result.before == pytest.approx(np.mean([everything[i] for i in common]))
    assert (line.test.result.n, line.test.total) == (45, 60)
    assert details(systems, [line]).rows[1][1] == "45 of 60"


def corpus(rng, n: int, right: float) -> list[list]:
    length = rng.integers(6, 20, n)
    match = [rng.binomial(np.maximum(length - k, 0), right) for k in range(4)]
    stats = np.stack([length, length, *match, *(np.maximum(length - k, 0) for k in range(4))], 1)
    return [[f"s{i}", f"s{i}", 1.0, [int(x) for x in row]] for i, row in enumerate(stats)]


def test_corpus_metrics_are_tested_on_their_statistics_and_only_under_one_recipe(tmp_path):
    rng = np.random.default_rng(5)
    a, b = corpus(rng, 80, 0.4), corpus(rng, 80, 0.5)
    key = ("flores:eng-fin", "bleu")
    runs = [write_run(tmp_path / m, {"after": {"fin": {key: examples}}}, method=m) for m, examples in (("sft", a), ("sdrrl", b))]
    _, (line,) = lines_of(*runs)
    got = line.test.result
    assert got.before == pytest.approx(value_of("bleu", np.sum([e[3] for e in a], 0))) and got.before != 1.0
    assert got.after > got.before and got.p_randomisation < 0.01 and got.resamples == 10_000 and not line.test.note
    write_run(tmp_path / "sdrrl", {"after": {"fin": {key: b}}}, signatures={"bleu": "bleu|tok:flores200"})
    with pytest.raises(XalignError, match="under one recipe"):
        lines_of(*runs)


def test_lower_is_better_for_off_target_and_a_sentence_mean_is_named(tmp_path):
    rng = np.random.default_rng(6)
    off = [{"fin": {("all", "off_target"): results(rng, 80, p), ("old", "bleu"): results(rng, 80, 0.5)}} for p in (0.7, 0.2)]
    runs = [write_run(tmp_path / m, {"after": o}, method=m) for m, o in zip(("sft", "sdrrl"), off, strict=True)]
    rows = list(read_jsonl(runs[0] / "rows.jsonl"))
    write_jsonl(runs[0] / "rows.jsonl", [r | {"value": 17.2} if r["metric"] == "bleu" else r for r in rows])
    _, lines = lines_of(*runs)
    assert lines[0].test.result.diff < 0 and lines[0].sign == 1
    assert "means of sentence scores" in lines[1].test.note and not lines[0].test.note


LANGS = ("deu", "fin", "jpn", "ara")


def per_language(tmp_path: Path, method: str, right: float) -> list[Path]:
    """A method that trains one model for each language, and scores it in English too."""
    out = []
    for k, lang in enumerate(LANGS):
        rng = np.random.default_rng([k, int(100 * right)])
        scores = {"after": {lang: {ACC: results(rng, 80, right + 0.05 * k), (f"flores:eng-{lang}", "f1"): results(rng, 40, right)},
                            "eng": {ACC: results(rng, 80, 0.8)}}}
        out.append(write_run(tmp_path / f"{method}-{lang}", scores, method=method, langs=(lang,)))
    return out


def test_models_of_several_languages_are_one_system_and_holm_runs_over_languages_and_pairs(tmp_path):
    folders = [f for m, right in (("sft", 0.3), ("cit", 0.45), ("sdrrl", 0.7)) for f in per_language(tmp_path, m, right)]
    systems, lines = lines_of(*folders)
    assert [s.label for s in systems] == ["sft", "cit", "sdrrl"]
    family = [x for x in lines if x.role == "belebele"]
    assert {x.lang for x in family} == {*LANGS, *(f"eng ({lang})" for lang in LANGS)} and len(family) == 3 * 8
    order = sorted(family, key=lambda x: x.p)
    by_hand, running = [], 0.0
    for rank, x in enumerate(order):
        running = max(running, min(1.0, (24 - rank) * x.p))
        by_hand.append(running)
    assert [x.adjusted for x in order] == pytest.approx(by_hand)
    assert {x.role for x in lines} == {"belebele", "flores:src-tgt"}

    tests = [t for t in language_tests(systems, lines) if (t[0].a, t[0].b) == (0, 2) and t[0].role == "belebele"]
    scores = [[np.mean(values(tmp_path / f"{m}-{lang}", lang=lang)) for lang in LANGS] for m in ("sft", "sdrrl")]
    theirs = stats.ttest_rel(scores[1], scores[0])
    assert (tests[0][1].n, tests[0][1].p) == (4, pytest.approx(theirs.pvalue))  # the source language is not one of them

    wins = win_grid(systems, lines)
    signs = [x.sign for x in lines if (x.a, x.b) == (0, 2)]
    assert wins.rows[2][1] == f"{signs.count(1)}/{signs.count(0)}/{signs.count(-1)}" and signs.count(1) > 0
    assert wins.rows[0][3] == f"{signs.count(-1)}/{signs.count(0)}/{signs.count(1)}" and wins.rows[1][2] == "–"
    _, few = lines_of(*folders, baseline=2, tasks=["flores"])
    assert {(x.a, x.b) for x in few} == {(2, 0), (2, 1)} and len(few) == 2 * 4


def test_the_first_metric_of_a_task_counts_unless_others_are_asked_for(tmp_path):
    rng = np.random.default_rng(8)
    keys = [ACC, ("belebele", "mrr_raw"), ("belebele", "accuracy_raw.part")]
    runs = [write_run(tmp_path / m, {"after": {"fin": {k: results(rng, 50, right) for k in keys}}}, method=m)
            for m, right in (("sft", 0.2), ("cit", 0.9))]
    systems, lines = lines_of(*runs)
    assert [x.metric for x in lines] == ["accuracy_raw", "mrr_raw"]
    assert win_grid(systems, lines).rows[1][1] == "1/0/0"
    names = ["mrr_raw", "accuracy_raw.part"]
    systems, lines = lines_of(*runs, metrics=names)
    assert [x.metric for x in lines] == names and win_grid(systems, lines, names).rows[1][1] == "2/0/0"


def test_the_bootstrap_can_decide(tmp_path):
    a = run_of(tmp_path / "a", 0.45)
    _, (line,) = lines_of(a, which="bs")
    assert line.p == line.test.result.p_bootstrap != line.test.result.p_randomisation


def test_the_command_prints_and_writes_what_it_found(tmp_path, capsys):
    a, b = run_of(tmp_path / "a", 0.1, method="sft"), run_of(tmp_path / "b", 0.9)
    files = [str(tmp_path / name) for name in ("out.csv", "out.md")]
    assert main([str(a), str(b), "--csv", files[0], "--markdown", files[1]]) == 0
    out = capsys.readouterr().out
    assert "sdrrl against sft" in out and "wins / ties / losses" in out and "<.001 **" in out
    assert "**sdrrl against sft**" in Path(files[1]).read_text()
    with open(files[0], newline="") as f:
        (row,) = csv.DictReader(f)
    got = paired(values(a), values(b), clusters(a))
    assert (float(row["diff"]), float(row["p_bootstrap"]), int(row["n"]), row["lang"]) == (got.diff, got.p_bootstrap, 60, "fin")


def test_what_cannot_be_compared_is_one_line_and_exit_code_2(tmp_path, capsys):
    a = run_of(tmp_path / "a", 0.3, method="sft")
    german = run_of(tmp_path / "german", 0.3, lang="deu")
    plain = write_run(tmp_path / "plain", {"before": {"fin": {ACC: results(np.random.default_rng(3), 9, 0.4)}}}, method="none")
    elsewhere = write_run(tmp_path / "elsewhere", {"after": {"fin": {ACC: [["z1", "z1", 1.0]]}}})
    broken = run_of(tmp_path / "broken", 0.3, method="cit")
    (broken / "predictions" / "after" / "fin" / "per_example_scores.jsonl").write_text('{"task": "belebele"}\n')
    for arguments, says in [([a, german], "no language, task and metric in common; there is belebele accuracy_raw (fin)"),
                            ([a, "--metric", "bleu"], "in common for --metric bleu"),
                            ([a, elsewhere], "no item in common"), ([plain], "one untrained model"), ([tmp_path / "none"], "no such run"),
                            ([f"{tmp_path}/zz*"], "no finished run matches"), ([a, plain, "--baseline", "x"], "--baseline x"),
                            ([a, broken], "per_example_scores.jsonl:1")]:
        assert main([str(x) for x in arguments]) == 2, arguments
        err = capsys.readouterr().err
        assert says in err and err.startswith("xalign: ") and err.count("\n") == 1, err


def test_two_runs_of_the_usual_size_take_seconds_and_no_torch(tmp_path):
    rng = np.random.default_rng(9)
    for method, right in (("sft", 0.4), ("sdrrl", 0.5)):
        scores = {lang: {**{("belebele", f"m{k}"): results(rng, 900, right, 2) for k in range(7)},
                         **{(f"flores:eng-{lang}", m): [[*e[:3], e[3]] for e in corpus(rng, 900, right)] for m in ("bleu", "bleu4")}}
                  for lang in ("fin", "deu")}
        write_run(tmp_path / method, {"after": scores}, method=method, langs=("fin", "deu"))
    code = "import sys; from xalign.compare import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "sft"), str(tmp_path / "sdrrl")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 15  # 2 s when nothing else runs
