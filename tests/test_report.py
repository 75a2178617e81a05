"""Tables of finished runs: what is shown, marked and explained; never cut; the model card."""
from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from xalign.backbones.node import E5Small, HubBackbone, SmolLM2
from xalign.config import Node, Run, XalignError
from xalign.methods.ml_ipd import MLIPD
from xalign.methods.supervised import SFT
from xalign.metrics.node import Metrics
from xalign.modelcard import write_card
from xalign.report.__main__ import main
from xalign.report.comparison import compare, is_key
from xalign.report.run import before_after
from xalign.rows import read_rows
from xalign.tables import number, p_value, show, with_error
from xalign.tasks.lab import LabTask

LONG = "chrF2|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|lang:fin|version:2.6.0|a-very-long-tail-that-has-no-space-to-break-at"


def make_run(root: Path, name: str, lang: str = "fin", seed: int = 0, code_switch: float = 0.15, p: float = 0.0004) -> Path:
    """A finished run as the pipeline leaves it."""
    method = name.split("-")[0]
    shared = {"run": name, "method": method, "source": "eng", "backbone": "smollm2", "seed": seed, "reason": None}
    rows = []

    def add(lang: str, task: str, metric: str, when: str, value: float | None, n: int = 485, se: float | None = 0.022,
            **more) -> None:
        rows.append({**shared, "lang": lang, "task": task, "metric": metric, "when": when, "value": value, "se": se, "n": n,
                     "signature": f"{metric}|v:1", **more})

    for code in (lang, "eng"):
        for when, value in (("baseline:chance", 0.25), ("baseline:3-shot", 0.5), ("before", 0.327)):
            add(code, "choice", "accuracy_pmi", when, value)
        add(code, "choice", "accuracy_pmi", "after", 0.427, diff=0.1, diff_se=0.026, p=p, detectable=0.071)
        add(code, "choice", "accuracy_pmi.capital", "before", 0.3)
        add(code, "choice", "accuracy_pmi.capital", "after", 0.35, diff=0.05, diff_se=0.03, p=0.04, detectable=0.1)
        add(code, "open", "f1", "before", 0.1, 60)
        add(code, "open", "f1", "after", 0.12, 60, diff=0.02, diff_se=0.03, p=0.41, detectable=0.09)
        add(code, "all", "off_target", "baseline:reference", 0.05, 120)
        add(code, "all", "off_target", "before", 0.6, 120)
        add(code, "all", "off_target", "after", 0.2, 120, diff=-0.4, diff_se=0.05, p=0.0001, detectable=0.1)
    for task in (f"sentences:eng-{lang}", f"sentences:{lang}-eng"):
        add(lang, task, "chrf", "baseline:copy", 47.81, 40, signature=LONG)
        add(lang, task, "chrf", "before", 12.41, 40, 1.1, signature=LONG)
        add(lang, task, "chrf", "after", 37.4, 40, 1.2, signature=LONG, diff=20.5, diff_se=2.2, p=0.001, detectable=6.1)
        for when in ("before", "after"):
            add(lang, task, "bleu", when, None, 0, None, reason="the tokenizer is not installed")
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"cost": {"seconds": 590.0, "train_seconds": 300.0}}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": {"code_switch": code_switch}, "lang": [lang], "seed": seed}))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [make_run(tmp_path, "sdrrl-fin-smollm2-s0-aaaa"), make_run(tmp_path, "sdrrl-fin-smollm2-s0-bbbb", code_switch=0.0),
            make_run(tmp_path, "t_sft-fin-smollm2-s0-cccc", p=0.3)]


def printed(grids) -> str:
    out = io.StringIO()
    show(grids, out)
    return out.getvalue().replace("\u00a0", " ")


def row_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_numbers_are_short_and_say_when_there_is_none():
    assert [number(0.3721), number(-0.05, sign=True), number(1.0), number(12.44, True)] == [".372", "-.050", "1.000", "12.4"]
    assert number(None) == number(float("nan")) == "–"
    assert number(-0.0001, sign=True) == ".000"
    assert with_error(0.4, 0.02) == ".400 ±.020" and with_error(0.4, None) == ".400" and with_error(None, 0.1) == "–"
    assert [p_value(p) for p in (0.0004, 0.0312, 0.4, 1.0, None)] == ["<.001", ".031", ".40", "1.00", "–"]


def test_before_and_after_of_both_languages(runs):
    grids = before_after(read_rows(runs[0]))
    assert [g.title for g in grids] == ["Finnish (fin), target language", "English (eng), source language"]
    text = printed(grids)
    line = row_of(text, "accuracy_pmi ")
    for part in ("485", "chance .250", ".327 ±.022", ".427 ±.022", "+.100 ±.026", "<.001 **", ".071"):
        assert part in line, (part, line)
    assert "accuracy_pmi.capital" not in text  # single relations stay in rows.jsonl
    assert ".41 n.s." in row_of(text, "f1")
    assert "sentences eng→fin" in text and "37.4 ±1.2" in row_of(text, "chrf")
    for note in ("power .8", "Holm's correction over the 5 tests", "chrf: the difference is the mean over the items",
                 "accuracy_pmi|v:1", "off_target: lower is better"):
        assert note in " ".join(text.split()), note


def test_baselines_that_win_are_marked_and_the_references_own_rate_is_not(runs):
    text = printed(before_after(read_rows(runs[0])))
    assert "3-shot .500!" in text and "chance .250!" not in text and "copy 47.8!" in text
    assert "reference .050!" not in text and "reference .050" in text
    assert "! = a baseline that is at least as good" in text


def test_an_absent_metric_gives_its_reason_and_no_number(runs):
    text = " ".join(printed(before_after(read_rows(runs[0]))).split())
    assert "absent: sentences eng→fin bleu, sentences fin→eng bleu: the tokenizer is not installed" in text
    assert "bleu 0" not in text


def test_holm_decides_the_second_star(runs, tmp_path):
    folder = make_run(tmp_path / "weak", "sft-fin-smollm2-s0-dddd", p=0.03)
    assert ".030 * " in row_of(printed(before_after(read_rows(folder))), "accuracy_pmi ") + " "


def test_a_row_without_a_test_is_called_that(tmp_path, runs):
    path = runs[0] / "rows.jsonl"
    rows = [{k: v for k, v in json.loads(line).items() if k not in ("p", "diff", "diff_se", "detectable")}
            for line in path.read_text().splitlines()]
    text = printed(before_after(rows))
    assert "not tested" in row_of(text, "accuracy_pmi ") and "+.100" in row_of(text, "accuracy_pmi ")
    assert "nothing in this table was tested" in text


def test_tables_on_a_pipe_are_narrow_enough_and_never_cut(runs):
    for grids in (before_after(read_rows(runs[0])), compare(runs)):
        text = printed(grids)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 120
    assert LONG in printed(before_after(read_rows(runs[0]))).replace("\n", "")


def test_the_comparison_has_reference_rows_and_one_row_a_run(runs):
    target, source = compare(runs)
    trained = ["untrained", "sdrrl aaaa", "sdrrl bbbb", "t_sft"]
    assert [row[0] for row in target.rows] == ["chance", "3-shot", "reference", "copy", *trained]
    assert [row[0] for row in source.rows] == ["chance", "3-shot", "reference", *trained]
    assert target.columns[1:] == ["choice\naccuracy\npmi\nn 485", "open\nf1\nn 60", "all\noff\ntarget\nn 120",
                                  "sentences\nsrc\n→tgt\nchrf\nn 40", "sentences\ntgt\n→src\nchrf\nn 40",
                                  "train\nmin", "all\nmin"]
    assert target.rows[5][1:3] == [".427**\n±.022", ".120\n±.022"] and target.rows[5][-2:] == ["5.0", "9.8"]
    assert target.rows[7][1] == ".427\n±.022"  # p = .3
    notes = " ".join(target.notes + source.notes)
    assert "not tested against each other" in notes
    assert f"sdrrl bbbb: {runs[1]} · method.code_switch=0.0" in notes


def test_runs_of_several_languages_and_seeds_share_columns(tmp_path, runs):
    target, source = compare([*runs, make_run(tmp_path, "sdrrl-jpn-smollm2-s3-eeee", lang="jpn", seed=3)])
    assert target.columns[:4] == ["run", "lang", "seed", "choice\naccuracy\npmi\nn 485"] and len(target.columns) == 10
    assert target.rows[-1][:3] == ["sdrrl", "jpn", "3"]
    assert sum(row[0] == "untrained" for row in target.rows) == 2 and sum(row[0] == "untrained" for row in source.rows) == 1


def test_key_metrics_leave_out_subsets():
    assert all(map(is_key, ("accuracy_pmi", "accuracy_raw", "accuracy", "f1", "chrf", "off_target")))
    assert not any(map(is_key, ("accuracy_differs_pmi", "accuracy_pmi.capital", "mrr_pmi", "em", "bleu", "f1000")))


def test_csv_and_markdown(runs, tmp_path, capsys):
    assert main([*map(str, runs), "--csv", str(tmp_path / "c.csv"), "--markdown", str(tmp_path / "c.md")]) == 0
    lines = list(csv.DictReader((tmp_path / "c.csv").open(encoding="utf-8")))
    run = next(line for line in lines if line["run"].endswith("cccc"))
    assert run["target/choice/accuracy_pmi"] == "0.427" and run["target/choice/accuracy_pmi p"] == "0.3"
    assert run["seconds"] == "590.0"
    assert run["target/sentences:src-tgt/chrf"] == "37.4"
    table = [line for line in (tmp_path / "c.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[:10]}) == 1 and ".427\\*\\* ±.022" in "".join(table)
    assert main([str(runs[0]), "--csv", str(tmp_path / "r.csv")]) == 0
    rows = (runs[0] / "rows.jsonl").read_text().splitlines()
    assert len(list(csv.DictReader((tmp_path / "r.csv").open(encoding="utf-8")))) == len(rows)


@pytest.mark.parametrize(("text", "says"), [
    (None, "has no rows.jsonl"), ("", "is empty"), ("{broken\n", "rows.jsonl:1: not valid JSON"),
    ('{"run": "x"}\n', "row 1 has no 'method'")])
def test_a_bad_folder_is_one_line_and_exit_code_2(tmp_path, capsys, text, says):
    if text is not None:
        (tmp_path / "rows.jsonl").write_text(text)
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert says in err and err.startswith("xalign: ") and err.count("\n") == 1
    with pytest.raises(XalignError, match="no such run folder"):
        read_rows(tmp_path / "nowhere")


def test_the_command_line_needs_no_torch_and_survives_head(runs):
    code = ("import sys\nfrom xalign.report.__main__ import main\ncode = main(sys.argv[1:])\n"
            "assert 'torch' not in sys.modules\nsys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, *map(str, runs)], capture_output=True, text=True)
    assert done.returncode == 0 and "t_sft" in done.stdout, done.stderr
    done = subprocess.run(f"{sys.executable} -m xalign.report {runs[0]} | head -1", shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def a_run(choices: dict[str, str], backbone, lang: tuple[str, ...] = ("fin",), method=None) -> Run:
    nodes = dict.fromkeys([n for n in Run.NODES if n != "task"], Node())
    tasks = (LabTask(),) if choices.get("task") == "lab" else ()
    return Run(**{**nodes, "method": method or SFT(), "backbone": backbone, "metric": Metrics()}, tasks=tasks, lang=lang, choices=choices)


def test_the_card_names_base_scores_costs_and_limits(tmp_path, runs):
    run = a_run({"method": "sdrrl", "backbone": "smollm2", "data": "lab", "task": "lab", "translator": "lab", "tracker": "none"},
                SmolLM2())
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    cost = {"seconds": 600, "train_seconds": 300, "device_hours": 0.16, "peak_gib": 2.1,
            "stages": [{"label": "translate eng→fin", "key": "k", "seconds": 3.2, "cached": False,
                        "facts": {"kept": 420, "path": "/home/me"}}]}
    text = write_card(tmp_path, run, read_rows(runs[0]), cost).read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and front["license"] == "apache-2.0"
    assert front["language"] == ["fi", "en"]
    for part in ("apply_chat_template", "method=sdrrl", "lang=fin", "translate eng→fin | 3.2 | kept 420",
                 "10.0 min in all stages", ".427 ±.022", "territory", "not from a translation model", "one seed"):
        assert part in text, part
    assert "/home/me" not in text and "tracker=" not in text


def test_the_card_does_not_publish_local_paths_or_invent_a_licence(tmp_path, runs):
    local = tmp_path / "secret-place" / "my-model"
    local.mkdir(parents=True)
    for backbone, says in ((HubBackbone(name=str(local)), "local model folder my-model"),
                           (HubBackbone(name="org/model", revision="v2"), "org/model")):
        run = a_run({"method": "sft", "backbone": "hf", "data": "alpaca"}, backbone, ("fin", "jpn"))
        text = write_card(tmp_path, run, read_rows(runs[0]), {}).read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---")[1])
        assert says in text and "license" not in front and "secret-place" not in text and "'lang=[fin,jpn]'" in text
        assert front.get("base_model") == ("org/model" if "org" in backbone.name else None) and "base_model" in text
        assert 'tokenizer("...", return_tensors="pt")' in text


def test_an_encoders_card_says_how_to_rank_and_which_prompts_it_expects(tmp_path, runs):
    run = a_run({"method": "ml_ipd", "backbone": "e5_small"}, E5Small(prefix="query: "), method=MLIPD(language_prompt="soft"))
    text = write_card(tmp_path, run, read_rows(runs[0]), {}).read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "text-ranking" and front["license"] == "mit"
    for part in ("head.safetensors", '"query: " + text', "<lp_fin_19>", "soft_prompt.safetensors", "Task: answer the question"):
        assert part in text, part
    assert "AutoModelForCausalLM" not in text
