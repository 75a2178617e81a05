"""XL-Sum in its official shape: reading, articles cut to the context, first sentences, scores, the hub's rows, bad files."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.backbones.load import load_backbone
from xalign.backbones.node import Tiny
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Metrics
from xalign.tasks.base import Evaluation
from xalign.tasks.evaluate import evaluation
from xalign.tasks.files import json_lines
from xalign.tasks.xlsum import XlSumTask, lead

ROWS = [{"id": f"world-{i}", "url": f"https://news.example/{i}", "title": f"Harbour {i}",
         "summary": f"Harbour number {i} is closed for a week.",
         "text": f"Harbour number {i} is closed. Dr. Lind said on 3. May that ships wait outside. It will open again."} for i in range(4)]


def make_run(task, *langs: str, backbone=Tiny()) -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=backbone, lang=langs, target=langs[0], source="eng", seed=0, metric=Metrics(),
                           evaluated=(*langs, "eng"))


def put(folder: Path, name: str, rows=ROWS) -> Path:
    path = folder / name
    path.write_text(json_lines(rows), encoding="utf-8")
    return path


def test_summaries_are_scored_by_rouge_and_beside_them_the_first_sentence(cache, tmp_path):
    put(tmp_path, "french_test.jsonl")
    put(tmp_path, "french_val.jsonl", ROWS[:2])
    task = XlSumTask(path=str(tmp_path), max_new_tokens=4, shots=1, limit=3)
    run = make_run(task, "fra")
    task.check_run(run)
    stage = evaluation(run, run.backbone.weights(run), task, "fra", True)
    artifact = Cache(cache).get(stage)
    scores = {(r["metric"], r["name"]): r for r in read_jsonl(artifact.file("scores.jsonl"))}
    records = list(read_jsonl(Cache(cache).get(stage.inputs[0]).file("predictions.xlsum.jsonl")))
    assert {r["id"]: r["cluster"] for r in records} == {"xlsum/1": "world-0", "xlsum/2": "world-1", "xlsum/3": "world-2"}
    assert set(scores) == {(m, n) for m in ("rouge1", "rouge2", "rougeL") for n in ("model", "lead")} | \
        {("off_target", "model"), ("off_target", "reference")}
    # "Harbour number i is closed." against "Harbour number i is closed for a week.": five of five words, five of eight
    assert scores["rouge1", "lead"]["value"] == scores["rougeL", "lead"]["value"] == pytest.approx(2 * 5 / (5 + 8))
    assert scores["rouge2", "lead"]["value"] == pytest.approx(2 * 4 / (4 + 7))
    assert "lang:fra" in scores["rougeL", "model"]["signature"] and "shots:1 from dev" in scores["rougeL", "model"]["signature"]
    assert scores["rougeL", "model"]["n"] == 3


def test_the_instruction_stands_before_the_article(tmp_path):
    put(tmp_path, "japanese_test.jsonl")
    put(tmp_path, "chinese_simplified_test.jsonl")
    _, items = XlSumTask(path=str(tmp_path)).load(tmp_path, "jpn", "eng")
    assert items[0].prompt == f"記事を一文で要約してください。日本語で書いてください。\n記事：{ROWS[0]['text']}"
    assert (items[0].references, items[0].text, items[0].lang) == ((ROWS[0]["summary"],), ROWS[0]["text"], "jpn")
    _, items = XlSumTask(path=str(tmp_path), wording="source").load(tmp_path, "zho", "eng")
    assert items[0].prompt.startswith("Summarise the article in one sentence. Write in Chinese.\nArticle: Harbour")


@pytest.mark.parametrize("lang, word", [("fra", "bateau "), ("jpn", "船は港にいます。")])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_long_article_is_cut_at_its_end_until_prompt_and_summary_fit(cache, tmp_path, lang, word, shots):
    name = {"fra": "french", "jpn": "japanese"}[lang]
    put(tmp_path, f"{name}_test.jsonl", [{**ROWS[0], "text": word * 900}, ROWS[1]])
    put(tmp_path, f"{name}_val.jsonl", [{**r, "text": word * 900} for r in ROWS[:2]])
    backbone = Tiny(max_length=800)
    task = XlSumTask(path=str(tmp_path), max_new_tokens=30, shots=shots)
    run = make_run(task, lang, backbone=backbone)
    model = load_backbone(Cache(cache).get(backbone.weights(run)).path, backbone)
    ev = Evaluation(tmp_path, lambda: model, (), lang, "eng", False)
    solved, whole = task.load(tmp_path, lang, "eng")
    shown, items = task.fitted(ev, solved, whole)
    turns = [(i.prompt, i.references[0]) for i in shown]
    used = [len(ids) for ids in model.encode_prompts([i.prompt for i in items], turns)]
    assert len(shown) == shots and max(used) <= 770
    assert used[0] > 770 - 40  # no more than needed is cut
    for before, after in zip([*solved[:shots], *whole], [*shown, *items], strict=True):
        assert before.prompt.startswith(after.prompt) and after.prompt.split("\n")[0] == before.prompt.split("\n")[0]
        assert after.text == before.text and (before.prompt == after.prompt) == (len(before.text) < 200)
        assert lang == "jpn" or after.prompt.endswith(("bateau", "again."))  # at a space, where there are any
    task.predict(ev)
    asked = ev.journal("xlsum").done
    assert {i.id: i.prompt for i in items} == {code: r["prompt"] for code, r in asked.items()} and model.truncated == 0
    assert asked["xlsum/1"]["text"] == whole[0].text  # the first sentence is that of the whole article


@pytest.mark.parametrize("article, lang, first", [
    ("The U.S. sent 3. ships. Mr. Lee left.", "eng", "The U.S. sent 3. ships."), ('He said: "No." Then he left.', "eng", 'He said: "No."'),
    ("One line\nanother. line", "eng", "One line"), ("港は閉鎖された。船は待つ。", "jpn", "港は閉鎖された。"),
    ("यह बंद है। कल खुलेगा।", "hin", "यह बंद है।"),
    ("هل تعلم؟ نعم.", "ara", "هل تعلم؟"), ("Version 2.5 is out. It works.", "eng", "Version 2.5 is out."), ("No end", "fra", "No end"),
    ("ท่าเรือปิด " * 20, "tha", ("ท่าเรือปิด " * 8).strip()),
])
def test_the_first_sentence(article, lang, first):
    assert lead(article, lang) == first


def test_languages_files_and_lines_that_are_missing_are_named(tmp_path):
    with pytest.raises(ConfigError, match="task.xlsum: XL-Sum has no Finnish"):
        XlSumTask().check_run(make_run(XlSumTask(), "fin"))
    task = XlSumTask(path=str(tmp_path), shots=1)
    put(tmp_path, "thai_test.jsonl")
    with pytest.raises(ConfigError, match="has no thai_val.jsonl for tha"):
        task.check_run(make_run(task, "tha"))
    own = XlSumTask(path=str(tmp_path))
    for change, what in (({"summary": " "}, "'summary' is missing or empty"), ({"text": None}, "'text' is missing or empty")):
        path = put(tmp_path, "thai_test.jsonl", [*ROWS[:2], {**ROWS[2], **change}])
        with pytest.raises(XalignError, match=f"{path}:3: {what}; use XL-Sum's official file"):
            own.check_run(make_run(own, "tha"))
    path.write_text(json.dumps(ROWS[0]) + "\n{\n", encoding="utf-8")
    with pytest.raises(XalignError, match=f"{path}:2: not valid JSON"):
        own.check_run(make_run(own, "tha"))


def test_the_hub_s_rows_are_the_official_lines(tmp_path):
    test, val = XlSumTask(shots=2).hub("zho", "eng")
    assert (test.path, test.config) == ("chinese_simplified_test.jsonl", "chinese_simplified")
    assert (test.repo, test.split) == ("csebuetnlp/xlsum", "test")
    assert (val.path, val.split) == ("chinese_simplified_val.jsonl", "validation")
    (tmp_path / test.path).write_text(test.write(ROWS), encoding="utf-8")
    assert list(read_jsonl(tmp_path / test.path)) == ROWS
    _, items = XlSumTask(path=str(tmp_path)).load(tmp_path, "zho", "eng")
    assert len(items) == 4
