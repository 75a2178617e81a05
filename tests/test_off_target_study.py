"""The off-target rate over training: rates, intervals and tests by arithmetic, the pictures, and a whole tiny run."""
from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, xalign
from scipy.stats import binomtest

from xalign.config import ConfigError, XalignError, make_run
from xalign.report.runs import FinishedRun, load_runs
from xalign.studies.__main__ import main, make_study
from xalign.studies.answers import Palette, Tally, changed, cut, tally
from xalign.studies.off_target import OffTargetStudy, courses_of, validations
from xalign.tables import markdown

SAID = {"fin": "Lamppu on keittiössä ja ikkuna on yhä auki.", "eng": "The lamp is in the kitchen and the window is open.",
        "deu": "Die Lampe steht in der Küche, das Fenster ist offen.", "und": "xq zrr prrrt kkzzzq wwwpl", None: "?"}
# language of the answer to each of the prompts q0, q1 ... at steps 0, 5 and 10
FIN = {0: ["eng"] * 7 + ["fin", "und", None], 5: ["eng"] * 4 + ["deu"] + ["fin"] * 4 + [None], 10: ["eng", *["fin"] * 8, None]}
ENG = {0: ["eng"] * 10, 5: ["eng"] * 10, 10: ["eng"] * 9 + ["fin"]}


def record(stage: str, step: int, number: int, lang: str, detected: str | None, answer: str = "") -> dict[str, Any]:
    return {"stage": stage, "step": step, "id": f"q{number}", "lang": lang, "prompt": f"Prompt {number} asks for {lang}?",
            "answer": answer or SAID[detected], "detected": detected, "held_out": True,
            "off_target": None if detected is None else float(detected != lang)}


def put_run(root: Path, method: str = "sdrrl", lang: str = "fin", seed: int = 0, found: dict[str, Any] | None = None, probe: bool = True,
            stages: tuple[str, ...] = ("train sdrrl",), **config: Any) -> FinishedRun:
    """A finished run of ten steps a stage whose answers are those of `found`: language → step → the answers' languages."""
    folder = root / f"{method}-{lang}-tiny-s{seed}-{len(list(root.glob('*'))):08d}"
    folder.mkdir(parents=True)
    of = {"run": folder.name, "method": method, "source": "eng", "backbone": "tiny", "seed": seed, "reason": None, "signature": "s"}
    rows = [{**of, "lang": lang, "task": "choice", "metric": "accuracy_pmi", "value": 0.5, "se": 0.1, "n": 9, "when": w}
            for w in ("before", "after")]
    keys = {"lang": [lang], "seed": seed, "choices": {"method": method, "backbone": "tiny"}, "trainer": {"probe_prompts": 10 * probe}}
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(keys | config))
    (folder / "run.json").write_text("{}")
    found = found or {lang: FIN, "eng": ENG}
    log, samples = [], []
    for stage in stages:
        for step in range(11):
            if step:
                log.append({"step": step, "loss": 5.0 - 0.1 * step, "tokens": 100 * step, "stage": stage})
            if step % 5 == 0:
                log.append({"step": step, "valid_loss": 6.0, **({"best": step == 5} if step else {}), "stage": stage})
                own = [record(stage, step, i, code, said) for code, at in found.items() for i, said in enumerate(at[step])]
                samples += own
                for code in found:
                    judged = [r["off_target"] for r in own if r["lang"] == code and r["off_target"] is not None]
                    name = f"off_target_{code}"
                    log.append({"step": step, "stage": stage, name: sum(judged) / len(judged), f"{name}_n": len(judged)})
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log if probe or not any("off" in k for k in r)))
    if probe:
        (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in samples))
    return load_runs([folder])[0]


def test_a_tally_counts_by_hand() -> None:
    t = tally("fin", [record("s", 0, i, "fin", said) for i, said in enumerate(FIN[5])])
    assert (t.asked, t.judged, t.wrong) == (10, 9, 5) and t.share == 5 / 9 and t.instead == "eng 4, deu 1"
    p, n, z = 5 / 9, 9, 1.96  # Wilson's formula, written out
    middle = (p + z**2 / 18) / (1 + z**2 / 9)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / 9)
    assert t.interval == pytest.approx((middle - half, middle + half)) and t.interval == pytest.approx((0.2667, 0.8112), abs=5e-4)
    assert tally("fin", [record("s", 0, 0, "fin", None)]).share is None and Tally("fin", {}).interval is None
    assert tally("fin", [record("s", 0, i, "fin", said) for i, said in enumerate(FIN[0])]).instead == "eng 7, unknown 1"
    assert cut("a\n\n b") == "a ⏎ b" and cut(" \n") == "(nothing)" and cut("x" * 300, 10) == "xxxxxxxxxx … (300 characters)"


def test_the_test_is_mcnemars_exact_one() -> None:
    before, after = ([record("s", 0, i, "fin", said) for i, said in enumerate(FIN[step])] for step in (0, 10))
    test = changed([(before, after)])
    # judged both times: q0 to q8; better: six of the seven in English, and q8; worse: none; q0 and q7 stay
    assert test.n == 9 and test.diff == pytest.approx(1 / 9 - 8 / 9)
    assert test.p_randomisation == pytest.approx(binomtest(0, 7, 0.5).pvalue)
    mixed = [record("s", 0, i, "fin", "fin" if i < 2 else "eng") for i in range(9)], [record("s", 0, i, "fin", "eng" if i < 2 else "fin")
                                                                                     for i in range(9)]
    assert changed([mixed]).p_randomisation == pytest.approx(binomtest(2, 9, 0.5).pvalue)
    assert changed([(before, [record("s", 0, 99, "fin", "eng")])]) is None


def test_the_tables_are_the_samples(tmp_path: Path) -> None:
    run = put_run(tmp_path)
    found = OffTargetStudy().findings([run])
    ends, rates, *answers = found.grids
    assert [row[:2] for row in ends.rows] == [["sdrrl fin", "fin"], ["sdrrl fin", "eng"]]  # target languages first
    first, second = ends.rows
    assert first[2].startswith(".889 [") and first[3].startswith(".111 [") and first[4] == "-.778**"
    assert first[5:7] == [".016", "9"]  # 2 * .5**7, times two tests still below .05
    assert first[7:] == ["eng 7, unknown 1", "eng 1"] and second[2].startswith(".000 [.000,")
    assert second[4:7] == ["+.100", "1.00", "10"]
    table = [row for row in rates.rows if row[1] == "fin"]
    assert [(r[2], r[3], r[4], r[6], r[7]) for r in table] == [("0", "0%", "0", "9 of 10", "eng 7, unknown 1"),
        ("5*", "50%", "500", "9 of 10", "eng 4, deu 1"), ("10", "100%", "1,000", "9 of 10", "eng 1")]
    assert len(answers) == 2 and "asked for fin" in answers[0].title
    first_asked = [["q0"], ["prompt", "", "Prompt 0 asks for fin?"], *([str(step), "eng ✗", SAID["eng"]] for step in (0, 5, 10))]
    assert answers[0].rows[:5] == first_asked
    assert answers[0].rows[5:7] == [["q1"], ["prompt", "", "Prompt 1 asks for fin?"]] and len(answers[0].rows) == 3 * 5
    rows = list(csv.DictReader(io.StringIO(found.files["off_target.csv"])))
    assert len(rows) == 6 and {(r["step"], r["lang"]): float(r["off_target"]) for r in rows}["5", "fin"] == 5 / 9
    assert [p.name for p in found.plots] == ["off_target", "off_target_languages"]
    assert OffTargetStudy(shown=0).findings([run]).grids[2:] == []


def test_seeds_are_one_course_and_other_configurations_another(tmp_path: Path) -> None:
    better = {"fin": {0: FIN[0], 5: ["fin"] * 10, 10: ["fin"] * 10}}
    runs = [put_run(tmp_path), put_run(tmp_path, seed=1, found=better), put_run(tmp_path, seed=0, method="cit", found=better),
            put_run(tmp_path, found=better, method_setting=2)]
    courses, _ = courses_of(runs)
    fin = {c.name: c for c in courses if c.lang == "fin"}
    assert len(fin) == 3 and Counter(len(c.at[0]) for c in fin.values()) == Counter({1: 2, 2: 1})
    pooled = next(c for c in fin.values() if len(c.at[0]) == 2)
    assert pooled.tally(5).judged == 9 + 10 and pooled.tally(5).wrong == 5 and pooled.tokens[5] == [500, 500]
    test = changed(pooled.pairs())
    assert test.n == 18 and test.clusters == 9 and test.diff == pytest.approx((1 - 8 + 0 - 8) / 18)


def test_the_steps_of_several_stages_follow_each_other(tmp_path: Path) -> None:
    run = put_run(tmp_path, stages=("warm", "train", "train"))
    assert sorted(validations(run)) == [0, 5, 10, 15, 20, 25, 30]  # a stage begins with what the one before it left
    course = courses_of([run])[0][0]
    assert course.last == 30 and course.tokens[25] == [2500] and course.kept == {25}


def test_the_picture_has_the_counts(tmp_path: Path) -> None:
    figure = OffTargetStudy().findings([put_run(tmp_path)]).plots[1]
    fin = figure.axes[0]
    assert [t.get_text() for t in fin.get_xticklabels()] == ["0", "5", "10"] and fin.get_title(loc="left") == "asked for Finnish"
    heights = [[p.get_height() for p in bars] for bars in fin.containers]  # asked, English, German (and in ENG Finnish), other, untold
    assert [sum(column) for column in zip(*heights, strict=True)] == [10, 10, 10]
    assert heights[0] == [1, 4, 8] and heights[1] == [7, 4, 1] and heights[-1] == [1, 1, 1] and heights[-2] == [1, 0, 0]
    names = {"the asked language", "English", "Finnish", "German", "another language", "cannot be told"}
    assert {t.get_text() for t in figure.legends[0].get_texts()} == names
    assert "8 of 9 judged answers in another language at first, 1 of 9 at last" in figure.alt
    many = Palette.of([Tally("fin", {f"x{i}": 20 - i for i in range(9)} | {"fin": 1})])
    assert many.named == ("x0", "x1", "x2", "x3", "x4", "x5") and many.parts(Tally("fin", {"x8": 3, "und": 2, "x0": 1, "?": 4})) == [
        0, 1, 0, 0, 0, 0, 0, 5, 4]


def test_text_with_markup_stays_text(tmp_path: Path) -> None:
    run = put_run(tmp_path)
    path = run.folder / "samples.jsonl"
    nasty = "<script>alert(1)</script> | *bold* [link](x)\n| cell |"
    path.write_text("".join(json.dumps({**json.loads(line), "answer": nasty}) + "\n" for line in path.read_text().splitlines()))
    text = markdown(OffTargetStudy().findings([run]).grids)
    assert "<script>" not in text and "&lt;script>" in text and r"\| \*bold\* \[link\](x) ⏎ \| cell \|" in text


def test_runs_that_recorded_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = put_run(tmp_path, method="cit", probe=False)
    with pytest.raises(XalignError, match=r"no run answered prompts while it trained; .*method=cit .*probe_prompts=20 study=off_target$"):
        OffTargetStudy().findings([silent])
    assert "left out" in " ".join(OffTargetStudy().findings([silent, put_run(tmp_path)]).grids[0].notes)
    nothing = put_run(tmp_path, found={"fin": {step: ["eng", None] for step in (0, 5, 10)}})
    lines = (nothing.folder / "samples.jsonl").read_text().splitlines()
    (nothing.folder / "samples.jsonl").write_text("".join(json.dumps({**json.loads(x), "off_target": None}) + "\n" for x in lines))
    found = OffTargetStudy().findings([nothing])
    assert found.grids[0].rows[0][2:7] == ["none judged", "none judged", "–", "–", "0"] and len(found.plots) == 1
    (nothing.folder / "samples.jsonl").write_text('{"id": "q", "lang": "fin"}\n')
    assert main(["off_target", str(nothing.folder)]) == 2
    assert "samples.jsonl: record 1 has no 'prompt'" in capsys.readouterr().err


@pytest.mark.parametrize("chosen, message", [
    ([], "study=off_target: trainer.probe_prompts=0: the model answers nothing while it trains; set trainer.probe_prompts=20"),
    (["backbone=tiny_encoder", "method=ml_dft"], "study=off_target: backbone=tiny_encoder is an encoder, which writes no answers"),
    (["mode=study"], "study=off_target: shows the answers of a model while it trains, and mode=study trains none; leave mode out")])
def test_a_run_that_cannot_show_it_is_refused(chosen: list[str], message: str) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from xalign.compose import package_folder

    with initialize_config_dir(str(package_folder("conf")), version_base="1.3"):
        config = compose("config", ["backbone=tiny", "lang=fin", "study=off_target", *chosen], return_hydra_config=True)
    values = OmegaConf.to_container(config, resolve=False)
    groups = values.pop("hydra")["runtime"]["choices"]
    with pytest.raises(ConfigError) as found:
        make_run(OmegaConf.to_container(OmegaConf.create(values), resolve=True), groups)
    assert str(found.value).startswith(message) and "\n" not in str(found.value)


def test_a_whole_run(cache: Path, parallel_files: Path, tmp_path: Path) -> None:
    done = xalign("method=sft", *TINY, "lang=fin", f"parallel.path={parallel_files}", f"cache={cache}", "study=off_target",
                  "trainer.probe_prompts=2", "trainer.probe_tokens=8", "trainer.tokens_per_step=60", "trainer.eval_every=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder, = (tmp_path / "runs").glob("sft-fin-*/study/off_target")
    assert "Off-target rate over training" in done.stdout and {"tables.md", "off_target.csv", "off_target_languages.png"} <= {
        p.name for p in folder.iterdir()}
    rows = list(csv.DictReader(io.StringIO((folder / "off_target.csv").read_text(encoding="utf-8"))))
    assert [r["step"] for r in rows if r["lang"] == "eng"] == ["0", "2", "4"] and {r["asked"] for r in rows} == {"2"}
    again = f"import sys; from xalign.__main__ import main; main(['study', 'off_target', {str(folder.parents[1])!r}, 'shown=1']); "
    again += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", again], check=True, cwd=tmp_path, capture_output=True)
    with pytest.raises(ConfigError, match=r"study.shown=-1: must be in \[0, 100\]"):
        make_study("off_target", {"shown": -1})
