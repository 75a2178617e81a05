"""FLORES-101/200 and NTREX-128 in every official shape: reading, both directions, solved examples, scores, bad files, the hub."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import sacrebleu

from xalign.backbones.node import Tiny, TinyEncoder
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError
from xalign.data.examples import read_jsonl
from xalign.data.instructions import translation_prompt
from xalign.languages import LANGUAGES
from xalign.metrics.node import Metrics
from xalign.metrics.statistics import value_of
from xalign.tasks.evaluate import evaluation, per_example
from xalign.tasks.files import fetch
from xalign.tasks.flores import FloresTask, NtrexTask, aligned

NTREX = Path(__file__).parents[1].parent / "shared" / "data" / "ntrex"
ENG = ["The lamp is on the table.", "She sold two boats in May.", "Nobody saw the third train.", "Bread is cheap here."]
FIN = ["Lamppu on pöydällä.", "Hän myi kaksi venettä toukokuussa.", "Kukaan ei nähnyt kolmatta junaa.", "Leipä on täällä halpaa."]
SHAPES = [("devtest/eng_Latn.devtest", "devtest/fin_Latn.devtest", FloresTask), ("devtest/eng.devtest", "devtest/fin.devtest", FloresTask),
          ("newstest2019-src.eng.txt", "newstest2019-ref.fin.txt", NtrexTask), ("eng.txt", "fin.txt", NtrexTask),
          ("NTREX-128/newstest2019-src.eng.txt", "NTREX-128/newstest2019-ref.fin.txt", NtrexTask),
          ("test/eng_Latn.test", "test/fin_Latn.test", NtrexTask)]


def make_run(task, lang: str = "fin", backbone=Tiny(), source: str = "eng") -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=backbone, lang=(lang,), target=lang, source=source, seed=0, metric=Metrics(),
                           evaluated=(lang, source))


def put(folder: Path, name: str, lines: list[str], end: str = "\n") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


@pytest.mark.parametrize("english, finnish, task", SHAPES, ids=[s[1] for s in SHAPES])
def test_every_official_shape_is_read_in_both_directions(tmp_path, english, finnish, task):
    put(tmp_path, english, ENG, "\r\n")
    put(tmp_path, finnish, FIN)
    own = task(path=str(tmp_path), limit=2)
    assert own.lacks(make_run(own), "fin") == ""
    own.check_run(make_run(own))
    solved, items = own.load(tmp_path, "fin", "eng")
    assert not solved and [(i.part, i.lang, i.text, i.references) for i in items] == [
        ("eng-fin", "fin", ENG[0], (FIN[0],)), ("eng-fin", "fin", ENG[1], (FIN[1],)),
        ("fin-eng", "eng", FIN[0], (ENG[0],)), ("fin-eng", "eng", FIN[1], (ENG[1],))]
    assert items[0].prompt == translation_prompt(ENG[0], "eng", "fin") and items[2].prompt == translation_prompt(FIN[0], "fin", "eng")
    assert len({i.id for i in items}) == 4 and items[0].cluster == items[2].cluster != items[1].cluster


def test_the_codes_of_every_release():
    own = FloresTask()
    assert own.files("zho", "ara") == {"test": ("devtest/zho_Hans.devtest", "devtest/zho_simpl.devtest"),
                                       "source": ("devtest/arb_Arab.devtest", "devtest/ara.devtest")}
    assert NtrexTask().files("zho", "ara")["test"][0] == "newstest2019-ref.zho-CN.txt"
    assert NtrexTask().files("zho", "ara")["source"][0] == "newstest2019-ref.arb.txt"


def test_solved_examples_are_of_dev_or_are_taken_out_of_the_test(tmp_path):
    for lang, lines in (("eng", ENG), ("fin", FIN)):
        put(tmp_path, f"devtest/{lang}.devtest", lines)
        put(tmp_path, f"dev/{lang}.dev", lines[::-1])
        put(tmp_path, f"{lang}.txt", lines)
    solved, items = FloresTask(path=str(tmp_path), shots=1).load(tmp_path, "fin", "eng")
    assert {(i.part, i.text) for i in solved} >= {("eng-fin", ENG[3]), ("fin-eng", FIN[3])} and len(items) == 8
    assert not {i.id for i in solved} & {i.id for i in items}
    solved, items = NtrexTask(path=str(tmp_path), shots=1).load(tmp_path, "fin", "eng")
    assert {(i.part, i.text) for i in solved} == {("eng-fin", ENG[0]), ("fin-eng", FIN[0])}
    assert [i.text for i in items] == [*ENG[1:], *FIN[1:]]  # not asked in either direction


def test_scores_of_both_directions_with_copies_beside_them(cache, tmp_path):
    put(tmp_path, "eng.txt", ENG)
    put(tmp_path, "fin.txt", [*FIN[:3], ENG[3]])  # so that copying gets something right
    task = NtrexTask(path=str(tmp_path), max_new_tokens=6)
    run = make_run(task)
    stage = evaluation(run, run.backbone.weights(run), task, "fin", baselines=True)
    artifact = Cache(cache).get(stage)
    scores = {(r["task"], r["metric"], r["name"]): r for r in read_jsonl(artifact.file("scores.jsonl"))}
    for part, into in (("ntrex:eng-fin", "fin"), ("ntrex:fin-eng", "eng")):
        assert {(m, n) for t, m, n in scores if t == part} == {
            *((m, n) for m in ("bleu", "chrf", "chrf++") for n in ("model", "copy")), ("off_target", "model"), ("off_target", "reference")}
        assert scores[part, "bleu", "model"]["n"] == 4 and f"lang:{into}" in scores[part, "bleu", "model"]["signature"]
    text = {"ntrex:eng-fin": (ENG, [*FIN[:3], ENG[3]]), "ntrex:fin-eng": ([*FIN[:3], ENG[3]], ENG)}
    for part, (source, right) in text.items():
        assert scores[part, "chrf++", "copy"]["value"] == pytest.approx(sacrebleu.corpus_chrf(source, [right], word_order=2).score)
        assert scores[part, "bleu", "copy"]["value"] == pytest.approx(sacrebleu.corpus_bleu(source, [right]).score)
    records = list(read_jsonl(Cache(cache).get(stage.inputs[0]).file("predictions.ntrex.jsonl")))
    assert len(records) == 8 and {r["task"] for r in records} == set(text)
    own = [r for r in records if r["task"] == "ntrex:fin-eng"]
    expected = sacrebleu.corpus_chrf([r["prediction"] for r in own], [ENG]).score
    assert scores["ntrex:fin-eng", "chrf", "model"]["value"] == pytest.approx(expected)
    rows = per_example(artifact)["ntrex:fin-eng", "chrf"]  # [value, cluster, statistics] that add up to the corpus score
    assert value_of("chrf", [sum(c) for c in zip(*(row[2] for row in rows.values()), strict=True)]) == pytest.approx(expected)


def test_the_source_language_has_no_translation_of_its_own_and_an_encoder_is_refused(tmp_path):
    put(tmp_path, "eng.txt", ENG)
    put(tmp_path, "fin.txt", FIN)
    task = NtrexTask(path=str(tmp_path))
    assert "eng is the source language" in task.lacks(make_run(task), "eng")
    with pytest.raises(ConfigError, match="task.ntrex: needs a causal backbone: an encoder ranks options and generates nothing"):
        task.check_run(make_run(task, backbone=TinyEncoder()))


def test_a_bad_file_is_named(tmp_path):
    a, b = put(tmp_path, "eng.txt", ENG), put(tmp_path, "fin.txt", FIN[:3])
    task = NtrexTask(path=str(tmp_path))
    with pytest.raises(XalignError, match=f"{b}:3: ends here, but {a} has 4 lines, and the two are aligned by line; use files of one"):
        task.check_run(make_run(task))
    put(tmp_path, "fin.txt", [FIN[0], " ", *FIN[2:]])
    with pytest.raises(XalignError, match=f"{b}:2: is empty, .*NTREX-128's official file"):
        task.check_run(make_run(task))
    b.write_bytes("Leipä\n".encode("latin-1"))
    with pytest.raises(XalignError, match=f"{b}:1: not UTF-8"):
        aligned(a, b, "NTREX-128")
    with pytest.raises(ConfigError, match=f"task.ntrex.path={tmp_path}: has no newstest2019-ref.deu.txt for deu"):
        task.check_run(make_run(task, "deu"))


def test_the_hub_s_rows_become_the_official_file(tmp_path):
    files = FloresTask(shots=2).hub("zho", "eng")
    assert [(f.path, f.repo, f.config, f.split) for f in files] == [
        (f"{split}/{name}.{split}", "openlanguagedata/flores_plus", config, split) for split in ("devtest", "dev")
        for name, config in (("zho_Hans", "cmn_Hans"), ("eng_Latn", "eng_Latn"))]
    assert files[0].write([{"id": 1, "text": "b\nc"}, {"id": 0, "text": "a "}]) == "a\nb c\n"
    folder = tmp_path / "hub"  # in the hub's layout: one file a split
    folder.mkdir()
    (folder / "test.jsonl").write_text('{"eng_Latn": "One.", "fin_Latn": "Yksi."}\n{"eng_Latn": "Two.", "fin_Latn": "Kaksi."}\n')
    for file in NtrexTask().hub("fin", "eng"):
        assert (file.repo, file.config, file.split) == ("mteb/NTREX", "default", "test")
        local = type(file)(file.path, str(folder), None, file.split, file.write)
        assert fetch(local, "main", tmp_path / "made" / file.path) == {"rows": 2, "commit": None}
    assert aligned(tmp_path / "made/newstest2019-src.eng.txt", tmp_path / "made/newstest2019-ref.fin.txt", "NTREX-128") == \
        [("One.", "Yksi."), ("Two.", "Kaksi.")]


@pytest.mark.skipif(not NTREX.is_dir(), reason="the official files are not beside the repository")
def test_the_official_files_can_be_read():
    task = NtrexTask(path=str(NTREX))
    for lang in LANGUAGES:
        if lang != "eng":
            assert task.lacks(make_run(task, lang), lang) == "" and len(task.load(NTREX, lang, "eng")[1]) == 2 * 1997
    solved, items = task.load(NTREX, "fin", "eng")
    assert items[1997].text == "Walesin edustajiston jäsenet pelkäävät näyttävänsä typeryksiltä"
    assert items[1997].references == ("Welsh AMs worried about 'looking like muppets'",)
