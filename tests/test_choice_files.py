"""PAWS-X and XCOPA in their official shapes: reading, what is left out, scores on both kinds of backbone, bad files."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.backbones.node import Tiny, TinyEncoder
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Metrics
from xalign.tasks.belebele import BelebeleTask
from xalign.tasks.choicefiles import fill
from xalign.tasks.evaluate import evaluation
from xalign.tasks.pawsx import PawsXTask, read_pairs
from xalign.tasks.xcopa import XCopaTask, read_premises

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
PROMPT = "{sentence1} | {sentence2}?"
# quotation marks, one of which never closes (a csv reader would swallow the lines after it), and two placeholders
PAIRS = [("7", '"The Red Door" opened in May .', 'In May , "The Red Door" opened .', "1"),
         ("9", '" No , she said and left .', "She left and said no .", "0"),
         ("12", "NS", "The mill stands by the river .", "0"),
         ("15", "The mill stands by the river .", "The river flows by the mill .", "0"),
         ("16", "The mill stands by the river .", "NS", "1"),
         ("18", "The mill stands by the river .", "A mill is at the river {sentence1} .", "1")]


def make_run(task, lang: str, backbone=Tiny()) -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=backbone, lang=(lang,), target=lang, source="eng", seed=0, metric=Metrics(),
                           evaluated=(lang, "eng"))


def scores_stage(task, evaluated: str, backbone=Tiny(), baselines: bool = True):  # noqa: B008
    run = make_run(task, "fin", backbone)
    return evaluation(run, run.backbone.weights(run), task, evaluated, baselines)


def pawsx_file(folder: Path, lang: str, rows=PAIRS, header: str = "id\tsentence1\tsentence2\tlabel", end: str = "\n") -> Path:
    path = folder / lang / "test_2k.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join([header, *("\t".join(r) for r in rows), ""]).encode())
    return path


def premise(i: int, **changes: object) -> dict[str, object]:
    return {"premise": f"The glass number {i} fell.", "choice1": f"It broke {i} times.", "choice2": "It rained.",
            "question": ("effect", "cause")[i % 2], "label": (0, 1, 1)[i % 3], "idx": i, "changed": False, **changes}


def xcopa_file(folder: Path, lang: str, rows: list[dict[str, object]]) -> Path:
    path = folder / lang / f"test.{lang}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def check(task) -> None:
    task.check_run(make_run(task, "fin"))


def scores_of(cache: Path, task, lang: str, evaluated: str, backbone, baselines: bool = True):
    task.check_run(make_run(task, lang, backbone))
    stage = scores_stage(task, evaluated, backbone, baselines)
    artifact = Cache(cache).get(stage)
    return {(r["metric"], r["name"]): r for r in read_jsonl(artifact.file("scores.jsonl"))}, Cache(cache).get(stage.inputs[0])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_paws_x_pairs_are_read_as_they_stand_and_untranslated_ones_are_counted(tmp_path, end):
    questions, left_out = read_pairs(pawsx_file(tmp_path, "fi", end=end), PROMPT)
    assert [(q.id, q.gold) for q in questions] == [("pawsx/7", 1), ("pawsx/9", 0), ("pawsx/15", 0), ("pawsx/18", 1)]
    assert left_out == {"pairs not translated": 2}
    assert questions[0].text == '"The Red Door" opened in May . | In May , "The Red Door" opened .?'
    assert questions[1].text == '" No , she said and left . | She left and said no .?'
    assert questions[3].text.endswith("A mill is at the river {sentence1} .?")  # a text is never filled again
    assert {q.options for q in questions} == {("no", "yes")} and {q.neutral for q in questions} == {"| ?"}
    clusters = [q.cluster for q in questions]
    assert clusters[2] == clusters[3] and len(set(clusters)) == 3


def test_xcopa_asks_for_cause_or_effect(tmp_path):
    questions = read_premises(xcopa_file(tmp_path, "fi", [premise(0), premise(1)]), "{premise}\n{question}")
    assert questions[0].text == "The glass number 0 fell.\nWhat happened as a result?"
    assert questions[1].text == "The glass number 1 fell.\nWhat was the cause?"
    assert [q.neutral for q in questions] == ["What happened as a result?", "What was the cause?"]
    assert [(q.id, q.options, q.gold) for q in questions] == [("xcopa/0", ("It broke 0 times.", "It rained."), 0),
                                                              ("xcopa/1", ("It broke 1 times.", "It rained."), 1)]


@pytest.mark.parametrize("backbone", [Tiny(), TinyEncoder()], ids=["causal", "encoder"])
def test_paws_x_scores(cache, tmp_path, backbone):
    for lang in ("fi", "en"):
        pawsx_file(tmp_path, lang)
    scores, artifact = scores_of(cache, PawsXTask(path=str(tmp_path)), "fin", "fin", backbone)
    assert {m for m, name in scores if name == "model"} == {"accuracy_raw", "accuracy_pmi", "mrr_raw", "mrr_pmi"}
    assert scores["accuracy_raw", "model"]["n"] == 4 and artifact.receipt["facts"]["pawsx: pairs not translated"] == 2
    # two of four are paraphrases: always "no" is right in half of them
    assert scores["accuracy_pmi", "chance"]["value"] == scores["accuracy_pmi", "majority"]["value"] == 0.5
    limited, _ = scores_of(cache, PawsXTask(path=str(tmp_path), limit=3), "fin", "fin", backbone)
    assert limited["accuracy_raw", "model"]["n"] == 3
    assert limited["accuracy_raw", "majority"]["value"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("backbone", [Tiny(), TinyEncoder()], ids=["causal", "encoder"])
def test_xcopa_scores_and_its_missing_source_language(cache, tmp_path, backbone):
    xcopa_file(tmp_path, "fi", [premise(i) for i in range(6)])
    task = XCopaTask(path=str(tmp_path))
    scores, _ = scores_of(cache, task, "fin", "fin", backbone)
    assert scores["mrr_pmi", "model"]["n"] == 6 and scores["accuracy_raw", "chance"]["value"] == 0.5
    assert scores["accuracy_raw", "majority"]["value"] == pytest.approx(4 / 6)  # the second choice is right in four of six
    run = make_run(task, "fin", backbone)
    assert task.lacks(run, "fin") == ""
    assert task.lacks(run, "eng") == "task.xcopa: XCOPA has no English (eng); it has ind tha tur vie zho"
    assert task.metric_names() == ["accuracy_raw", "mrr_raw", "accuracy_pmi", "mrr_pmi"]
    xcopa_file(tmp_path, "en", [premise(0)])  # a translation of one's own
    assert task.lacks(run, "eng") == ""


@pytest.mark.parametrize("task, lang, remedy", [(PawsXTask, "deu", "de/test_2k.tsv"), (XCopaTask, "tur", "tr/test.tr.jsonl")])
def test_a_missing_file_is_named(tmp_path, task, lang, remedy):
    task().check_run(make_run(task(), lang))  # without a folder, the hub's
    for changes, message in (({}, f"has no {remedy} for {lang}"), ({"path": str(tmp_path / "no")}, "no such folder")):
        own = task(**{"path": str(tmp_path), **changes})
        with pytest.raises(ConfigError, match=f"task.{own.name}.path={own.path}: {message}"):
            own.check_run(make_run(own, lang))
    with pytest.raises(ConfigError, match=f"task.{task.name}: {task.title} has no Finnish"):
        task().check_run(make_run(task(), "fin"))


@pytest.mark.parametrize("row, what", [
    (("30", "One .", "Two .", "2"), "label=2: must be 0 or 1"), (("30", "One .", "Two .", ""), "label=: must be 0 or 1"),
    (("30", "One .", "Two ."), "has 3 columns"), (("30", "One .", "Two .", "0", "1"), "has 5 columns"),
    (("7", "One .", "Two .", "0"), "id=7: occurs a second time"),
])
def test_a_bad_paws_x_line_is_named(tmp_path, row, what):
    path = pawsx_file(tmp_path, "fi", [*PAIRS, row])
    with pytest.raises(XalignError, match=f"{path}:8: {what}"):
        check(PawsXTask(path=str(tmp_path)))


def test_a_paws_x_file_without_header_or_in_another_coding_is_refused(tmp_path):
    path = pawsx_file(tmp_path, "fi", PAIRS[1:], header="\t".join(PAIRS[0]))
    with pytest.raises(XalignError, match=f"{path}:1: the header must be id, sentence1, sentence2, label"):
        read_pairs(path, PROMPT)
    path.write_bytes(b"id\tsentence1\tsentence2\tlabel\n1\t\xe4\t\xe4\t0\n")
    with pytest.raises(XalignError, match="not UTF-8 .* at byte 31"):
        read_pairs(path, PROMPT)


@pytest.mark.parametrize("changes, what", [
    ({"label": 2}, "label=2: must be 0 or 1"), ({"label": "0"}, "label=0: must be 0 or 1"), ({"label": True}, "label=true"),
    ({"question": "why"}, "question=why: must be cause or effect"), ({"question": ["cause"]}, "must be cause or effect"),
    ({"premise": " "}, "'premise' is missing or empty"), ({"choice2": None}, "'choice2' is missing or empty"),
    ({"idx": 0}, "idx=0: occurs a second time"),
])
def test_a_bad_xcopa_line_is_named(tmp_path, changes, what):
    path = xcopa_file(tmp_path, "fi", [premise(0), premise(1), premise(2, **changes)])
    with pytest.raises(XalignError) as e:
        check(XCopaTask(path=str(tmp_path)))
    assert f"{path}:3: " in str(e.value) and what in str(e.value)
    path.write_text('{"premise": "a"\n', encoding="utf-8")
    with pytest.raises(XalignError, match=r"test.fi.jsonl:1: not valid JSON"):
        check(XCopaTask(path=str(tmp_path)))


def test_the_prompt_has_its_places():
    for target, prompt in (("pawsx.PawsXTask", "{sentence1}"), ("pawsx.PawsXTask", "{sentence1} {sentence2} {sentence3}"),
                           ("xcopa.XCopaTask", "{premise}"), ("xcopa.XCopaTask", "{premise} {} {question}")):
        with pytest.raises(ConfigError, match=r"task.NAME.prompt=.*: must hold \{\w+\} and \{\w+\} and no other"):
            build({"_target_": f"xalign.tasks.{target}", "prompt": prompt}, "task.NAME")
    assert fill("{a} {b}", a="{b}", b="1") == "{b} 1"


def test_solved_examples_come_from_the_dev_file_or_are_taken_out_of_the_test(cache, tmp_path):
    pawsx_file(tmp_path, "fi")
    (tmp_path / "fi" / "dev_2k.tsv").write_bytes(pawsx_file(tmp_path / "dev", "fi", PAIRS[1:2]).read_bytes())
    task = PawsXTask(path=str(tmp_path), shots=1)
    solved, questions, _ = task.load(tmp_path, "fin", "eng")
    assert [q.id for q in solved] == ["pawsx/9"] and len(questions) == 4
    scores, _ = scores_of(cache, task, "fin", "fin", Tiny())
    assert scores["accuracy_raw", "model"]["signature"] == f"options:raw|shots:1 from dev|ties:shared|prompt:{task.asked}"
    assert task.asked != PawsXTask(prompt=PROMPT).asked
    (tmp_path / "belebele").mkdir()
    rows = [{"link": "", "question_number": 1, "flores_passage": f"Text {i // 2}.", "question": f"Question {i}?", "correct_answer_num": "2",
             **{f"mc_answer{k}": f"answer {i} {k}" for k in range(1, 5)}} for i in range(6)]
    (tmp_path / "belebele" / "fin_Latn.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    own = BelebeleTask(path=str(tmp_path), shots=2, prompt="plain")
    solved, questions, _ = own.load(own.root(), "fin", "eng")
    assert [q.id for q in solved] == ["belebele/1", "belebele/3"] and [q.id for q in questions] == ["belebele/5", "belebele/6"]
    scores, predictions = scores_of(cache, own, "fin", "fin", Tiny())
    assert scores["accuracy_raw", "model"]["signature"] == "options:raw|shots:2 from test|ties:shared|prompt:plain"
    with pytest.raises(ConfigError, match="task.belebele.shots=3: .*fin_Latn.jsonl has too few questions"):
        BelebeleTask(path=str(tmp_path), shots=3).load(own.root(), "fin", "eng")


def test_the_key_follows_the_file_and_not_its_place(tmp_path):
    def key(folder: Path, **changes) -> str:
        return scores_stage(PawsXTask(path=str(folder), **changes), "fin").key

    for name in ("a", "b"):
        pawsx_file(tmp_path / name, "fi")
    pawsx_file(tmp_path / "c", "fi", PAIRS[:3])
    assert key(tmp_path / "a") == key(tmp_path / "b") != key(tmp_path / "c")
    assert key(tmp_path / "a", prompt=PROMPT) != key(tmp_path / "a") != key(tmp_path / "a", limit=2)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the official files are not beside the repository")
def test_the_official_files_can_be_read():
    counts = {lang: read_pairs(SHARED / "pawsx" / "x-final" / lang / "test_2k.tsv", PROMPT) for lang in ("en", "de", "ja")}
    # rows that hold NS in place of a sentence, counted with awk
    assert {lang: (len(q), n["pairs not translated"]) for lang, (q, n) in counts.items()} == \
        {"en": (2000, 0), "de": (1968, 32), "ja": (1946, 54)}
    for lang in ("id", "th", "tr", "vi"):
        questions = read_premises(SHARED / "xcopa" / lang / f"test.{lang}.jsonl", "{premise} {question}")
        assert len(questions) == 500 and sum(q.gold for q in questions) == 250
