"""γ of a backbone: multi-way texts, retrieval and cosines between all languages, the study of whole runs."""
from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from xalign.__main__ import main
from xalign.analysis.multiway import check_texts, read_texts, texts_stage
from xalign.analysis.significance import paired
from xalign.cache import Artifact, Cache
from xalign.config import ConfigError, XalignError
from xalign.report.runs import load_runs
from xalign.studies.__main__ import make_study
from xalign.studies.similarity import compare, measure, read

WORDS = {"eng": "The lamp number {} is on.", "fin": "Lamppu numero {} on päällä.", "jpn": "{}番のランプはついています。"}


def run(lang=("fin",), seed: int = 0, source: str = "eng") -> SimpleNamespace:
    return SimpleNamespace(lang=lang, seed=seed, source=source)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Thirty sentences under NTREX's names (English, Finnish), FLORES' (Japanese) and as <iso3>.txt (Chinese)."""
    folder = tmp_path_factory.mktemp("ntrex")
    names = {"newstest2019-src.eng.txt": "eng", "newstest2019-ref.fin.txt": "fin", "devtest/jpn_Jpan.devtest": "jpn", "zho.txt": "jpn"}
    for name, lang in names.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(WORDS[lang].format(i) + "\n" for i in range(30)), encoding="utf-8")
    return folder


# texts

def test_files_of_one_corpus_are_aligned_and_the_seed_picks(files, tmp_path):
    cache = Cache(tmp_path)
    langs = ["eng", "fin", "jpn", "zho"]
    texts = read_texts(cache.get(texts_stage(run(), langs, "files", str(files))))
    assert texts == {lang: [WORDS[lang if lang != "zho" else "jpn"].format(i) for i in range(30)] for lang in langs}
    some = [read_texts(cache.get(texts_stage(run(seed=seed), langs, "files", str(files), 12))) for seed in (0, 1)]
    for found in some:
        numbers = [int("".join(c for c in text if c.isdigit())) for text in found["eng"]]
        assert len(numbers) == 12 and all(a < b for a, b in pairwise(numbers))
        assert found["fin"] == [WORDS["fin"].format(i) for i in numbers] and found["jpn"] == [WORDS["jpn"].format(i) for i in numbers]
    assert some[0] != some[1]
    keys = [texts_stage(run(seed=s), own, "files", str(files)).key for s in (0, 1) for own in (langs, langs[::-1])]
    assert len(set(keys)) == 1  # all texts: neither the seed nor the order of languages matters


def test_questions_are_the_same_fact_in_every_language(tmp_path):
    from xalign.data.lab import by_id, split_of

    artifact = Cache(tmp_path).get(texts_stage(run(), ["eng", "khm", "fin"], "questions", count=25))
    rows = [json.loads(line) for line in artifact.file("texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 25 and artifact.receipt["facts"]["shared"] > 400
    for row in rows:
        assert set(row["texts"]) == {"eng", "fin", "khm"} and split_of(by_id()[row["id"]].territory) == "test"
    assert len({row["texts"]["khm"] for row in rows}) == 25


def test_sentences_are_held_out_ones_that_all_languages_have(tmp_path):
    """On files in the shape of the translations' artifact: one <iso3>.json a language."""
    from xalign.data.lab import sentences

    texts = {f"k{i}": i for i in range(120)}
    for lang, words in (("eng", "The lamp number {} is now on"), ("fin", "Lamppu numero {} on nyt päällä"),
                        ("deu", "Lampe {} ist jetzt an")):
        own = {k: words.format(i) for k, i in texts.items() if lang != "deu" or i % 2}  # German lacks every other one
        (tmp_path / f"{lang}.json").write_text(json.dumps(own), encoding="utf-8")
    stage = texts_stage(run(), ["deu", "eng", "fin"], "sentences")
    out = tmp_path / "out"
    out.mkdir()
    stage.work(out, [Artifact(tmp_path, {})])
    found = read_texts(Artifact(out, {}))
    expected = [p for p in sentences(tmp_path, "eng", "fin", "test") if int(p.id.removeprefix("ha/k")) % 2]
    assert 10 <= len(expected) < 30 and found["eng"] == [p.src for p in expected] and found["fin"] == [p.tgt for p in expected]
    assert all(de.split()[1] == en.split()[3] for de, en in zip(found["deu"], found["eng"], strict=True))
    for lang in ("eng", "fin"):
        own = json.loads((tmp_path / f"{lang}.json").read_text())
        (tmp_path / f"{lang}.json").write_text(json.dumps(dict(list(own.items())[:20])))
    with pytest.raises(XalignError, match=r"deu, eng, fin share only \d texts, 10 are needed; name fewer languages"):
        stage.work(out, [Artifact(tmp_path, {})])


@pytest.mark.parametrize("lang, kind, path, line", [
    (("khm",), "sentences", "", "holds out 0 sentences in khm, 10 are needed; leave khm out of lang, set study.text=questions"),
    (("fin", "hin"), "sentences", "", "holds out 5 sentences in hin"),
    (("fin",), "files", "", "study.path=: is empty"),
    (("fin",), "files", "nowhere", "study.path=nowhere: no such folder"),
    (("fin",), "sentences", "ntrex", "study.path=ntrex: only study.text=files reads a folder, and it is sentences"),
    (("eng",), "questions", "", "lang=eng: is the source language"),
    (("fin",), "words", "", "study.text=words: must be one of sentences, questions, files")])
def test_texts_that_are_not_there_are_refused_before_anything_is_computed(lang, kind, path, line):
    with pytest.raises(ConfigError) as e:
        check_texts(run(lang), ["eng", *(x for x in lang if x != "eng")], kind, path)
    assert line in str(e.value) and "\n" not in str(e.value)


def test_files_that_do_not_fit_together_are_refused(files, tmp_path):
    with pytest.raises(ConfigError, match=r"has no file for tur \(such as tur.txt or newstest2019-ref.tur.txt\)"):
        check_texts(run(), ["eng", "tur"], "files", str(files))
    (tmp_path / "eng.txt").write_text("one\ntwo\n")
    (tmp_path / "fin.txt").write_text("yksi\n")
    with pytest.raises(XalignError, match=r"fin.txt:1: ends here, but .*eng.txt has 2 lines"):
        check_texts(run(), ["eng", "fin"], "files", str(tmp_path))
    (tmp_path / "fin.txt").write_text("yksi\n\n")
    with pytest.raises(XalignError, match=r"fin.txt:2: is empty"):
        check_texts(run(), ["eng", "fin"], "files", str(tmp_path))


# what is measured

def test_retrieval_and_cosines_of_vectors_made_by_hand():
    """Three texts on a circle, as degrees: eng 0 90 180, fin 0 100 120. Cosines by hand, nearest by hand."""
    def at(*degrees: float) -> np.ndarray:
        return np.array([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees])

    found = compare({"eng": at(0, 90, 180), "fin": 7 * at(0, 100, 120)})
    # from eng: 0→0, 90→100, 180→120 are all nearest; from fin: 0→0, 100→90, but 120→90 (30 degrees, not 60)
    assert found["retrieval"] == [[1, 1], [pytest.approx(2 / 3), 1]]
    own = [1, np.cos(np.radians(10)), np.cos(np.radians(60))]
    others = [np.cos(np.radians(d)) for d in (100, 120, 90, 30, 180, 80)]
    np.testing.assert_allclose(found["cosine"], [[1, np.mean(own)], [np.mean(own), 1]])
    assert found["random"][0][1] == pytest.approx(np.mean(others)) == found["random"][1][0]
    assert found["texts"]["fin"]["retrieval"] == [1, 1, 0.5] and found["texts"]["fin"]["mean_cosine"] == pytest.approx(own)
    assert found["n"] == 3 and found["random"][0][0] == pytest.approx(-1 / 3)  # cosines of 0, 90 and 180 degrees: 0, -1, 0


def test_retrieval_and_cosines_agree_with_scikit_learn():
    from sklearn.metrics.pairwise import cosine_similarity
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 6))
    vectors = {lang: base + rng.normal(size=base.shape) * noise for lang, noise in (("eng", 0.3), ("fin", 0.8), ("jpn", 2.0))}
    found, langs = compare(vectors), list(vectors)
    for i, a in enumerate(langs):
        for j, b in enumerate(langs):
            nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors[b]).kneighbors(vectors[a], return_distance=False)[:, 0]
            assert found["retrieval"][i][j] == pytest.approx((nearest == np.arange(40)).mean())
            near = cosine_similarity(vectors[a], vectors[b])
            assert found["cosine"][i][j] == pytest.approx(near.diagonal().mean())
            assert found["random"][i][j] == pytest.approx(near[~np.eye(40, dtype=bool)].mean())
    assert found["retrieval"][0][1] != found["retrieval"][1][0] and 0.1 < found["retrieval"][0][2] < found["retrieval"][0][1] < 1


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    from xalign.backbones.node import Tiny
    from xalign.backbones.states import open_states
    from xalign.backbones.tiny import make_tiny

    folder = tmp_path_factory.mktemp("model")
    make_tiny(folder, width=32, layers=3, vocab=600, seed=0)
    return open_states(folder, Tiny())


def test_the_layer_the_pooling_and_the_centre_are_those_asked_for(backbone):
    from xalign.backbones.states import sentence_vectors

    texts = {lang: [words.format(i * i) for i in range(20)] for lang, words in WORDS.items()}
    every = {lang: sentence_vectors(backbone, own)["last"] for lang, own in texts.items()}
    for layer, centre in ((1, False), (-1, True)):
        found = measure(backbone, texts, list(texts), layer, "last", centre)
        own = {lang: x[layer] - (x[layer].mean(0) if centre else 0) for lang, x in every.items()}
        assert (found["layer"], found["layers"], found["pooling"], found["centre"]) == (layer % 4, 3, "last", centre)
        for name, table in ((k, v) for k, v in compare(own).items() if k in ("retrieval", "cosine", "random")):
            np.testing.assert_allclose(found[name], table, atol=1e-5)
    auto = measure(backbone, texts, list(texts), "auto", "last", True)
    layers = [measure(backbone, texts, list(texts), i, "last", True) for i in range(4)]
    means = [np.mean([np.mean(m["texts"][lang]["retrieval"]) for lang in ("fin", "jpn")]) for m in layers]
    assert auto["by_layer"] == pytest.approx(means) and auto["layer"] == int(np.argmax(means)) and len(set(means)) > 1
    assert auto["retrieval"] == layers[auto["layer"]]["retrieval"]
    with pytest.raises(ConfigError, match=r"study.layer=4: the backbone has the layers 0 \(embeddings\) to 3"):
        measure(backbone, texts, list(texts), 4)


def test_gamma_is_what_was_asked_for_within_its_limits():
    facts = {"langs": ["eng", "fin", "deu", "jpn"], "n": 4, "layer": 2, "layers": 3, "pooling": "mean", "centre": True, "text": "ntrex",
             "texts": {"fin": {"retrieval": [1, 0.5, 0, 0.5], "mean_cosine": [0.2, 0.4, 0.2, 0.4]},
                       "deu": {"retrieval": [1] * 4, "mean_cosine": [0.9] * 4}, "jpn": {"retrieval": [0] * 4, "mean_cosine": [-0.5] * 4}}}
    study = make_study("similarity")
    assert study.gamma(facts, "fin") == (0.5, pytest.approx(np.sqrt(0.5 / 3 / 4)))  # variance of 1 .5 0 .5: .5 / 3
    assert study.gamma(facts, "deu")[0] == 0.99 and study.gamma(facts, "jpn")[0] == 0.01
    assert study.signature(facts) == ("gamma|measure:retrieval@1|directions:both|layer:2/3|pooling:mean|centred:yes|texts:ntrex|to:eng|"
                                      "clip:0.01-0.99")
    cosine = replace(study, measure="mean_cosine")
    assert cosine.gamma(facts, "fin")[0] == pytest.approx(0.3) and cosine.gamma(facts, "jpn")[0] == 0.01
    assert replace(study, measure="constant", constant=0.3).gamma(facts, "fin") == (0.3, None)


# whole runs

@pytest.fixture(scope="module")
def work(tmp_path_factory, cache, files):
    """A folder with three runs: two backbones as they are, and one that is trained for two languages."""
    folder = tmp_path_factory.mktemp("work")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    common = ["study=similarity", f"cache={cache}", "tracker=none"]
    few = [f"task.lab.{k}" for k in ("choice_items=8", "open_items=0", "phrases=0", "sentences=0", "shots=0")]
    for argv in (["mode=study", "backbone=tiny", "lang=[fin,jpn,zho]", "study.text=files", f"study.path={files}", "study.sentences=0"],
                 ["mode=study", "backbone=tiny_encoder", "lang=[fin,khm]", "study.text=questions", "study.sentences=20"],
                 ["method=muit", "backbone=tiny", "lang=[fin,jpn]", "parallel.sentences=0", "data.questions=12", "trainer.max_steps=4",
                  "trainer.lr=0.05", "study.text=questions", "study.sentences=30", "study.layer=2", *few]):
        assert main([*argv, *common]) == 0, argv
    yield folder
    patch.undo()


def folder_of(work: Path, pattern: str) -> Path:
    found, = (work / "runs").glob(pattern)
    return found


def test_a_backbone_as_it_is(work):
    folder = folder_of(work, "study-similarity-fin_jpn_zho-tiny-s0-*")
    facts = read(folder / "study" / "similarity" / "before")
    assert facts["langs"] == ["eng", "fin", "jpn", "zho"] and facts["n"] == 30 and facts["text"].startswith("ntrex")
    assert facts["retrieval"][2][3] == 1 and facts["cosine"][2][3] == pytest.approx(1)  # jpn and zho are the same file
    assert facts["layer"] == int(np.argmax(facts["by_layer"])) and facts["layers"] == 2
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [(r["task"], r["lang"], r["metric"], r["n"], r["when"], r["method"]) for r in rows] == [
        ("similarity", lang, "gamma", 30, "before", "none") for lang in ("fin", "jpn", "zho")]
    for row in rows:
        both = np.mean([facts["retrieval"][0][i := facts["langs"].index(row["lang"])], facts["retrieval"][i][0]])
        assert row["value"] == pytest.approx(min(max(both, 0.01), 0.99)) and row["signature"].startswith("gamma|measure:retrieval@1|")
    gammas = yaml.safe_load((folder / "study" / "similarity" / "gamma.yaml").read_text())
    assert gammas == {r["lang"]: round(r["value"], 4) for r in rows}
    pairs = list(csv.DictReader((folder / "study" / "similarity" / "similarity.csv").open(encoding="utf-8")))
    assert len(pairs) == 12 and {(r["model"], r["when"], r["n"]) for r in pairs} == {("tiny", "before", "30")}
    one = next(r for r in pairs if (r["asks"], r["searched"]) == ("fin", "eng"))
    assert float(one["retrieval_at_1"]) == facts["retrieval"][1][0] and float(one["random_cosine"]) == facts["random"][1][0]
    for name in ("similarity", "similarity_matrix"):
        assert (folder / "study" / "similarity" / f"{name}.png").stat().st_size > 5000


def test_a_sentence_encoder_is_read_in_its_last_layer(work):
    facts = read(folder_of(work, "study-similarity-fin_khm-tiny_encoder-*") / "study" / "similarity" / "before")
    assert facts["layer"] == facts["layers"] == 2 and "by_layer" not in facts and facts["n"] == 20


def test_before_and_after_training_stand_beside_each_other(work):
    folder = folder_of(work, "muit-fin_jpn-tiny-*")
    before, after = (read(folder / "study" / "similarity" / when) for when in ("before", "after"))
    assert before["layer"] == after["layer"] == 2 and before["texts"] != after["texts"]
    rows = [r for r in map(json.loads, (folder / "rows.jsonl").read_text().splitlines()) if r["task"] == "similarity"]
    assert [(r["lang"], r["when"]) for r in rows] == [("fin", "before"), ("jpn", "before"), ("fin", "after"), ("jpn", "after")]
    test = paired(before["texts"]["fin"]["retrieval"], after["texts"]["fin"]["retrieval"])
    assert (rows[2]["diff"], rows[2]["diff_se"], rows[2]["pairs"]) == (pytest.approx(test.diff), pytest.approx(test.se), 30)
    found = make_study("similarity").findings(load_runs([folder]))
    grid, = found.grids
    assert [row[0] for row in grid.rows] == ["Finnish (fin)", "untrained", "muit", "Japanese (jpn)", "untrained", "muit"]
    assert grid.rows[1][-1] == "" and "±" in grid.rows[2][-1] and len(grid.rows[2]) == len(grid.columns)
    assert [p.name for p in found.plots] == ["similarity", "similarity_matrix"]
    points, heat = found.plots
    assert "Finnish" in points.alt and "untrained" in points.alt and "n 30 texts" in points.caption and "layer 2 of 2" in points.caption
    assert [axis.get_title("left") for axis in heat.axes[:2]] == ["untrained", "muit"]
    assert set(yaml.safe_load(found.files["gamma.yaml"])) == {"fin", "jpn"}  # of the untrained backbone alone
    assert yaml.safe_load(found.files["gamma.yaml"])["fin"] == round(min(max(np.mean(before["texts"]["fin"]["retrieval"]), 0.01), 0.99), 4)


def test_several_runs_and_what_can_be_chosen_afterwards(work, tmp_path, capsys):
    runs = [str(p) for p in (work / "runs").glob("*-s0-*")]
    assert main(["study", "similarity", *runs, "measure=constant", "constant=0.4", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "tables.md").read_text()
    assert "tiny\\_encoder" in text and "as asked for, nothing measured" in text
    assert "retrieval@1 of different n cannot be compared" in text
    gammas = {p.name: yaml.safe_load(p.read_text()) for p in tmp_path.glob("gamma*.yaml")}
    assert len(gammas) == 3 and all(set(own.values()) == {0.4} for own in gammas.values())  # two backbones, one in two layers
    assert main(["study", "similarity", runs[0], "layer=1"]) == 2
    assert "study.layer=1: these runs were measured with" in capsys.readouterr().err
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "rows.jsonl").write_text((Path(runs[0]) / "rows.jsonl").read_text())
    (plain / "run.json").write_text("{}")
    assert main(["study", "similarity", str(plain)]) == 2
    assert "none of 1 runs measured it; repeat a run's command with study=similarity" in capsys.readouterr().err
    for name in ("similarity.json", "receipt.json"):
        copytree(runs[0], tmp_path / name)
        (tmp_path / name / "study" / "similarity" / "before" / name).write_text("{")
        assert main(["study", "similarity", str(tmp_path / name)]) == 2
        assert f"{name}: was changed since the run wrote it; repeat the run's command" in capsys.readouterr().err


def test_an_unfit_run_is_one_line_before_torch(tmp_path):
    lines = {"lang=khm": "study.text=sentences: the laboratory holds out 0 sentences in khm",
             "study.layer=3": "study.layer=3: the backbone has the layers 0 (embeddings) to 2; -1 is the last"}
    argv = ["mode=study", "study=similarity", "backbone=tiny", "lang=fin", "tracker=none", f"cache={tmp_path}"]
    code = ("import sys; from xalign.__main__ import main\n"
            f"codes = [main([*{argv!r}, more]) for more in {list(lines)!r}]; assert codes == [2, 2] and 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for got, line in zip(done.stderr.strip().splitlines(), lines.values(), strict=True):
        assert line in got


@pytest.mark.parametrize("key, value, line", [("layer", "best", "study.layer=best: must be auto or a whole number"),
                                              ("layer", 1.5, "study.layer=1.5"), ("constant", 1.0, r"must be in \[0.01, 0.99\]"),
                                              ("measure", "cosine", "did you mean 'mean_cosine'"), ("sentences", 5, "at least 10, or 0")])
def test_wrong_settings(key, value, line):
    with pytest.raises(ConfigError, match=line):
        make_study("similarity", {key: value})
