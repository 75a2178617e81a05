"""Scores of label sequences and of ranked documents against seqeval, scikit-learn and arithmetic."""
from __future__ import annotations

import math
import random
import warnings

import pytest

from xalign.metrics.labels import SeqevalF1, SeqevalPrecision, TokenAccuracy
from xalign.metrics.retrieval import NDCG
from xalign.metrics.statistics import value_of

GOLD = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG"], ["O", "O"]]
GIVEN = [["B-PER", "I-PER", "O", "B-ORG"], ["O", "B-ORG", "O"], ["B-LOC", "O"]]


def test_entities_by_hand():
    # right: the person; predicted: PER, ORG / ORG / LOC; gold: PER, LOC / ORG
    metric = SeqevalF1()
    assert metric.statistics(GIVEN, GOLD) == [[1, 2, 2], [0, 1, 1], [0, 1, 0]]
    got = metric.score(GIVEN, GOLD)
    assert (got.value, got.n) == (pytest.approx(2 * 1 / (4 + 3)), 3) and got.se > 0
    assert SeqevalPrecision().score(GIVEN, GOLD).value == pytest.approx(1 / 4)
    assert metric.per_example([*GIVEN, ["O"]], [*GOLD, ["O"]]) == [0.5, 0, 0, None]
    assert metric.score([], []).reason == "no examples" and "seqeval:" in metric.signature


def test_values_are_seqeval_s():
    from seqeval.metrics import f1_score, precision_score

    draw = random.Random(0)
    labels = {SeqevalF1: ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"], SeqevalPrecision: ["NOUN", "VERB", "ADJ", "PUNCT"]}
    for kind, names in labels.items():
        gold = [draw.choices(names, k=draw.randint(1, 9)) for _ in range(60)]
        given = [[x if draw.random() < 0.7 else draw.choice(names) for x in row] for row in gold]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # seqeval: NOUN is no B-, I- or O label
            expected = (f1_score if kind is SeqevalF1 else precision_score)(gold, given)
            metric = kind()
            sums = [sum(column) for column in zip(*metric.statistics(given, gold), strict=True)]
            assert metric.score(given, gold).value == pytest.approx(expected) and 0.2 < expected < 0.9
        assert value_of(metric.name, sums) == pytest.approx(expected)


def test_token_accuracy_counts_tokens_not_sentences():
    metric = TokenAccuracy()
    # 2 of 3 and, cut short, 1 of 2: 3 of 5
    got = metric.score([["NOUN", "VERB", "ADJ"], ["NOUN"]], [["NOUN", "VERB", "ADV"], ["NOUN", "VERB"]])
    assert got.value == pytest.approx(3 / 5) and metric.per_example([["NOUN"]], [["NOUN", "VERB"]]) == [0.5]
    assert value_of("token_accuracy", [3, 5]) == pytest.approx(3 / 5)
    # the bootstrap over two clusters draws (1/4), (4/4) or both (5/8): standard deviation about .75 / sqrt(8)
    rows = [[0, 2], [1, 2], [2, 2], [2, 2]]
    assert metric.of(rows, ["a", "a", "b", "b"]).se == pytest.approx(0.75 / math.sqrt(8), rel=0.1)
    with pytest.raises(ValueError, match="sentence 0 has 2 labels for 1 words"):
        metric.score([["NOUN", "VERB"]], [["NOUN"]])


def test_ndcg_by_hand():
    metric = NDCG()
    # ranked 0, 4, 1 by the scores; the ideal is 4, 1, 0
    dcg, ideal = 4 / math.log2(3) + 1 / 2, 4 + 1 / math.log2(3)
    # two tied documents share their ranks: each has the mean discount
    tied = (3 + 0) * (1 + 1 / math.log2(3)) / 2 / 3
    scores, gains = [[0.2, 0.9, 0.1], [1, 1], [5], [1, 2]], [[4, 0, 1], [3, 0], [2], [0, 0]]
    assert metric.per_example(scores, gains) == [pytest.approx(dcg / ideal), pytest.approx(tied), None, 0]
    got = metric.score(scores, gains, clusters=["a", "b", "c", "d"])
    assert got.n == 3 and got.value == pytest.approx((dcg / ideal + tied) / 3) and "gain:linear" in got.signature
