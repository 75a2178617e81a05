"""XGLUE's ten tasks in the official folders and shapes: reading, the official metrics, both kinds of backbone, bad files."""
from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import sacrebleu

from xalign.backbones.node import Tiny, TinyEncoder
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Metrics
from xalign.metrics.statistics import value_of
from xalign.tasks.base import Evaluation
from xalign.tasks.evaluate import evaluation, per_example
from xalign.tasks.wording import words
from xalign.tasks.xglue import AdTask, AnswerTask, NewsTask, PageTask, XgluePawsXTask, XglueXnliTask
from xalign.tasks.xglue_tags import NameTask, WordClassTask
from xalign.tasks.xglue_texts import QuestionTask, TitleTask

# one file of each task, as the release has them; quotation marks are text, and one of them never closes
FILES = {
    "NC/xglue.nc.de.test": ['"Tor in der letzten Minute\tDas Spiel endete 2:1.\tsports',
                            "Rezept der Woche\tMan nehme drei Äpfel.\tfoodanddrink",
                            "Börse am Abend\tDer Dax stieg.\tfinance"],
    "XNLI/de.test": ["Es regnet.\tDie Straße ist nass.\tentailment", "Es regnet.\tEs ist trocken.\tcontradiction",
                     "Er kam spät.\tEr nahm den Bus.\tneutral"],
    "PAWSX/de/test_2k.tsv": ["id\tsentence1\tsentence2\tlabel", "1\tDie Mühle steht am Fluss .\tAm Fluss steht die Mühle .\t1",
                             "2\tDie Mühle steht am Fluss .\tDer Fluss steht an der Mühle .\t0"],
    "QADSM/xglue.qadsm.de.test": ["rote schuhe\tSchuhe in Rot\tGünstig und schön.\tGood", "rote schuhe\tAlte Autos\t\tBad"],
    "QAM/xglue.qam.de.test": ["Wie hoch ist der Turm?\tDer Turm ist 90 Meter hoch.\t1", "Wie hoch ist der Turm?\tDer Turm ist alt.\t0"],
    "WPR/xglue.wpr.de.test": ["wetter\tWetter heute\tSonnig.\t4", "wetter\tLaden\tSchuhe.\t0", "wetter\tKlima\tÜber das Klima.\t2",
                              "zug\tFahrplan\tAlle Züge.\t3", "brot\tBäcker\tFrisch.\t1", "brot\tMühle\tMehl.\t3"],
    "NER/de.test": ["-DOCSTART- O", "", "Anna I-PER", "Berg I-PER", "wohnt O", "in O", "Wien I-LOC", "",
                    "Die O", "Bahn I-ORG", "Bahn B-ORG", ". O"],
    "POS/de.test": ["Die DET", "alte ADJ", "Mühle NOUN", "mahlt VERB", ". PUNCT", "", "Berlin PROPN", "Wien PROPN", ""],
    "QG/xglue.qg.de.src.test": ["Der Turm ist 90 Meter hoch.", "Brot wird aus Mehl gebacken."],
    "QG/xglue.qg.de.tgt.test": ["wie hoch ist der turm", "Woraus wird Brot gebacken"],
    "NTG/xglue.ntg.de.src.test": ["Der Dax stieg am Abend um zwei Prozent.", "Das Spiel endete 2:1."],
    "NTG/xglue.ntg.de.tgt.test": ["Börse steigt", "Knapper Sieg"]}
RANKED = [NewsTask, XglueXnliTask, XgluePawsXTask, AdTask, AnswerTask, PageTask, NameTask, WordClassTask]
WRITTEN = [QuestionTask, TitleTask]


def make_run(task, lang: str = "deu", backbone=Tiny()) -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=backbone, lang=(lang,), target=lang, source="eng", seed=0, metric=Metrics(),
                           evaluated=(lang,))


@pytest.fixture
def release(tmp_path) -> Path:
    for name, lines in FILES.items():
        put(tmp_path, name, lines)
    return tmp_path


def put(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def scores_of(cache: Path, task, backbone=Tiny()):  # noqa: B008
    run = make_run(task, backbone=backbone)
    task.check_run(run)
    stage = evaluation(run, run.backbone.weights(run), task, "deu", baselines=True)
    artifact = Cache(cache).get(stage)
    records = list(read_jsonl(Cache(cache).get(stage.inputs[0]).file(f"predictions.{task.name}.jsonl")))
    return {(r["task"], r["metric"], r["name"]): r for r in read_jsonl(artifact.file("scores.jsonl"))}, records, artifact


def read(task, release: Path, lang: str = "deu"):
    return task.load(release, lang, "eng")[1]


def test_the_official_files_of_the_pair_tasks_are_read(release):
    news = read(NewsTask(), release)
    assert [q.options[q.gold] for q in news] == ["Sport", "Essen und Trinken", "Finanzen"] and len(news[0].options) == 10
    assert '"Tor in der letzten Minute' in news[0].text and news[0].text.endswith(news[0].neutral)
    assert news[0].neutral.count(",") >= 9 and "Lebensart" in news[0].neutral
    assert [(q.id, q.gold) for q in read(XglueXnliTask(), release)] == [("xglue_xnli/1", 0), ("xglue_xnli/2", 2), ("xglue_xnli/3", 1)]
    assert [q.gold for q in read(XgluePawsXTask(), release)] == [1, 0]
    ads = read(AdTask(), release)
    assert [q.options[q.gold] for q in ads] == [words("deu")["yes"], words("deu")["no"]] and ads[0].cluster == ads[1].cluster
    assert "Schuhe in Rot\nGünstig und schön." in ads[0].text and "Alte Autos\n" in ads[1].text
    assert [q.gold for q in read(AnswerTask(), release)] == [1, 0]
    pages = read(PageTask(), release)
    assert [q.fields["label"] for q in pages] == ["4", "0", "2", "3", "1", "3"] and len({q.cluster for q in pages}) == 3
    assert [q.fields["label"] for q in read(PageTask(limit=1), release)] == ["4", "0", "2"]  # whole queries
    assert read(AdTask(wording="source"), release)[0].options == ("no", "yes")
    assert "Das Spiel endete" in read(NewsTask(max_words=3), release)[0].text and "2:1" not in read(NewsTask(max_words=3), release)[0].text


def test_every_word_of_a_sentence_is_a_question_about_its_tag(release):
    names = read(NameTask(), release)
    assert [q.fields["tag"] for q in names] == ["I-PER", "I-PER", "O", "O", "I-LOC", "O", "I-ORG", "B-ORG", "O"]
    assert names[1].options == ("no name", "person", "place", "organisation", "other name") and names[1].gold == 1
    assert names[1].text.startswith('Anna Berg wohnt in Wien\nWord 2 is "Berg".')
    assert [q.cluster for q in names] == ["xglue_ner/1"] * 5 + ["xglue_ner/2"] * 4
    assert len(read(NameTask(limit=1), release)) == 5  # sentences, not words
    classes = read(WordClassTask(), release)
    assert len(classes[0].options) == 17 and [q.options[q.gold] for q in classes[:3]] == ["determiner", "adjective", "noun"]
    put(release, "POS/th.test", ["ฝน NOUN", "ตก VERB"])
    assert read(WordClassTask(), release, "tha")[0].text.startswith("ฝนตก\n")


def test_solved_words_have_different_tags(release):
    put(release, "NER/de.dev", ["Er O", "sah O", "Eva I-PER", "in O", "Rom I-LOC"])
    task = NameTask(path=str(release), shots=3)
    solved, questions, _ = task.load(release, "deu", "eng")
    assert [q.options[q.gold] for q in solved] == ["no name", "person", "place"] and len(questions) == 9
    assert [q.fields["tag"] for q in NameTask(shots=4).load(release, "deu", "eng")[0]] == ["O", "O", "I-PER", "I-LOC"]


@pytest.mark.parametrize("backbone", [Tiny(), TinyEncoder()], ids=["causal", "encoder"])
@pytest.mark.parametrize("task", RANKED, ids=lambda t: t.name)
def test_ranked_tasks_on_both_kinds_of_backbone(cache, release, task, backbone):
    own = task(path=str(release))
    scores, records, _ = scores_of(cache, own, backbone)
    assert {m for _, m, name in scores if name == "model"} == set(own.metric_names())
    assert all(r["signature"] and r["value"] is not None for r in scores.values())
    assert len(records) == len(read(own, release))
    if task is not PageTask:
        assert scores[own.name, "accuracy_raw", "model"]["n"] == len(records)
        assert scores[own.name, "accuracy_raw", "chance"]["value"] == pytest.approx(1 / len(records[0]["options"]))


@pytest.mark.parametrize("task", WRITTEN, ids=lambda t: t.name)
def test_written_tasks_are_scored_by_bleu_in_lower_case_and_an_encoder_is_refused(cache, release, task):
    own = task(path=str(release), max_new_tokens=6)
    items = own.load(release, "deu", "eng")[1]
    assert [i.references[0] for i in items] == FILES[f"{own.code}/xglue.{own.code.lower()}.de.tgt.test"]
    assert all(i.text in i.prompt and i.lang == "deu" for i in items) and items[0].prompt.endswith(words("deu")["answer"])
    scores, records, artifact = scores_of(cache, own)
    assert {m for _, m, name in scores if name == "model"} == {"bleu4", "off_target"}
    given, right = [r["prediction"] for r in records], [r["references"][0] for r in records]
    found = scores[own.name, "bleu4", "model"]
    assert found["value"] == pytest.approx(sacrebleu.corpus_bleu(given, [right], lowercase=True).score) and "case:lc" in found["signature"]
    rows = per_example(artifact)[own.name, "bleu4"].values()
    assert value_of("bleu4", [sum(c) for c in zip(*(r[2] for r in rows), strict=True)]) == pytest.approx(found["value"])
    with pytest.raises(ConfigError, match=f"task.{own.name}: needs a causal backbone: an encoder ranks options and generates nothing"):
        own.check_run(make_run(own, backbone=TinyEncoder()))


def scored(task, records: list[dict], tmp_path: Path) -> dict[tuple[str, str], dict]:
    ev = Evaluation(tmp_path, lambda: None, (), "deu", "eng", True, metric=Metrics())
    task.add_scores(ev, records)
    return {(r["metric"], r["name"]): r for r in ev.scores}


def test_ndcg_by_arithmetic(tmp_path):
    # by score(yes) - score(no): first query 2, 0, 1 for ratings 0, 3, 1; second a tie of ratings 2, 0; the third has one page
    logp = {"a": [(-3, -1, "0"), (-1, -1, "3"), (-2, -1, "1")], "b": [(-1, -2, "2"), (0, -1, "0")], "c": [(-1, -1, "4")]}
    records = [{"id": f"{q}{k}", "cluster": q, "options": ["no", "yes"], "logp": [no, yes], "neutral": [0, 0], "tokens": [1, 1],
                "bytes": [2, 3], "gold": 0, "label": label} for q, pages in logp.items() for k, (no, yes, label) in enumerate(pages)]
    first = (0 + 1 / math.log2(3) + 3 / 2) / (3 + 1 / math.log2(3))
    tie = (2 + 0) / 2 * (1 + 1 / math.log2(3)) / 2
    scores = scored(PageTask(scores=["raw"]), records, tmp_path)
    assert scores["ndcg_raw", "model"]["value"] == pytest.approx((first + tie) / 2) and scores["ndcg_raw", "model"]["n"] == 2
    assert "by:score(yes)-score(no)" in scores["ndcg_raw", "model"]["signature"]
    chance = (4 / 3 * (1 + 1 / math.log2(3) + 1 / 2)) / (3 + 1 / math.log2(3))  # every page at every place
    assert scores["ndcg_raw", "chance"]["value"] == pytest.approx((chance + tie) / 2)


def ranked_words(task, guesses: list[list[str]], release: Path) -> list[dict]:
    """Records as a model would leave them that ranks the option of each guessed tag first."""
    flat = iter(tag for sentence in guesses for tag in sentence)
    return [{"id": q.id, "cluster": q.cluster, "options": list(q.options), "gold": q.gold, "tag": q.fields["tag"],
             "logp": [float(o == task.tags[tag]) for o in q.options], "kind": q.kind, "differs": False}
            for q, tag in zip(read(task, release), flat, strict=True)]


def test_entity_f1_is_seqeval_s(release, tmp_path):
    from seqeval.metrics import f1_score

    task = NameTask(scores=["raw"])
    guesses = [["I-PER", "I-PER", "O", "O", "I-ORG"], ["O", "I-ORG", "I-ORG", "O"]]
    gold = [["I-PER", "I-PER", "O", "O", "I-LOC"], ["O", "I-ORG", "B-ORG", "O"]]
    scores = scored(task, ranked_words(task, guesses, release), tmp_path)
    # found: a person, two organisations; right: a person; in truth a person, a place, two organisations
    assert scores["seqeval_f1_raw", "model"]["value"] == pytest.approx(2 * 1 / (3 + 4)) == pytest.approx(f1_score(gold, guesses))
    assert scores["accuracy_raw", "model"]["value"] == pytest.approx(8 / 9) and scores["accuracy_raw", "model"]["n"] == 9
    assert scores["seqeval_f1_raw", "model"]["n"] == 2 and "tags:ranked-words" in scores["seqeval_f1_raw", "model"]["signature"]
    assert scores["accuracy_raw", "majority"]["value"] == pytest.approx(4 / 9)  # always "no name"


def test_pos_gives_the_accuracy_of_the_paper_and_the_precision_of_the_official_script(release, tmp_path):
    from seqeval.metrics import precision_score

    task = WordClassTask(scores=["raw"])
    guesses = [["DET", "NOUN", "NOUN", "VERB", "PUNCT"], ["PROPN", "PROPN"]]
    gold = [["DET", "ADJ", "NOUN", "VERB", "PUNCT"], ["PROPN", "PROPN"]]
    scores = scored(task, ranked_words(task, guesses, release), tmp_path)
    assert scores["accuracy_raw", "model"]["value"] == pytest.approx(6 / 7)
    # neighbours with one tag are one entity: of DET, NOUN NOUN, VERB, PUNCT and PROPN PROPN all but NOUN NOUN are right
    assert scores["seqeval_precision_raw", "model"]["value"] == pytest.approx(4 / 5) == pytest.approx(precision_score(gold, guesses))


def test_a_language_that_a_task_does_not_have_is_refused(release):
    for task, has in ((NewsTask, "eng deu fra spa"), (PageTask, "eng deu fra por spa zho"), (NameTask, "eng deu spa")):
        with pytest.raises(ConfigError, match=rf"task.{task.name}: {task.title} has no Finnish \(fin\); it has {has}"):
            task(path=str(release)).check_run(make_run(task(path=str(release)), "fin"))
    assert len(WordClassTask.languages) == 14 and len(XglueXnliTask.languages) == 12


@pytest.mark.parametrize("task", [*RANKED, *WRITTEN], ids=lambda t: t.name)
def test_what_is_missing_is_named_with_its_source(tmp_path, task):
    with pytest.raises(ConfigError, match=f"task.{task.name}.path: is empty, .*official files .*XGLUE"):
        task().check_run(make_run(task()))
    own = task(path=str(tmp_path))
    name = own.files("deu", "eng")["test"]
    with pytest.raises(ConfigError, match=f"task.{task.name}.path={tmp_path}: has no {name} for deu"):
        own.check_run(make_run(own))


@pytest.mark.parametrize("task, name, line, what", [
    (NewsTask, "NC/xglue.nc.de.test", "Titel\tText\tpolitics", "category 'politics': must be one of foodanddrink, sports"),
    (NewsTask, "NC/xglue.nc.de.test", "Titel\tText", "has 2 columns, parted by tabs; must be 3: title, body, category"),
    (AdTask, "QADSM/xglue.qadsm.de.test", "a\tb\tc", "has 3 columns, parted by tabs; must be 4: query, ad title, ad description"),
    (AdTask, "QADSM/xglue.qadsm.de.test", "a\tb\tc\tgood", "relevance label 'good': must be one of Bad, Good"),
    (AnswerTask, "QAM/xglue.qam.de.test", "a\tb\t2", "label '2': must be one of 0, 1"),
    (PageTask, "WPR/xglue.wpr.de.test", "a\tb\tc\t5", "relevance label '5': must be one of 0, 1, 2, 3, 4"),
    (XglueXnliTask, "XNLI/de.test", "a\tb\tcontradictory", "label 'contradictory': must be one of entailment, neutral, contradiction"),
    (NameTask, "NER/de.test", "Wien I-GPE", "'Wien I-GPE': must be a word, a space and one of O, B-PER, I-PER"),
    (NameTask, "NER/de.test", "Wien", "'Wien': must be a word, a space"),
    (WordClassTask, "POS/de.test", "Wien NNP", "'Wien NNP': must be a word, a space and one of ADJ, ADP")])
def test_a_bad_line_is_named(release, task, name, line, what):
    path = put(release, name, [*FILES[name], line])
    with pytest.raises(XalignError) as e:
        task(path=str(release)).check_run(make_run(task(path=str(release))))
    assert f"{path}:{len(FILES[name]) + 1}: {what}" in str(e.value) and "\n" not in str(e.value)


def test_a_target_file_of_another_length_is_named(release):
    source, target = release / "QG/xglue.qg.de.src.test", put(release, "QG/xglue.qg.de.tgt.test", ["wie hoch"])
    with pytest.raises(XalignError, match=f"{target}:1: ends here, but {source} has 2 lines"):
        QuestionTask(path=str(release)).check_run(make_run(QuestionTask(path=str(release))))
    put(release, "QG/xglue.qg.de.tgt.test", ["wie hoch", ""])
    with pytest.raises(XalignError, match=f"{target}:2: is empty"):
        QuestionTask(path=str(release)).check_run(make_run(QuestionTask(path=str(release))))


def test_the_prompt_of_a_word_has_its_places():
    with pytest.raises(ConfigError, match=r"task.xglue_ner.prompt=.*: must hold \{sentence\} and \{word\} and \{number\}"):
        build({"_target_": "xalign.tasks.xglue_tags.NameTask", "prompt": "{sentence} {word}"}, "task.xglue_ner")
