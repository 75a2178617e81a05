"""Training sets against test sets: planted n-grams, whole items, instructions that do not count, the stage and the command."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xalign.cache import Cache, Stage
from xalign.data.contamination import FRAME_FROM, ItemSet, contamination, main, overlap_grid, parts
from xalign.data.examples import Example, read_jsonl, write_jsonl
from xalign.data.ngrams import ngrams, normal
from xalign.data.overlap import overlap_lines, overlap_stage
from xalign.tables import markdown


def items(task: str, lang: str, *records: dict) -> ItemSet:
    found = ItemSet(task, lang)
    for record in records:
        found.add(record)
    return found


def words(start: int, n: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + n))


def text(name: str, source: str) -> dict:
    return {"id": name, "text": source, "references": ["y"]}


RANKED = {"id": "q1", "question": words(0, 12), "options": ["no", words(50, 2)], "gold": 1}
SHORT = {"id": "q2", "question": "Capital of Finland?", "options": ["Oslo", "Helsinki"], "gold": 1}


def table(rows: list[tuple[str, str, str]], *tests: ItemSet) -> list[dict]:
    return contamination({"own": rows}, tests)[0]["tests"]


def test_ngrams_are_those_of_a_plain_loop() -> None:
    texts = ["a b c d", "", "B c, D e f!", "a b", "c d e"]
    mine = {(int(h), int(o)) for h, o in zip(*(lambda g: (g.hashes, g.owner))(ngrams(texts, 3)), strict=True)}
    tokens = ["abcd", "", "bcdef", "ab", "cde"]
    plain = {(t[i:i + 3], k) for k, t in enumerate(tokens) for i in range(len(t) - 2)}
    assert len(mine) == len(plain) == 6
    by_hash: dict[int, set[int]] = {}
    for h, o in mine:
        by_hash.setdefault(h, set()).add(o)
    by_text: dict[str, set[int]] = {}
    for t, o in plain:
        by_text.setdefault(t, set()).add(o)
    assert sorted(map(sorted, by_hash.values())) == sorted(map(sorted, by_text.values()))
    grams = ngrams([words(0, 3000)], 8)
    assert len(grams.hashes) == len(np.unique(grams.hashes)) == 2993
    assert (np.diff(grams.hashes.astype(object)) > 0).all()


def test_unspaced_scripts_count_characters() -> None:
    text = "東京都の人口は日本の都道府県の中で最も多いとされている。"
    assert len(ngrams([text], 8).hashes) == len(text) - 1 - 24 + 1  # the full stop is no character of a word
    test = items("t", "jpn", {"question": text, "options": ["はい"], "gold": 0})
    assert table([("r", "問: " + text[1:26], "")], test)[0]["overlapping"] == 1
    assert table([("r", "問: " + text[1:24], "")], test)[0]["overlapping"] == 0


@pytest.mark.parametrize(("prompt", "response", "overlapping", "whole"), [
    (f"Question: {words(0, 12)}? Choose.", f"It is {words(50, 2)}", 1, 1),      # around the item stands an instruction
    (words(0, 12).upper().replace(" ", ",  "), words(50, 2), 1, 1),                # case and punctuation do not matter
    (words(0, 12), "no", 1, 0),                                                    # the question with another answer
    (words(0, 12), words(50, 1), 1, 0),                                            # half of the answer
    (words(0, 11), words(50, 2), 1, 0),                                            # most of the question
    (words(4, 8), "x", 1, 0),
    (words(5, 7), "x", 0, 0),                                                      # seven words are no 8-gram
    ("Capital of Finland?", "It is Helsinki.", 0, 1),                              # too short for an n-gram, the whole prompt
    ("What is the capital of Finland? Think", "Helsinki", 0, 0),                   # too short to count as a part of a prompt
    ("Capital of Finland?", "Oslo", 0, 0),
])
def test_what_overlaps_and_what_is_whole(prompt: str, response: str, overlapping: int, whole: int) -> None:
    got = table([("other", words(900, 30), "x"), ("row", prompt, response)], items("t", "eng", RANKED, SHORT))[0]
    assert (got["items"], got["long_enough"]) == (2, 1)
    assert (got["overlapping"], got["whole"]) == (overlapping, whole)
    assert got["with"] == ({"own": [overlapping, whole]} if overlapping or whole else {})


def test_the_shapes_of_records() -> None:
    assert parts(RANKED) == (words(0, 12), [words(50, 2)])
    made = {"id": "a", "prompt": "Translate: Hei", "text": "Hei", "references": ["Hello", "Hi"], "prediction": "Yes", "raw": "Yes"}
    assert parts(made) == ("Hei", ["Hello", "Hi"])
    assert parts({"prompt": "Say it", "references": [], "text": ""}) == ("Say it", [])
    assert parts({"prompt": "Hei", "text": "Hei", "reference": "Hello"}) == ("Hei", ["Hello"])
    assert parts({"prompt": "Who?", "answers": ["I", "me"]}) == ("Who?", ["I", "me"])
    assert parts({"id": "x", "a": ["one", {"b": "two"}]}) == ("one\ntwo", [])
    assert normal("Hei, maa!") == " hei maa "


def test_an_instruction_that_every_item_has_is_not_content() -> None:
    frame = "Answer the following question in German with a few words:"
    records = [{"id": str(i), "cluster": str(i), "prompt": f"{frame} {words(100 * i, 10)}", "references": ["x"]} for i in range(FRAME_FROM)]
    row = ("row", f"{frame} {words(205, 4)} something else", "")
    assert table([row], items("qa", "deu", *records))[0]["overlapping"] == 0
    assert table([("row", f"{frame} {words(100, 10)}", "x")], items("qa", "deu", *records))[0]["with"] == {"own": [1, 1]}
    few = [r | {"cluster": str(i // 2)} for i, r in enumerate(records)]  # too few texts to tell an instruction from a passage
    assert table([row], items("qa", "deu", *few))[0]["overlapping"] == FRAME_FROM


def test_every_training_set_against_every_test_set() -> None:
    rows = {"alpaca": [("a1", words(0, 12), words(50, 2)), ("a2", words(300, 9), "x")], "lab:city": [("c1", words(600, 20), "x")],
            "parallel:sentence": [("p1", words(0, 8), words(0, 12))]}
    tests = [items("belebele", "eng", RANKED, SHORT), items("flores:eng-fin", "fin", text("f", words(298, 12))),
             items("xquad", "fin", text("x", words(2000, 12)))]
    facts, kept = contamination(rows, tests)
    assert facts["train"] == {"alpaca": 2, "lab:city": 1, "parallel:sentence": 1}
    assert [t["with"] for t in facts["tests"]] == [{"alpaca": [1, 1], "parallel:sentence": [1, 0]}, {"alpaca": [1, 0]}, {}]
    assert [(t["overlapping"], t["whole"]) for t in facts["tests"]] == [(1, 1), (1, 0), (0, 0)]
    assert [(k["train"], k["row"], k["id"], k["whole"]) for k in kept] == [
        ("alpaca", "a1", "q1", True), ("alpaca", "a2", "f", False), ("parallel:sentence", "p1", "q1", False)]
    grid = overlap_grid(facts)
    assert grid.columns[6:] == ["alpaca\n2 rows", "parallel:sentence\n1 rows"]
    assert grid.rows == [["belebele eng", "2", "1", "1", "50.0 %", "1", "1 (1)", "1"],
                         ["flores:eng-fin fin", "1", "1", "1", "100.0 %", "0", "1", "0"],
                         ["1 other set", "1", "1", "0", "0.0 %", "0", "0", "0"]]
    assert "no overlap: lab:city (1 rows)" in markdown([grid])


def made(name: str, lang: str, files: dict[str, list]) -> Stage:
    def work(folder: Path, inputs: list) -> None:
        for file, records in files.items():
            write_jsonl(folder / file, records)

    return Stage(name, 1, {"lang": lang}, work)


@pytest.mark.parametrize("task", ["belebele", "lab"])
def test_the_stage_keeps_the_table_and_the_examples(tmp_path: Path, task: str) -> None:
    run = SimpleNamespace(source="eng", lang=("fin",), tasks=(SimpleNamespace(name=task),))
    rows = made("rows", "", {"rows.jsonl": [Example("r1", "eng", words(0, 12), words(50, 2), source="alpaca"),
                                            Example("r2", "eng", "What is the capital of Finland?", "Helsinki", source="lab:capital"),
                                            Example("r3", "eng", "x", "y", subset="LL")]})
    asked = [made("predict", "eng", {"predictions.belebele.jsonl": [RANKED, SHORT], "predictions.belebele-shots.jsonl": [RANKED, SHORT]}),
             made("predict", "fin", {"predictions.flores.jsonl": [text("f", f"{d} {words(0, 9)}") | {"task": f"flores:{d}"}
                                                                  for d in ("eng-fin", "fin-eng")]})]
    stage = overlap_stage(run, [rows], asked)
    artifact = Cache(tmp_path).get(stage)
    facts = artifact.receipt["facts"]
    assert facts["table"]["train"] == {"alpaca": 1, "lab:capital": 1, "LL": 1}
    assert [(t["task"], t["lang"], t["items"]) for t in facts["table"]["tests"]] == [
        ("belebele", "eng", 2), ("flores:eng-fin", "fin", 1), ("flores:fin-eng", "fin", 1)]
    assert (facts["rows"], facts["tests"], facts["overlapping"], facts["whole"], facts["n"]) == (3, 4, 3, 1, 8)
    assert [(e["task"], e["row"]) for e in read_jsonl(artifact.file("overlap.jsonl"))] == [
        ("belebele", "r1"), ("flores:eng-fin", "r1"), ("flores:fin-eng", "r1")]
    line, grid = overlap_lines(facts)
    assert "8-gram overlap with 3 of 4 test items, 1 whole" in line and len(grid.rows) == 3
    if task == "lab":
        assert facts["fact_leaks"] >= 0 and "test facts in training" in line
    else:  # no fact of the laboratory is asked for
        assert facts["fact_leaks"] is None and "test facts" not in line
    assert overlap_lines({**facts, "overlapping": 0, "whole": 0})[1] is None


def test_the_command_reads_files_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "belebele.jsonl"
    write_jsonl(train, [{"instruction": "Answer.", "input": words(0, 12), "output": words(50, 2)}, {"prompt": "a", "response": "b"}])
    write_jsonl(test, [RANKED, SHORT])
    assert main([str(train), str(test)]) == 0
    out = capsys.readouterr().out
    assert "belebele" in out and "1 (1)" in out and "whole: belebele q1 in row 1" in out
    train.write_text(json.dumps({"prompt": "nothing"}) + "\n{")
    assert main([str(train), str(test)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path / "none.jsonl"), str(test)]) == 2
