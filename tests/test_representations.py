"""How near translations lie in a model: the measures against other formulas, and the whole path on random models."""
from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, xalign
from PIL import Image

from xalign.analysis import geometry
from xalign.analysis.significance import paired
from xalign.config import ConfigError, XalignError
from xalign.report.runs import load_runs
from xalign.studies.__main__ import make_study
from xalign.studies.base import present
from xalign.studies.representation_views import Space, gather
from xalign.studies.representations import METRICS, stated


def noise(seed: int, n: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def related(seed: int, n: int = 24, width: int = 10) -> tuple[np.ndarray, np.ndarray]:
    a = noise(seed, n, width) + 3
    return a, 0.7 * a @ noise(99, width, width) + noise(seed + 1000, n, width)


# the measures

def hsic_by_quadruples(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012: the mean over all ordered quadruples of different sentences of k_ij (m_ij + m_qr - 2 m_iq)."""
    n = len(k)
    total = sum(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(n), 4))
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_unbiased_cka_is_the_mean_over_all_quadruples():
    a, b = related(0, n=7, width=4)
    k, m = a @ a.T, b @ b.T
    expected = hsic_by_quadruples(k, m) / math.sqrt(hsic_by_quadruples(k, k) * hsic_by_quadruples(m, m))
    assert geometry.cka(a, b).value == pytest.approx(expected, rel=1e-9)


def test_plain_cka_is_that_of_centred_gram_matrices():
    a, b = related(1)
    h = np.eye(len(a)) - 1 / len(a)
    k, m = h @ a @ a.T @ h, h @ b @ b.T @ h
    assert geometry.plain_cka(a, b) == pytest.approx(np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m)), rel=1e-9)


@pytest.mark.parametrize("measure", [lambda a, b: geometry.cka(a, b).value, geometry.plain_cka])
def test_cka_does_not_feel_rotation_scale_and_shift_of_one_side(measure):
    a, b = related(2)
    turn = np.linalg.qr(noise(5, 10, 10))[0]
    assert measure(a, 1e4 * b @ turn + 7) == pytest.approx(measure(a, b), rel=1e-9)
    assert measure(a, -0.1 * a @ turn) == pytest.approx(1, rel=1e-9)
    assert measure(a, b @ np.diag(range(1, 11))) != pytest.approx(measure(a, b), rel=0.01)  # it does feel unequal scales


def test_unrelated_vectors_have_a_cka_of_zero_only_when_it_is_unbiased():
    """60 sentences, 300 dimensions, as in a model: the plain one calls noise alike."""
    pairs = [(noise(s, 60, 300), noise(s + 500, 60, 300)) for s in range(20)]
    unbiased = [geometry.cka(a, b).value for a, b in pairs]
    assert abs(np.mean(unbiased)) < 3 * np.std(unbiased) / math.sqrt(20) < 0.05
    assert min(geometry.plain_cka(a, b) for a, b in pairs) > 0.7


def test_retrieval_by_hand():
    a = np.array([[1, 0], [0, 1], [1, 1], [-1, 0], [0, -1]])
    b = np.array([[5, 1], [1, 5], [-1, 0.1], [0.1, -1], [0, -9]])
    # from a: the third is nearest to b1 (or b2), the fourth to b3; from b: the third to a4, the fourth to a5
    forward, backward = [1, 1, 0, 0, 1], [1, 1, 0, 0, 1]
    found = geometry.retrieval(a, b)
    assert found.parts.tolist() == [np.mean(pair) for pair in zip(forward, backward)] and found.value == pytest.approx(3 / 5)
    assert found.se == pytest.approx(np.std(found.parts, ddof=1) / math.sqrt(5))
    assert geometry.retrieval(a * [[1], [9], [0.1], [2], [3]], b).value == found.value  # lengths do not count


def test_equally_near_sentences_share_the_hit():
    """Three of five end in the same full stop, which is all that the embeddings of a last token know."""
    a = np.eye(5)[[0, 0, 0, 3, 4]]
    assert geometry.retrieval(a, a).parts.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1])
    assert geometry.retrieval(np.ones((8, 3)), np.ones((8, 3))).value == pytest.approx(1 / 8)


def test_margin_by_hand():
    a, b = related(3)
    cosine = [[x @ y / math.sqrt(x @ x * (y @ y)) for y in b] for x in a]
    n = len(a)
    own = sum(cosine[i][i] for i in range(n)) / n
    others = sum(cosine[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    assert geometry.margin(a, b).value == pytest.approx(own - others)
    assert geometry.margin(np.eye(6), np.eye(6)).value == pytest.approx(1)


@pytest.mark.parametrize("measure", [geometry.margin, geometry.cka])
def test_a_sentences_part_is_the_jackknifes(measure):
    a, b = related(4)
    n, found = len(a), measure(a, b)
    without = [measure(np.delete(a, i, 0), np.delete(b, i, 0)).value for i in range(n)]
    np.testing.assert_allclose(found.parts, [n * found.value - (n - 1) * v for v in without], rtol=1e-8)


def test_the_standard_error_is_the_spread_over_samples():
    found = [geometry.margin(*related(s, n=60)) for s in range(150)]
    assert np.mean([f.se for f in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.2)


def test_no_value_where_all_vectors_are_one():
    one = geometry.cka(np.ones((9, 4)), noise(0, 9, 4))
    assert math.isnan(one.value) and math.isnan(geometry.plain_cka(np.ones((9, 4)), noise(0, 9, 4)))
    both = geometry.mean([one, geometry.cka(*related(0, n=9, width=4))])  # over layers: of those that have one
    assert both.value == geometry.cka(*related(0, n=9, width=4)).value
    with pytest.raises(ValueError, match="needs 5 sentences"):
        geometry.cka(np.eye(4), np.eye(4))


def test_pca_is_numpys_svd():
    x = noise(7, 40, 12) * np.arange(12, 0, -1)
    places, explained = geometry.pca(x)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(u[:, :2] * s[:2]), rtol=1e-8)
    assert explained == pytest.approx(s[:2] ** 2 / (s**2).sum())


def test_tsne_is_seeded_and_keeps_clusters_together():
    x = np.concatenate([noise(1, 12, 5), noise(2, 12, 5) + 30])
    (one, perplexity), (again, _) = geometry.tsne(x, 3), geometry.tsne(x, 3)
    np.testing.assert_array_equal(one, again)
    assert perplexity == pytest.approx(23 / 3)
    middle = one[:12].mean(0), one[12:].mean(0)
    assert all(np.linalg.norm(p - middle[i // 12]) < np.linalg.norm(p - middle[1 - i // 12]) for i, p in enumerate(one))


def test_the_stated_layers_are_fixed_by_the_depth():
    assert stated(30) == {"first": 1, "quarter": 8, "middle": 15, "three quarters": 22, "last": 30}
    assert list(stated(2).values()) == [1, 2] and stated(1) == {"last": 1} and stated(2)["last"] == 2


# the whole path, on random models

WORDS = ("red", "old", "cold", "fast", "deep", "kind"), ("lamp", "river", "house", "song")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 24 sentences in English and, word for word, in "Finnish"; other ones in "Japanese"."""
    folder = tmp_path_factory.mktemp("texts") / "multiway"
    folder.mkdir()
    lines = [f"The {adjective} {noun} is {len(adjective) * len(noun)} years old." for adjective, noun in itertools.product(*WORDS)]
    for lang, own in {"eng": lines, "fin": lines, "jpn": [line.upper()[::-1] for line in lines]}.items():
        (folder / f"{lang}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
    return folder


def study(texts: Path, **settings) -> list[str]:
    return ["study=representations", "study.text=files", f"study.path={texts}", *(f"study.{k}={v}" for k, v in settings.items())]


@pytest.fixture(scope="module")
def made(texts: Path, cache: Path, parallel_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a tiny training run and a tiny encoder as it is have left their runs; one process, so that torch comes once."""
    root = tmp_path_factory.mktemp("made")
    commands = [["method=t_sft", "lang=fin", *TINY, f"parallel.path={parallel_files}", *study(texts, draw=10)],
                ["mode=study", "backbone=tiny_encoder", "lang=[fin,jpn]", "tracker=none", *study(texts)]]
    code = "import json, sys; from xalign.__main__ import main; sys.exit(any([main(c) for c in json.loads(sys.argv[1])]))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps([[*c, f"cache={cache}"] for c in commands])], cwd=root, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Translations in the model's space: 24 lines of multiway") == 2
    return root / "runs"


@pytest.fixture(scope="module")
def trained(made: Path) -> Path:
    return next(made.glob("t_sft-fin-tiny-*"))


@pytest.fixture(scope="module")
def encoder(made: Path) -> Path:
    return next(made.glob("study-representations-fin_jpn-*"))


def test_a_run_measures_both_models_in_every_layer(trained: Path):
    for when in ("before", "after"):
        folder = trained / "study" / "representations" / when
        records = [json.loads(line) for line in (folder / "layers.jsonl").read_text().splitlines()]
        assert {(r["layer"], r["pooling"]) for r in records} == {(layer, p) for layer in (0, 1, 2, "mean") for p in ("mean", "last")}
        assert all(r["n"] == 24 and r["lang"] == "fin" for r in records)
        # the same words in both languages: the same vectors, whatever the model is
        for layer in (0, 1, 2, "mean"):
            values = {r["metric"]: r["value"] for r in records if (r["layer"], r["pooling"]) == (layer, "mean")}
            assert values["retrieval@1"] == values["retrieval@1_centred"] == 1 and values["cka"] == pytest.approx(1, abs=1e-5)
        last = {r["metric"]: r["value"] for r in records if (r["layer"], r["pooling"]) == (0, "last")}  # all end in a full stop
        assert last["retrieval@1"] == pytest.approx(1 / 24, abs=1e-5) and last["cka"] is None and last["cka_plain"] is None
        points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
        assert {(p["map"], p["layer"]) for p in points} == {("tsne", 2), ("pca", 1), ("pca", 2)} and len(points) == 3 * 2 * 24
        assert all(p["x"] is not None and p["y"] is not None for p in points)
        pca = {(p["lang"], p["id"]): (p["x"], p["y"]) for p in points if (p["map"], p["layer"]) == ("pca", 2)}
        assert all(pca["fin", i] == pytest.approx(pca["eng", i], abs=1e-4) for lang, i in pca if lang == "eng")
        assert not list(folder.glob("*.np*"))


def test_its_rows_are_means_over_layers_with_n_signature_and_a_paired_test(trained: Path):
    rows = [r for r in map(json.loads, (trained / "rows.jsonl").read_text().splitlines()) if r["task"] == "representations"]
    assert {r["metric"] for r in rows} == {*METRICS, "retrieval@1_last_token", "margin_last_token"}
    assert all(r["lang"] == "fin" and r["n"] == 24 and "text:file:multiway" in r["signature"] for r in rows)
    after = {r["metric"]: r for r in rows if r["when"] == "after"}
    assert after["retrieval@1"]["value"] == 1 and after["retrieval@1"]["p"] == 1 and after["retrieval@1"]["pairs"] == 24
    assert "layers:1-2,mean" in after["cka"]["signature"] and "layer:2/2" in after["retrieval@1_last_token"]["signature"]
    chance = [r["value"] for r in rows if r["when"] == "baseline:chance"]
    assert chance and chance == pytest.approx([1 / 24] * len(chance))
    space = {when: Space(trained / "study" / "representations" / when) for when in ("before", "after")}
    margins = [space[when].parts("fin", "mean", "mean", "margin") for when in ("before", "after")]
    assert after["margin"]["diff_se"] == pytest.approx(paired(*margins).se) and "p" not in after["margin"]


def test_the_findings_of_one_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = make_study("representations", {"draw": 10}).findings(load_runs([trained]))
    present(found, tmp_path)
    grid, = found.grids
    assert grid.rows[0] == ["Finnish and English"] and [row[0] for row in grid.rows[1:]] == [
        "middle (1)", "last (2)", "mean of layers", "last (2), last token"]
    assert all(len(row) == len(grid.columns) == 15 for row in grid.rows[1:])
    assert grid.rows[1][1].startswith("1.000") and "over the 8 tests" in " ".join(grid.notes)
    assert [p.name for p in found.plots] == ["layers", "tsne", "pca"]
    for plot in found.plots:
        assert Image.open(tmp_path / f"{plot.name}.png").width > 600 and plot.caption and "multiway" in plot.caption
    curves, tsne, pca = found.plots
    assert [t.get_text() for t in curves.legends[0].get_texts()] == ["Finnish, untrained", "Finnish, t_sft"]
    assert [a.get_title(loc="left").split("\n")[0] for a in tsne.axes] == ["untrained", "t_sft"] and len(pca.axes) == 4
    assert all(len(c.get_segments()) == 10 for a in tsne.axes for c in a.collections[:1])  # a line from each drawn sentence
    written = list(csv.DictReader((tmp_path / "layers.csv").read_text().splitlines()))
    assert len(written) == 2 * 2 * (3 * 5 + 4) and {r["when"] for r in written} == {"before", "after"}


def relabelled(run: Path, to: Path, **changes) -> Path:
    """A copy of a run under another method or seed."""
    shutil.copytree(run, to)
    rows = [json.loads(line) | {"run": to.name} | changes for line in (run / "rows.jsonl").read_text().splitlines()]
    (to / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = (run / "config.yaml").read_text()
    if "method" in changes:
        text = text.replace("method: t_sft", f"method: {changes['method']}")
    if "seed" in changes:
        text = text.replace("\nseed: 0", f"\nseed: {changes['seed']}")
    (to / "config.yaml").write_text(text)
    (to / "run.json").write_text("{}")  # what is written by hand has no digests
    return to


def test_several_runs_are_systems_with_one_untrained_model(trained: Path, tmp_path: Path):
    other = relabelled(trained, tmp_path / "sft-fin-tiny-s0-00000000", method="sft")
    again = relabelled(trained, tmp_path / "t_sft-fin-tiny-s1-00000001", seed=1)
    found = make_study("representations").findings(load_runs([trained, other, again]))
    entries, _ = gather(load_runs([trained, other, again]))
    assert {e.label: len(e.spaces["fin"]) for e in entries} == {"sft": 1, "t_sft": 2}
    assert [t.get_text() for t in found.plots[0].legends[0].get_texts()] == ["untrained", "sft", "t_sft"]
    assert [a.get_title(loc="left").split("\n")[0] for a in found.plots[1].axes] == ["untrained", "sft", "t_sft"]
    assert found.grids[0].columns[0] == "model" and "over the 16 tests" in " ".join(found.grids[0].notes)
    empty = tmp_path / "empty"
    shutil.copytree(other, empty, ignore=shutil.ignore_patterns("study"))
    found = make_study("representations").findings(load_runs([trained, empty]))
    assert any(note.startswith("left out, without study=representations: ") for note in found.grids[0].notes)


def test_a_backbone_as_it_is_in_two_languages(encoder: Path, tmp_path: Path):
    space = Space(encoder / "study" / "representations" / "before")
    assert space.langs == ["eng", "fin", "jpn"] and space.facts["kind"] == "encoder"
    assert space.value("fin", "mean", 2, "retrieval@1") == (1, 0) and space.value("jpn", "mean", 2, "retrieval@1")[0] < 0.9
    found = make_study("representations").findings(load_runs([encoder]))
    assert [row[0] for row in found.grids[0].rows if len(row) == 1] == ["Finnish and English", "Japanese and English"]
    assert found.grids[0].columns == ["layer", *["value"] * 4]
    assert [t.get_text() for t in found.plots[0].legends[0].get_texts()] == ["Finnish", "Japanese"]
    assert [t.get_text() for t in found.plots[2].legends[0].get_texts()][:3] == ["English", "Finnish", "Japanese"]
    rows = [json.loads(line) for line in (encoder / "rows.jsonl").read_text().splitlines()]
    assert {r["when"] for r in rows} == {"before", "baseline:chance"} and {r["method"] for r in rows} == {"none"}


def test_findings_need_no_torch_and_no_scikit_learn(trained: Path, tmp_path: Path):
    code = ("import sys; from xalign.studies.__main__ import main; assert main(sys.argv[1:]) == 0; "
            "assert not {'torch', 'sklearn', 'transformers'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code, "representations", str(trained), "draw=5", "--out", str(tmp_path)], check=True,
                   stdout=subprocess.DEVNULL)
    assert (tmp_path / "tsne.pdf").is_file()


# what is refused

def test_runs_without_it_are_told_the_command(trained: Path, encoder: Path, tmp_path: Path):
    bare = tmp_path / "t_sft-fin"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("study"))
    with pytest.raises(XalignError, match=r"none of the 1 run has it; compute it with: python -m xalign method=t_sft .*lang=fin.* "
                                          r"study=representations$"):
        make_study("representations").findings(load_runs([bare]))
    other = relabelled(trained, tmp_path / "other")
    for when in ("before", "after"):
        path = other / "study" / "representations" / when / "receipt.json"
        path.write_text(path.read_text().replace('"path": "multiway"', '"path": "ntrex"'))
    with pytest.raises(XalignError, match="show different texts .*24 lines of ntrex.* name runs that show the same ones"):
        make_study("representations").findings(load_runs([trained, other]))
    (other / "study" / "representations" / "after" / "points.jsonl").unlink()
    with pytest.raises(XalignError, match=r"points.jsonl: is missing; repeat the run's command"):
        make_study("representations").findings(load_runs([other]))


@pytest.mark.parametrize("settings, message", [
    ({"sentences": 5}, "study.sentences=5: must be at least 10, or 0 for all there are"),
    ({"draw": 0}, "study.draw=0: must be at least 1"),
    ({"text": "phrases"}, "study.text=phrases: must be one of sentences, questions, files")])
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(ConfigError) as e:
        make_study("representations", settings)
    assert message in str(e.value)


def test_a_template_that_an_encoder_does_not_have_is_refused(texts: Path, cache: Path, tmp_path: Path):
    done = xalign("mode=study", "backbone=tiny_encoder", "lang=fin", f"cache={cache}", *study(texts, instruction="true"), cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "study.instruction=true: backbone=tiny_encoder is an encoder and has no prompt template" in done.stderr
