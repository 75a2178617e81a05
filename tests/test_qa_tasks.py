"""XQuAD, MLQA and MKQA in their official shapes: reading, prompts, scores, the hub's rows, bad files."""
from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.backbones.node import Tiny, TinyEncoder
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Metrics
from xalign.tasks.base import Journal
from xalign.tasks.evaluate import evaluation
from xalign.tasks.mkqa import MkqaTask, binary, read_mkqa, write_rows
from xalign.tasks.qa import among_others
from xalign.tasks.squad import MlqaTask, XQuadTask, read_squad, write_squad
from xalign.tasks.textfiles import TextItem
from xalign.tasks.wording import language_name

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the official files are not beside the repository")
PASSAGES = {"The mill by the river burned down in 1902.": [("q1", "When did the mill burn down?", ["1902", "in 1902", "1902"])],
            "Nurmi won nine {question} golds.": [("q2", "How many golds did Nurmi win?", ["nine"]), ("q3", "Who won?", ["Nurmi"])],
            "Lahti lies north of Helsinki.": [("q4", "What lies south of Lahti?", ["Helsinki"])]}


def make_run(task, *langs: str, backbone=Tiny(), metric=Metrics(), source: str = "eng") -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=backbone, lang=langs, target=langs[0], source=source, seed=0, metric=metric,
                           evaluated=(*langs, source))


def scores_of(cache: Path, task, lang: str, source: str = "eng"):
    """((task, metric, name) → row, records) of a random model."""
    run = make_run(task, lang, source=source)
    task.check_run(run)
    stage = evaluation(run, run.backbone.weights(run), task, lang, True)
    artifact = Cache(cache).get(stage)
    records = list(read_jsonl(Cache(cache).get(stage.inputs[0]).file(f"predictions.{task.name}.jsonl")))
    return {(r["task"], r["metric"], r["name"]): r for r in read_jsonl(artifact.file("scores.jsonl"))}, records


def rescored(cache: Path, task, lang: str, answers: dict[str, str], tmp_path: Path):
    """The scores that `answers` (id → what was said) would get, in place of the random model's."""
    from xalign.tasks.base import Evaluation

    _, records = scores_of(cache, task, lang)
    folder = tmp_path / "rescored"
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / f"predictions.{task.name}.jsonl")
    in_another_order = sorted(records, key=lambda r: r["id"], reverse=True)
    journal.add({**r, "prediction": answers[r["id"]]} for r in in_another_order)
    ev = Evaluation(folder, lambda: pytest.fail("scoring needs no model"), (), lang, "eng", True, metric=Metrics())
    task.score(ev)
    return {(r["metric"], r["name"]): r for r in ev.scores}


def squad_json(passages=PASSAGES) -> str:
    paragraphs = [{"context": c, "qas": [{"id": i, "question": q, "answers": [{"text": a, "answer_start": 0} for a in right]}
                                         for i, q, right in qas]} for c, qas in passages.items()]
    articles = [{"title": "A", "paragraphs": paragraphs[:1]}, {"title": "B", "paragraphs": paragraphs[1:]}]
    return json.dumps({"version": "1.1", "data": articles}, indent=2)


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ---- XQuAD and MLQA

def test_xquad_questions_are_read_as_they_stand(tmp_path):
    put(tmp_path / "xquad.de.json", squad_json())
    _, items = XQuadTask(path=str(tmp_path)).load(tmp_path, "deu", "eng")
    assert [i.id for i in items] == ["xquad/q1", "xquad/q2", "xquad/q3", "xquad/q4"]
    assert items[0].references == ("1902", "in 1902") and items[1].cluster == items[2].cluster != items[0].cluster
    assert items[1].prompt == "\n".join([
        "Beantworte die Frage mit einer kurzen Stelle aus dem Text. Antworte auf Deutsch.", "Text: Nurmi won nine {question} golds.",
        "Frage: How many golds did Nurmi win?", "Antwort:"])
    _, english = XQuadTask(path=str(tmp_path), wording="source").load(tmp_path, "deu", "eng")
    assert english[0].prompt.startswith("Answer the question with a short span from the text. Answer in German.\nText: ")
    assert english[0].prompt.endswith("?\nAnswer:") and english[0].lang == "deu"


def test_shots_on_different_passages_are_taken_out_of_the_test(cache, tmp_path):
    put(tmp_path / "xquad" / "xquad.de.json", squad_json())
    task = XQuadTask(path=str(tmp_path), shots=2)
    solved, items = task.load(task.root(), "deu", "eng")
    assert [i.id for i in solved] == ["xquad/q1", "xquad/q2"] and [i.id for i in items] == ["xquad/q4"]
    scores, records = scores_of(cache, XQuadTask(path=str(tmp_path), shots=1, limit=2, max_new_tokens=3), "deu")
    assert {r["id"] for r in records} == {"xquad/q2", "xquad/q3"}
    assert "shots:1 from test" in scores["xquad", "f1", "model"]["signature"]
    with pytest.raises(ConfigError, match="task.xquad.shots=3: .* too few items for deu"):
        XQuadTask(path=str(tmp_path), shots=3).load(task.root(), "deu", "eng")


def test_xquad_scores_are_those_of_squad_s_script(cache, tmp_path):
    put(tmp_path / "xquad.de.json", squad_json())
    task = XQuadTask(path=str(tmp_path), max_new_tokens=3)
    scores, records = scores_of(cache, task, "deu")
    assert {(m, n) for _, m, n in scores} == {(m, "model") for m in task.metric_names()} | \
        {("off_target", "reference"), ("mrr_tokens", "chance")}
    assert all(r["raw"].startswith(r["prediction"][:1]) and r["task"] == "xquad" and r["lang"] == "deu" for r in records)
    # q1 right but for an article and a point; q2 one of two words; q3 in a longer answer; q4 wrong
    said = {"xquad/q1": "The 1902.", "xquad/q2": "nine medals", "xquad/q3": "It was Nurmi", "xquad/q4": "Turku"}
    scores = rescored(cache, task, "deu", said, tmp_path)
    assert scores["em", "model"]["value"] == 1 / 4 and scores["em", "model"]["n"] == 4
    assert scores["f1", "model"]["value"] == pytest.approx((1 + 2 / 3 + 2 / 4 + 0) / 4)
    assert scores["containment", "model"]["value"] == 3 / 4
    assert "squad" in scores["f1", "model"]["signature"] and scores["f1", "model"]["se"] > 0


def test_mrr_ranks_the_right_answer_among_those_to_other_questions(tmp_path):
    items = [TextItem(str(n), "c", f"Question {n}?", "deu", refs) for n, refs in enumerate(
        [("Turku", "die Stadt Turku"), ("1902",), ("Nurmi",), ("turku.",), ("",), ("nine",), ("Oslo",)])]
    questions = among_others(items, 3, "x")
    assert [q.id for q in questions] == ["0", "1", "2", "3", "5", "6"]  # the fourth has no answer
    assert all(len(set(q.options)) == 4 and q.gold == 0 and q.options[0] == items[int(q.id)].references[0] for q in questions)
    assert "turku." not in questions[0].options and "Turku" not in questions[3].options  # right, not wrong
    assert questions == among_others(items, 3, "x") and len({q.options[1:] for q in questions}) > 1
    put(tmp_path / "xquad.de.json", squad_json())
    cache = tmp_path / "cache"
    scores, _ = scores_of(cache, XQuadTask(path=str(tmp_path), max_new_tokens=3), "deu")
    ranked = [r for path in cache.glob("predict/*/predictions.xquad.ranked.jsonl") for r in read_jsonl(path)]
    assert {r["task"] for r in ranked} == {"xquad"} and all(2 <= len(r["options"]) <= 10 for r in ranked)
    reciprocal = []
    for r in ranked[:4]:  # by log-likelihood per token; ties do not happen here
        value = [s / k for s, k in zip(r["logp"], r["tokens"], strict=True)]
        reciprocal.append(1 / (1 + sum(v > value[0] for v in value)))
    assert scores["xquad", "mrr_tokens", "model"]["value"] == pytest.approx(sum(reciprocal) / 4)
    assert scores["xquad", "mrr_tokens", "model"]["signature"] == "options:tokens|shots:0|ties:shared|prompt:target|distractors:9"
    scores, _ = scores_of(cache, XQuadTask(path=str(tmp_path), max_new_tokens=3, distractors=0), "deu")
    assert not any("mrr" in metric for _, metric, _ in scores)


@pytest.mark.parametrize("context, question, part", [("same", "de", ""), ("source", "en", "context-eng"), ("zho", "zh", "context-zho")])
def test_mlqa_s_passages_may_be_in_another_language_than_the_questions(cache, tmp_path, context, question, part):
    put(tmp_path / f"MLQA_V1/test/test-context-{question}-question-de.json", squad_json())
    task = MlqaTask(path=str(tmp_path), context=context, max_new_tokens=2)
    scores, records = scores_of(cache, task, "deu")
    name = f"mlqa:{part}" if part else "mlqa"
    code = {"de": "deu", "en": "eng", "zh": "zho"}[question]
    assert {r["lang"] for r in records} == {code} and {r["task"] for r in records} == {name}
    assert records[0]["prompt"].startswith("Beantworte die Frage") and language_name(code, "deu") in records[0]["prompt"]
    signature = scores[name, "f1", "model"]["signature"]
    assert "mlqa" in signature and ("unit:han-character" in signature) == (code == "zho")


def test_mlqa_s_shots_are_of_dev(cache, tmp_path):
    put(tmp_path / "test/test-context-vi-question-vi.json", squad_json())
    with pytest.raises(ConfigError, match="has no dev/dev-context-vi-question-vi.json for vie"):
        task = MlqaTask(path=str(tmp_path), shots=1)
        task.check_run(make_run(task, "vie"))
    put(tmp_path / "dev/dev-context-vi-question-vi.json", squad_json({"A tree.": [("d1", "What?", ["tree"])]}))
    solved, items = task.load(tmp_path, "vie", "eng")
    assert [i.id for i in solved] == ["mlqa/dev-d1"] and len(items) == 4
    scores, _ = scores_of(cache, MlqaTask(path=str(tmp_path), shots=1, max_new_tokens=2), "vie")
    assert "shots:1 from dev" in scores["mlqa", "em", "model"]["signature"]


def test_languages_and_backbones_that_a_benchmark_lacks_are_named():
    with pytest.raises(ConfigError, match="task.xquad: XQuAD has no Finnish"):
        XQuadTask().check_run(make_run(XQuadTask(), "fin"))
    with pytest.raises(ConfigError, match="task.mkqa: MKQA has no Indonesian .*it has ara dan"):
        MkqaTask().check_run(make_run(MkqaTask(), "ind"))
    with pytest.raises(ConfigError, match=r"task.mlqa.context=source: MLQA has no passages in French \(fra\)"):
        MlqaTask(context="source").check_run(make_run(MlqaTask(context="source"), "deu", source="fra"))
    with pytest.raises(ConfigError, match="task.mlqa.context=vi: must be one of same, source, .*did you mean 'vie'"):
        build({"_target_": "xalign.tasks.squad.MlqaTask", "context": "vi"}, "task.mlqa")
    with pytest.raises(ConfigError, match="task.xquad: needs a causal backbone"):
        XQuadTask().check_run(make_run(XQuadTask(), "deu", backbone=TinyEncoder()))


@pytest.mark.parametrize("change, what", [
    (lambda d: d.pop("data"), ": data: is not a list of objects"),
    (lambda d: d["data"][0].pop("paragraphs"), ": data[0].paragraphs: is not a list"),
    (lambda d: d["data"][1]["paragraphs"][0].update(context=" "), ": data[1].paragraphs[0]: 'context' is missing or empty"),
    (lambda d: d["data"][1]["paragraphs"][0]["qas"][1].pop("question"), ": data[1].paragraphs[0].qas[1]: 'question' is missing"),
    (lambda d: d["data"][0]["paragraphs"][0]["qas"][0].update(answers=[]), ".qas[0]: 'answers' is empty"),
    (lambda d: d["data"][0]["paragraphs"][0]["qas"][0]["answers"][1].update(text=7), ".qas[0].answers[1]: 'text' must be text"),
    (lambda d: d["data"][0]["paragraphs"][0]["qas"][0].update(id="q4"), "id=q4: occurs a second time"),
])
def test_a_bad_squad_file_is_named_with_the_place(tmp_path, change, what):
    data = json.loads(squad_json())
    change(data)
    path = put(tmp_path / "xquad.de.json", json.dumps(data))
    with pytest.raises(XalignError) as e:
        XQuadTask(path=str(tmp_path)).check_run(make_run(XQuadTask(path=str(tmp_path)), "deu"))
    assert str(path) in str(e.value) and what in str(e.value) and "official file" in str(e.value)


def test_a_squad_file_that_is_cut_short_is_named_with_its_line(tmp_path):
    path = put(tmp_path / "xquad.de.json", squad_json()[:300])
    with pytest.raises(XalignError, match=rf"{path}:\d+: not valid JSON .*use XQuAD's official file"):
        list(read_squad(path, "XQuAD"))


def test_the_hub_s_rows_become_a_squad_file(tmp_path):
    rows = [{"id": i, "context": c, "question": q, "answers": {"text": right, "answer_start": [0] * len(right)}}
            for c, qas in PASSAGES.items() for i, q, right in qas]
    a = list(read_squad(put(tmp_path / "a.json", write_squad(rows)), "XQuAD"))
    assert a == list(read_squad(put(tmp_path / "b.json", squad_json()), "XQuAD")) and len(a) == 4
    [own] = XQuadTask().hub("zho", "eng")
    assert (own.path, own.repo, own.config, own.split) == ("xquad.zh.json", "google/xquad", "xquad.zh", "validation")
    test, dev = MlqaTask(shots=1, context="source").hub("deu", "eng")
    assert (test.path, test.config, test.split) == ("test/test-context-en-question-de.json", "MLQA.en.de", "test")
    assert (dev.path, dev.split) == ("dev/dev-context-en-question-de.json", "validation")


@needs_shared
def test_the_official_xquad_files_can_be_read():
    for code in ("ar", "el", "en", "vi", "zh"):
        questions = list(read_squad(SHARED / "xquad" / f"xquad.{code}.json", "XQuAD"))
        # 1,190 questions on 240 passages, as the release says; four in five answers stand in the passage as they are
        assert len(questions) == 1190 and len({p for _, p, _, _ in questions}) == 240
        assert sum(right[0] in passage for _, passage, _, right in questions) > 0.95 * 1190


# ---- MKQA

def entry(code: int, answers: list[dict], query: str = "who was it") -> dict:
    return {"query": query, "answers": {"en": answers, "no": answers, "zh_cn": answers},
            "queries": {"en": query, "no": "hvem", "zh_cn": "谁"}, "example_id": code}


MKQA = [entry(1, [{"type": "entity", "text": "Paavo Nurmi", "aliases": ["Nurmi", "Nurmi"], "entity": "Q192"},
                  {"type": "short_phrase", "text": "he"}]),
        entry(2, [{"type": "unanswerable", "text": None}]), entry(3, [{"type": "long_answer", "text": None}]),
        entry(4, [{"type": "binary", "text": "yes"}]), entry(5, [{"type": "binary", "text": "no"}]),
        entry(6, [{"type": "number", "text": "9.0", "aliases": ["9", "nine"]}])]


def mkqa_file(folder: Path, rows=MKQA, name: str = "mkqa.jsonl") -> Path:
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    path = put(folder / name, "")
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["mkqa.jsonl", "mkqa.jsonl.gz", "dataset/mkqa.jsonl.gz"])
def test_mkqa_questions_and_their_right_answers(tmp_path, name):
    path = mkqa_file(tmp_path, name=name)
    found = list(read_mkqa(path, "no"))
    assert [right for *_, right in found] == [("Paavo Nurmi", "Nurmi", "he"), ("",), ("",), ("yes",), ("no",), ("9.0", "9", "nine")]
    _, items = MkqaTask(path=str(tmp_path)).load(tmp_path, "nob", "eng")
    assert items[0].prompt == "Svar på spørsmålet med et navn eller noen få ord. Svar på norsk bokmål.\nSpørsmål: hvem\nSvar:"
    solved, items = MkqaTask(path=str(tmp_path), shots=2).load(tmp_path, "zho", "eng")
    assert [i.id for i in solved] == ["mkqa/1", "mkqa/4"] and [i.id for i in items] == ["mkqa/2", "mkqa/3", "mkqa/5", "mkqa/6"]
    _, items = MkqaTask(path=str(tmp_path), questions="answerable").load(tmp_path, "nob", "eng")
    assert [i.id for i in items] == ["mkqa/1", "mkqa/4", "mkqa/5", "mkqa/6"]


def test_mkqa_scores_answerable_questions_and_the_best_threshold(cache, tmp_path):
    mkqa_file(tmp_path)
    task = MkqaTask(path=str(tmp_path), max_new_tokens=2)
    said = {"mkqa/1": "nurmi, he", "mkqa/2": "Oslo", "mkqa/3": "", "mkqa/4": "Ja.", "mkqa/5": "ja", "mkqa/6": "9"}
    scores = rescored(cache, task, "nob", said, tmp_path)
    # of four questions with an answer: two words of which one is right (2·1·½/(1+½)), yes, not no, nine
    assert scores["em", "model"]["value"] == 2 / 4 and scores["em", "model"]["n"] == 4
    assert scores["f1", "model"]["value"] == pytest.approx((2 / 3 + 1 + 0 + 1) / 4)
    # all six, answered in the file's order, the best place to stop being the end: 2 unanswerable - 1 answered (Oslo) + 2 2/3
    assert scores["f1_best", "model"]["value"] == pytest.approx((2 - 1 + 8 / 3) / 6) and scores["f1_best", "model"]["n"] == 6
    assert scores["f1_best", "no-answer"]["value"] == pytest.approx(2 / 6)
    assert "questions:answerable" in scores["f1", "model"]["signature"]
    assert all("prompt:target|shots:0" in scores[metric, "model"]["signature"] for metric in ("em", "f1", "f1_best"))
    some, _ = scores_of(cache, MkqaTask(path=str(tmp_path), questions="answerable", max_new_tokens=2), "nob")
    assert some["mkqa", "f1_best", "model"]["value"] is None and "questions=answerable" in some["mkqa", "f1_best", "model"]["reason"]


@pytest.mark.parametrize("text, lang, answer", [
    ("Nein.", "deu", "no"), ("是的", "zho", "yes"), ("เปล่า", "tha", "เปล่า"), ("Yes", "jpn", "yes"), ("네", "kor", "yes"),
    ("No", "spa", "no"), ("Ja, gewiss", "deu", "Ja, gewiss"), ("", "deu", ""), ("ja", "fra", "ja"), ("ទេ។", "khm", "no"),
])
def test_yes_and_no_are_the_english_words_in_every_language(text, lang, answer):
    assert binary(text, lang) == answer


@pytest.mark.parametrize("change, what", [
    (lambda r: r["answers"].pop("no"), "answers: 'no' is missing or empty"),
    (lambda r: r.pop("queries"), "has no 'queries' or no 'answers'"),
    (lambda r: r["queries"].update(no=""), "queries: 'no' is missing or empty"),
    (lambda r: r.update(example_id=1), "example_id=1: is here a second"),
    (lambda r: r["answers"].update(no=[{"type": 3, "text": "x"}]), "answers.no: type=3: must be one of entity, long_answer"),
])
def test_a_bad_mkqa_line_is_named(tmp_path, change, what):
    row = json.loads(json.dumps(MKQA[3]))
    change(row)
    path = mkqa_file(tmp_path, [*MKQA[:3], row])
    with pytest.raises(XalignError) as e:
        MkqaTask(path=str(tmp_path)).check_run(make_run(MkqaTask(path=str(tmp_path)), "nob"))
    assert f"{path}:4: " in str(e.value) and what in str(e.value)


def test_an_mkqa_file_that_is_no_gzip_or_no_json_is_named(tmp_path):
    path = put(tmp_path / "mkqa.jsonl.gz", "{}\n")
    with pytest.raises(XalignError, match=f"{path}: cannot be unpacked .*use MKQA's official file"):
        list(read_mkqa(path, "en"))
    path = put(tmp_path / "mkqa.jsonl", json.dumps(MKQA[0]) + '\n{"query": \n')
    with pytest.raises(XalignError, match=rf"{path}:2: not valid JSON"):
        list(read_mkqa(path, "en"))


def test_the_hub_s_rows_become_the_official_mkqa_file(tmp_path):
    """The hub fills in what is missing and has answer types by number, in its own order."""
    types = ["entity", "long_answer", "unanswerable", "date", "number", "number_with_unit", "short_phrase", "binary"]
    def hub(answer: dict) -> dict:
        return {"type": types.index(answer["type"]), "text": answer["text"], "aliases": answer.get("aliases", []),
                "entity": answer.get("entity", "")}

    rows = [{**r, "example_id": str(r["example_id"]), "answers": {lang: list(map(hub, given)) for lang, given in r["answers"].items()}}
            for r in MKQA]
    path = put(tmp_path / "mkqa.jsonl", write_rows(rows))
    assert [{**r, "example_id": int(r["example_id"])} for r in read_jsonl(path)] == MKQA
    [own] = MkqaTask().hub("nob", "eng")
    assert (own.path, own.repo, own.config, own.split) == ("mkqa.jsonl", "apple/mkqa", "mkqa", "train")


@needs_shared
def test_the_official_mkqa_fixture_can_be_read_in_every_language():
    task = MkqaTask(path=str(SHARED))
    task.check_run(make_run(task, *[lang for lang in task.languages if lang != "eng"]))
    for lang in task.languages:
        _, items = task.load(task.root(), lang, "eng")
        assert [any(i.references) for i in items] == [True, False, False, False, True, True]  # by its types
        assert items[-1].references[0] and len(items[0].references) > 2
