"""XNLI in its official shape: one file for all languages; reading, wording, scores on both kinds of backbone, bad files, the hub."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.backbones.node import Tiny, TinyEncoder
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Metrics
from xalign.tasks.evaluate import evaluation
from xalign.tasks.wording import words
from xalign.tasks.xnli import XnliTask

# the published header of xnli.dev.tsv and xnli.test.tsv
HEADER = ["language", "gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse", "sentence1",
          "sentence2", "promptID", "pairID", "genre", "label1", "label2", "label3", "label4", "label5", "sentence1_tokenized",
          "sentence2_tokenized", "match"]
PAIRS = [("en", "entailment", "The shop opened at noon.", "At noon the shop was open.", "1"),
         ("en", "contradiction", "The shop opened at noon.", "The shop never opened.", "2"),
         ("en", "neutral", "The shop opened at noon.", 'It sells "old" books.', "3"),
         ("en", "neutral", "Two boys swam.", "They were cold.", "4"),
         ("de", "entailment", "Der Laden öffnete mittags.", "Mittags war der Laden offen.", "1"),
         ("de", "contradiction", "Der Laden öffnete mittags.", "Der Laden öffnete nie.", "2"),
         ("ru", "neutral", "Двое мальчиков плавали.", "Им было холодно.", "4")]


def xnli_file(folder: Path, rows=PAIRS, name: str = "xnli.test.tsv", header=HEADER) -> Path:
    lines = ["\t".join(header)]
    for lang, label, first, second, pair in rows:
        given = {"language": lang, "gold_label": label, "sentence1": first, "sentence2": second, "promptID": pair, "pairID": pair}
        lines.append("\t".join(given.get(column, "") for column in header))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder / name


def make_run(task, lang: str = "deu", backbone=Tiny()) -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=backbone, lang=(lang,), target=lang, source="eng", seed=0, metric=Metrics(),
                           evaluated=(lang, "eng"))


def test_the_pairs_of_one_language_are_read_in_its_own_words(tmp_path):
    path = xnli_file(tmp_path / "XNLI-1.0")
    task = XnliTask(path=str(tmp_path))
    task.check_run(make_run(task))
    questions, left_out = task.read(task.paths(tmp_path, "deu", "eng")["test"], "deu", "eng")
    assert [(q.id, q.gold) for q in questions] == [("xnli/1", 0), ("xnli/2", 2)] and not left_out
    assert questions[0].options == tuple(words("deu")["nli_options"]) and questions[0].options[0] == words("deu")["yes"]
    assert questions[0].text.split("\n")[-1] == questions[0].neutral == words("deu")["nli_question"]
    assert "Der Laden öffnete mittags." in questions[0].text.split("\n")[0]
    assert "Mittags war der Laden offen." in questions[0].text.split("\n")[1]
    assert questions[0].cluster == questions[1].cluster
    english, _ = XnliTask(wording="source").read(path, "deu", "eng")
    assert english[0].options == ("yes", "maybe", "no")
    assert english[0].text.startswith("Sentence 1: Der Laden öffnete mittags.\nSentence 2: ")
    own, _ = task.read(path, "eng", "eng")
    assert [q.gold for q in own] == [0, 2, 1, 1] and '"old"' in own[2].text


@pytest.mark.parametrize("backbone", [Tiny(), TinyEncoder()], ids=["causal", "encoder"])
def test_scores(cache, tmp_path, backbone):
    xnli_file(tmp_path)
    task = XnliTask(path=str(tmp_path))
    run = make_run(task, "deu", backbone)
    task.check_run(run)
    stage = evaluation(run, run.backbone.weights(run), task, "eng", baselines=True)
    scores = {(r["metric"], r["name"]): r for r in read_jsonl(Cache(cache).get(stage).file("scores.jsonl"))}
    assert {m for m, name in scores if name == "model"} == set(task.metric_names()) == \
        {"accuracy_raw", "accuracy_pmi", "mrr_raw", "mrr_pmi"}
    assert scores["accuracy_raw", "model"]["n"] == 4 and scores["accuracy_raw", "chance"]["value"] == pytest.approx(1 / 3)
    assert scores["accuracy_raw", "majority"]["value"] == 0.5  # two of the four are neutral


def test_solved_examples_are_of_dev(tmp_path):
    xnli_file(tmp_path)
    task = XnliTask(path=str(tmp_path), shots=1)
    with pytest.raises(ConfigError, match="has no xnli.dev.tsv for deu"):
        task.check_run(make_run(task))
    xnli_file(tmp_path, [("de", "neutral", "Es regnet.", "Es ist kalt.", "9")], "xnli.dev.tsv")
    solved, questions, _ = task.load(tmp_path, "deu", "eng")
    assert [q.id for q in solved] == ["xnli/9"] and len(questions) == 2


def test_the_key_follows_the_words(tmp_path):
    xnli_file(tmp_path)

    def recipe(**changes) -> dict:
        task = XnliTask(path=str(tmp_path), **changes)
        return task.recipe(make_run(task), "deu")

    assert recipe()["words"]["nli_question"] == words("deu")["nli_question"]
    assert recipe(wording="source")["words"]["nli_question"] == words("eng")["nli_question"]


def test_a_language_that_xnli_does_not_have_is_refused(tmp_path):
    xnli_file(tmp_path, [*PAIRS, ("fi", "neutral", "Sataa.", "On kylmä.", "7")])
    task = XnliTask(path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"task.xnli: XNLI has no Finnish \(fin\); it has eng ara"):
        task.check_run(make_run(task, "fin"))


def test_a_bad_line_is_named(tmp_path):
    for row, what in ((("de", "-", "Es regnet.", "Es ist kalt.", "9"), "label '-': must be one of entailment, neutral, contradiction"),
                      (("de", "neutral", "", "Es ist kalt.", "9"), "has an empty sentence")):
        path = xnli_file(tmp_path, [*PAIRS, row])
        task = XnliTask(path=str(tmp_path))
        with pytest.raises(XalignError, match=f"{path}:9: {what}"):
            task.check_run(make_run(task))
    for line, count in (("de\tneutral\tEs regnet.", 3), ("de" + "\tx" * 19, 20), ("de", 1)):
        path = xnli_file(tmp_path)
        path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
        with pytest.raises(XalignError, match=f"{path}:9: has {count} columns, parted by tabs; the header has 19"):
            task.check_run(make_run(task))
    path = xnli_file(tmp_path, header=[c for c in HEADER if c != "gold_label"])
    with pytest.raises(XalignError, match=f"{path}:1: the header, parted by tabs, has no gold_label"):
        task.check_run(make_run(task))
    path = xnli_file(tmp_path)
    with pytest.raises(XalignError, match=f"{path}:8: ends without a line of language th"):
        task.check_run(make_run(task, "tha"))


def test_the_hub_s_rows_become_the_official_file(tmp_path):
    (file,) = XnliTask().hub("deu", "eng")
    assert (file.path, file.repo, file.config, file.split) == ("xnli.test.tsv", "facebook/xnli", "de", "test")
    rows = [{"premise": "Es\tregnet.", "hypothesis": "Es ist nass.", "label": 0},
            {"premise": "Es regnet.", "hypothesis": "Nein.", "label": 2}]
    (tmp_path / file.path).write_text(file.write(rows), encoding="utf-8")
    questions, _ = XnliTask().read(tmp_path / file.path, "deu", "eng")
    assert [(q.id, q.gold) for q in questions] == [("xnli/1", 0), ("xnli/2", 2)] and questions[0].cluster == questions[1].cluster
    assert [f.split for f in XnliTask(shots=1).hub("deu", "eng")] == ["test", "validation"]
