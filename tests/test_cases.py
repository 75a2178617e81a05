"""The case study: prompts of every form and broken ones, answers before and after, tables by arithmetic, a whole tiny run."""
from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, xalign
from scipy.stats import binomtest

from xalign.cache import Artifact
from xalign.config import ConfigError, Run, XalignError, make_run
from xalign.languages import LANGUAGES
from xalign.metrics.offtarget import OffTarget, judged_language
from xalign.plan import make_plan
from xalign.report.runs import FinishedRun, load_runs
from xalign.studies.__main__ import main, make_study
from xalign.studies.cases import CasesStudy, check_room
from xalign.studies.prompts import choose

SAID = {"fin": "Lamppu on keittiössä ja ikkuna on yhä auki.", "eng": "The lamp is in the kitchen and the window is open."}


def checked(*overrides: str) -> Run:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from xalign.compose import package_folder

    with initialize_config_dir(str(package_folder("conf")), version_base="1.3"):
        config = compose("config", ["backbone=tiny", "lang=fin", "study=cases", *overrides], return_hydra_config=True)
    values = OmegaConf.to_container(config, resolve=False)
    groups = values.pop("hydra")["runtime"]["choices"]
    return make_run(OmegaConf.to_container(OmegaConf.create(values), resolve=True), groups)


# prompts


def test_our_own_prompts_are_the_same_four_in_every_language_and_in_that_language() -> None:
    every = {lang: choose("auto", [lang], None, 0) for lang in LANGUAGES}
    ids = [p.id for p in every["eng"]]
    assert ids[:4] == ["rain", "learn", "key", "plants"]
    assert [i.split("/")[0] for i in ids[4:]] == ["capital", "language", "currency", "city"]
    judged = 0
    for lang, prompts in every.items():
        assert [p.id for p in prompts] == ids and {p.lang for p in prompts} == {lang}
        values = OffTarget().per_example([p.text for p in prompts[:4]], [lang] * 4)
        assert 1.0 not in values, (lang, [p.text for p, v in zip(prompts, values, strict=False) if v])
        judged += sum(v is not None for v in values)
    assert judged > 80 and len({p.text for prompts in every.values() for p in prompts[:4]}) == 4 * len(LANGUAGES)
    both = choose("auto", ["fin"], "eng", 2)
    assert [(p.lang, p.id) for p in both] == [("fin", "rain"), ("fin", "learn"), ("eng", "rain"), ("eng", "learn")]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_prompts_of_every_form(tmp_path: Path) -> None:
    def read(given: Any, langs: tuple[str, ...] = ("fin",), source: str | None = None, count: int = 0) -> list[tuple[str, str, str]]:
        return [(p.lang, p.id, p.text) for p in choose(given, langs, source, count)]

    jsonl = write(tmp_path / "p.jsonl", '\ufeff{"prompt": " Miksi? ", "id": 7}\n\n{"instruction": "Why?", "input": "Rain.", "lang": "en"}\n'
                                        '{"question_id": 9, "text": "Mitä?", "lang": "Finnish"}\n')
    assert read(jsonl) == [("fin", "7", "Miksi?"), ("fin", "9", "Mitä?")]
    assert read(jsonl, source="eng") == [("fin", "7", "Miksi?"), ("fin", "9", "Mitä?"), ("eng", "3", "Why?\n\nRain.")]
    assert read(jsonl, source="eng", count=1) == [("fin", "7", "Miksi?"), ("eng", "3", "Why?\n\nRain.")]
    text = write(tmp_path / "p.txt", "Miksi?\n\n  Mitä?\n")
    assert read(text) == [("fin", "1", "Miksi?"), ("fin", "3", "Mitä?")]
    table = {"fin": {"a": "Miksi?"}, "eng": ["Why?", {"id": "b", "prompt": "What?"}]}
    assert read(write(tmp_path / "p.yaml", yaml.safe_dump(table)), source="eng") == read(table, source="eng") == [
        ("fin", "a", "Miksi?"), ("eng", "1", "Why?"), ("eng", "b", "What?")]
    assert read(["Miksi?", {"lang": "hun", "text": "Miért?"}], ("hun",)) == [("hun", "1", "Miksi?"), ("hun", "2", "Miért?")]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "questions_Finnish.jsonl", '{"question_id": 1, "text": "Miksi?", "category": "generic"}\n')
    write(folder / "en.txt", "Why?\n")
    assert read(str(folder), source="eng") == [("fin", "1", "Miksi?"), ("eng", "1", "Why?")]
    assert read(str(folder), source="deu") == [("fin", "1", "Miksi?")]  # the source language is there or not


BROKEN = [
    ("p.jsonl", '{"prompt": "Miksi?"}\n{"prompt": \n', r"p\.jsonl:2: not valid JSON"),
    ("p.jsonl", "[1]\n", r"p\.jsonl:1: expected a JSON object"),
    ("p.jsonl", "", r"study\.prompts=.*p\.jsonl: holds no prompt; write a line of JSON"),
    ("p.jsonl", '{"prompt": "?", "lang": "fim"}\n', r"p\.jsonl:1: lang=fim: unknown language; did you mean 'fin'\?"),
    ("p.jsonl", '{"prompt": "  "}\n', r"p\.jsonl:1: holds no text; write it under 'prompt'"),
    ("p.jsonl", '{"ask": "?"}\n', r"p\.jsonl:1: holds no text"),
    ("p.jsonl", '{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n', r"p\.jsonl:2: id=1: occurs a second time in Finnish"),
    ("p.jsonl", '{"lang": "hun", "prompt": "a"}\n', r"has no prompt in Finnish \(fin\); it has hun"),
    ("p.txt", "Mit\xe4?\n".encode("latin-1"), r"p\.txt:1: not UTF-8 \(.* at byte 3\); convert the file to UTF-8"),
    ("p.jsonl", '{"prompt": "Mit\xe4?"}\n'.encode("latin-1"), r"p\.jsonl:1: not UTF-8"),
    ("p.yaml", "fin:\n  - a\n - b\n", r"p\.yaml:3: not valid YAML"),
    ("p.yaml", "", r"holds no prompt"),
    ("p.yaml", "fin: Miksi?\n", r"p\.yaml, fin: is no list or mapping of prompts"),
    ("p.yaml", "finnis: [a]\n", r"p\.yaml: lang=finnis: unknown language"),
    ("p.csv", "a,b\n", r"p\.csv: is no \.jsonl, \.yaml, \.yml or \.txt file"),
    ("absent.txt", None, r"study\.prompts=.*absent\.txt: no such file or folder"),
    ("hun.txt", "a", r"study\.prompts=.*: has no file in Finnish; add fin\.jsonl"),
]


@pytest.mark.parametrize("name, text, message", BROKEN, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)])
def test_broken_prompts_are_one_line(tmp_path: Path, name: str, text: str | bytes | None, message: str) -> None:
    given = str(tmp_path / name)
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(XalignError, match=message) as found:
        choose(str(tmp_path) if name == "hun.txt" else given, ["fin"], None, 0)
    assert "\n" not in str(found.value)


def test_a_prompt_without_a_language_needs_a_run_of_one_language() -> None:
    with pytest.raises(ConfigError, match=r"study\.prompts, prompt 1: names no language, and the run has fin hun; add lang"):
        choose(["?"], ["fin", "hun"], None, 0)
    with pytest.raises(ConfigError, match=r"study\.prompts=5: is no list of prompts"):
        choose(5, ["fin"], None, 0)


@pytest.mark.parametrize("overrides, message", [
    (["backbone=tiny_encoder", "method=ml_dft"], "study=cases: backbone=tiny_encoder is an encoder, which writes no answers; choose a"),
    (["study.prompts=nowhere.txt"], "study.prompts=nowhere.txt: no such file or folder"),
    (["study.max_new_tokens=0"], "study.max_new_tokens=0: must be at least 1"),
    (["study.count=-1"], "study.count=-1: must be at least 0")])
def test_a_run_that_cannot_be_asked_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as found:
        checked(*overrides)
    assert str(found.value).startswith(message) and "\n" not in str(found.value)


# answers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    from xalign.backbones.tiny import make_tiny

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder, 32, 2, 600, 0)
    return folder


def test_the_language_of_an_answer() -> None:
    assert judged_language(SAID["fin"], "fin") == (0.0, "fin") and judged_language(SAID["eng"], "fin") == (1.0, "eng")
    assert judged_language("Oslo", "fin") == (None, None) and judged_language("", "fin") == (None, None)
    assert judged_language("Лампа стоит на кухне, окно ещё открыто.", "fin")[0] == 1.0
    repeated = "Kirjoita keskustilen, keskustilen, keskustilen, keskustilen, keskustilen, keskustilen, kes"
    assert judged_language(repeated, "fin") == (1.0, "und")  # CLD3 says Japanese


def test_the_trained_model_gets_its_methods_prompts_and_a_killed_stage_goes_on(tiny: Path, tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    from xalign.backbones.load import load_backbone

    run = checked("method=ml_ipd", "study.count=2", "study.max_new_tokens=3")
    stages = make_plan(run).studied
    before, after = (stages[when].inputs[0] for when in ("before", "after"))
    frame = run.method.frame(run)
    assert "frame" not in before.params and after.params["frame"] == json.loads(json.dumps(frame.params()))
    assert [p["id"] for p in before.params["prompts"]] == ["rain", "learn"] * 2 and [s.name for s in stages.values()] == ["cases"] * 2
    backbone, asked = load_backbone(tiny, run.backbone), []
    generate = backbone.generate
    monkeypatch.setattr(backbone, "generate", lambda texts, *a, **k: asked.append(list(texts)) or generate(texts, *a, **k))
    monkeypatch.setattr("xalign.tasks.evaluate.opened", lambda folder, node: backbone)
    for stage in (before, after):
        folder = tmp_path / stage.key
        folder.mkdir()
        (folder / "answers.jsonl").write_text('{"id": "fin/rain", "answer": "Sataa, koska ilma on kosteaa ja kylmää.", "tokens": 9}\n'
                                              '{"id": "fin/learn", "answer": "cut of')
        facts = stage.work(folder, [Artifact(tiny, {})])
        assert facts["answers"] == 4
    plain = [p["prompt"] for p in before.params["prompts"][1:]]
    framed = [frame("instruction", lang, text) for lang, text in zip(("fin", "eng", "eng"), plain, strict=True)]
    assert asked == [plain, framed] and plain[0] != framed[0]
    out = tmp_path / "judged"
    out.mkdir()
    stages["after"].work(out, [Artifact(tmp_path / after.key, {})])
    records = [json.loads(line) for line in (out / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["lang"], r["id"]) for r in records] == [("fin", "rain"), ("fin", "learn"), ("eng", "rain"), ("eng", "learn")]
    assert records[0] == {"id": "rain", "lang": "fin", "prompt": before.params["prompts"][0]["prompt"], "tokens": 9, "limit": 3,
                          "answer": "Sataa, koska ilma on kosteaa ja kylmää.", "off_target": 0.0, "detected": "fin"}


def test_a_prompt_that_is_too_long_is_one_line(tiny: Path) -> None:
    from xalign.backbones.load import load_backbone

    backbone = load_backbone(tiny, checked("backbone.max_length=80").backbone)
    prompts = choose(["Why? " * 60], ["eng"], None, 0)
    length = len(backbone.encode_prompts([prompts[0].text])[0])
    with pytest.raises(XalignError, match=rf"study\.prompts, prompt 1: id=1: has {length} tokens with the template, and the model reads "
                                          r"80, answer of study\.max_new_tokens=20 included; shorten it"):
        check_room(backbone, prompts, [prompts[0].text], 20)
    backbone.max_length = length + 19
    with pytest.raises(XalignError, match="shorten it"):
        check_room(backbone, prompts, [prompts[0].text], 20)
    backbone.max_length = length + 20
    check_room(backbone, prompts, [prompts[0].text], 20)


# what is shown


def put_run(root: Path, method: str, found: dict[str, dict[str, list[str | None]]], lang: str = "fin", seed: int = 0,
            answer: str = "") -> FinishedRun:
    """A finished run; `found`: when → asked language → the languages of the answers to prompts p0, p1 ..."""
    folder = root / f"{method}-{lang}-tiny-s{seed}-{len(list(root.glob('*'))):08d}"
    folder.mkdir(parents=True)
    of = {"run": folder.name, "method": method, "source": "eng", "backbone": "tiny", "seed": seed, "reason": None, "signature": "s"}
    rows = [{**of, "lang": lang, "task": "choice", "metric": "accuracy_pmi", "value": 0.5, "se": 0.1, "n": 9, "when": w}
            for w in (("before", "after") if method != "none" else ("before",))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"lang": [lang], "seed": seed, "choices": {"method": method, "backbone": "tiny"}}))
    (folder / "run.json").write_text("{}")
    for when, langs in found.items():
        place = folder / "study" / "cases" / when
        place.mkdir(parents=True)
        records = [{"id": f"p{i}", "lang": code, "prompt": f"Prompt {i} in {code}?", "answer": answer or f"{when} {method} says {said}",
                    "detected": said, "off_target": None if said is None else float(said != code), "tokens": 5 + i, "limit": 7}
                   for code, all_ in langs.items() for i, said in enumerate(all_)]
        (place / "cases.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return load_runs([folder])[0]


BEFORE = {"fin": ["eng", "eng", "eng", "eng", "fin", None], "eng": ["eng"] * 6}
AFTER = {"fin": ["fin", "fin", "fin", "eng", "fin", "fin"], "eng": ["eng"] * 5 + ["fin"]}


def test_rates_are_counted_and_tested_by_hand(tmp_path: Path) -> None:
    found = CasesStudy().findings([put_run(tmp_path, "sdrrl", {"before": BEFORE, "after": AFTER})])
    rates = found.grids[0].rows
    assert [row[:3] for row in rates] == [["Finnish", lang, model] for lang in ("fin", "eng") for model in ("untrained", "sdrrl")]
    p, n, z2 = 4 / 5, 5, 1.96**2
    middle, half = (p + z2 / (2 * n)) / (1 + z2 / n), 1.96 * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    assert rates[0][3:6] == [f".800 [{middle - half:.3f}, {middle + half:.3f}]".replace("0.", "."), "5 of 6", "eng 4"]
    assert rates[1][3].startswith(".167 [") and rates[1][4:6] == ["6 of 6", "eng 1"]
    assert rates[1][6] == "-.600" and rates[1][7] == f"{binomtest(0, 3, 0.5).pvalue:.2f}".lstrip("0")  # three of the five turned
    assert rates[3][6:] == ["+.167", "1.00"] and rates[0][6:] == ["–", "–"]


def test_the_runs_rows_carry_the_rates_and_the_test(tmp_path: Path) -> None:
    run = put_run(tmp_path, "sdrrl", {"before": BEFORE, "after": {"fin": AFTER["fin"], "eng": [None] * 6}})
    rows = CasesStudy().rows(checked(), {when: Artifact(run.folder / "study" / "cases" / when, {}) for when in ("before", "after")})
    old, english, new, nothing = rows
    assert [(r["when"], r["lang"], r["value"], r["n"]) for r in rows] == [("before", "fin", 4 / 5, 5), ("before", "eng", 0.0, 6),
                                                                         ("after", "fin", 1 / 6, 6), ("after", "eng", None, 0)]
    assert old["se"] == pytest.approx(math.sqrt(5 / 4 * (4 * 0.2**2 + 0.8**2)) / 5) and nothing["reason"] == "no example could be judged"
    assert (new["diff"], new["p"], new["pairs"]) == (pytest.approx(-3 / 5), pytest.approx(0.25), 5) and "diff" not in nothing
    assert {r["task"] for r in rows} == {"cases"} and english["signature"] == OffTarget().signature


def test_answers_stand_side_by_side(tmp_path: Path) -> None:
    runs = [put_run(tmp_path, method, {"before": BEFORE, "after": AFTER}) for method in ("sdrrl", "cit")]
    runs += [put_run(tmp_path, "sdrrl", {"before": {"hun": ["eng"]}, "after": {"hun": ["hun"]}}, lang="hun"), put_run(tmp_path, "xcot", {})]
    found = CasesStudy().findings(load_runs([tmp_path]))
    assert len(found.grids) == 3  # the rates, Finnish, Hungarian
    fin = found.grids[1]
    assert fin.rows[:5] == [["fin/p0"], ["prompt", "fin", "Prompt 0 in fin?"], ["untrained", "eng ✗", "before cit says eng"],
                            ["cit", "fin", "after cit says fin"], ["sdrrl", "fin", "after sdrrl says fin"]]
    assert fin.colours[2, 1] == "red" and (3, 1) not in fin.colours and len([r for r in fin.rows if len(r) == 1]) == 12
    assert ["sdrrl", "eng ✗", "after sdrrl says eng …"] in fin.rows  # p3 has 8 of 7 tokens: as long as allowed
    text = found.files["cases.md"]
    assert "| prompt | untrained | cit | sdrrl |" in text
    assert "| Prompt 0 in hun? | eng ✗: before sdrrl says eng | hun: after sdrrl says hun |" in text
    assert text.index("in fin?") < text.index("in eng?")
    note = " ".join(found.grids[0].notes)
    assert "left out, without answers: xcot-fin" in note
    assert "make them with: python -m xalign method=xcot backbone=tiny lang=fin study=cases" in note


def test_seeds_count_together_and_the_untrained_model_once(tmp_path: Path) -> None:
    runs = [put_run(tmp_path, "sdrrl", {"before": BEFORE, "after": AFTER}, seed=seed) for seed in (0, 1)]
    rates = CasesStudy().findings(runs).grids[0].rows
    assert rates[0][4] == "5 of 6" and rates[1][4] == "12 of 12"
    assert "Answers of the first seed" in CasesStudy().findings(runs).grids[1].notes[-1]


def test_one_model_alone(tmp_path: Path) -> None:
    found = CasesStudy().findings([put_run(tmp_path, "none", {"before": BEFORE})])
    assert [row[2] for row in found.grids[0].rows] == ["tiny", "tiny"] and found.plots[0].name == "cases"


def test_the_picture_has_the_counts(tmp_path: Path) -> None:
    figure, = CasesStudy().findings([put_run(tmp_path, "sdrrl", {"before": BEFORE, "after": AFTER})]).plots
    left, right = figure.axes
    widths = [[p.get_width() for p in bars] for bars in left.containers]  # asked, English, Finnish, other, untold; four bars
    assert widths == [[1, 5, 6, 5], [4, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert [t.get_text() for t in left.get_yticklabels()] == ["untrained", "sdrrl"] * 2
    assert [t.get_text() for t in right.texts] == ["4 of 5", "1 of 6", "0 of 6", "1 of 6"]
    assert "untrained: 4 of 5 judged answers in another language (eng 4)" in figure.alt and "95 % Wilson" in figure.caption


def test_markup_in_texts_stays_text(tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)> | **bold** [x](y)\n# heading\n| a | b |"
    found = CasesStudy().findings([put_run(tmp_path, "sdrrl", {"before": BEFORE, "after": AFTER}, answer=nasty)])
    text = found.files["cases.md"]
    assert "<img" not in text and "&lt;img" in text and r"\| \*\*bold\*\* \[x\](y) ⏎ # heading ⏎ \| a \| b \|" in text


def test_no_answers_anywhere_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = put_run(tmp_path, "cit", {})
    assert main(["cases", str(run.folder)]) == 2
    error = capsys.readouterr().err
    assert "no run has answers to the prompts of a case study; make them with: python -m xalign method=cit backbone=tiny" in error
    assert error.strip().endswith("lang=fin study=cases")
    with pytest.raises(ConfigError, match="study.count=-2"):
        make_study("cases", {"count": -2})


# a whole run


def test_a_whole_run_before_and_after(cache: Path, parallel_files: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", '{"id": "a", "prompt": "Miksi sataa?"}\n{"id": "a", "lang": "eng", "prompt": "Why does it rain?"}\n')
    done = xalign("method=sft", *TINY, "lang=fin", f"parallel.path={parallel_files}", f"cache={cache}", "study=cases",
                  "study.prompts=mine.jsonl", "study.max_new_tokens=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run, = (tmp_path / "runs").glob("sft-fin-*")
    for when in ("before", "after"):
        records = [json.loads(line) for line in (run / "study" / "cases" / when / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [(r["id"], r["lang"], r["prompt"]) for r in records] == [("a", "fin", "Miksi sataa?"), ("a", "eng", "Why does it rain?")]
    rows = [r for line in (run / "rows.jsonl").read_text().splitlines() for r in [json.loads(line)] if r["task"] == "cases"]
    assert [(r["when"], r["lang"], r["metric"]) for r in rows] == [(w, lang, "off_target") for w in ("before", "after")
                                                                   for lang in ("fin", "eng")]
    assert all(r["signature"] == OffTarget().signature and (r["value"] is None) == bool(r["reason"]) for r in rows)
    out = run / "study" / "cases"
    assert {"tables.md", "cases.md", "cases.png", "cases.pdf"} <= {p.name for p in out.iterdir()} and "eng/a" in done.stdout
    again = f"import sys; from xalign.__main__ import main; assert main(['study', 'cases', {str(run)!r}]) == 0; "
    again += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", again], check=True, cwd=tmp_path, capture_output=True)


def test_one_model_as_it_is(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from xalign.pipeline import execute
    from xalign.studies.base import show_study

    run = checked("mode=study", f"cache={cache}", f"runs={tmp_path}", "tracker=none", "study.count=1", "study.max_new_tokens=4")
    show_study(run.study, [execute(run)], tmp_path / "out")
    folder, = tmp_path.glob("study-cases-fin-tiny-*")
    assert "fin/rain" in capsys.readouterr().out and [p.name for p in (folder / "study" / "cases").iterdir()] == ["before"]
    assert {"cases.md", "cases.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
