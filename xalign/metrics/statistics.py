"""Corpus metrics: values of sums. Each example gives a row of counts; the rows add up, and the sum has a value."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

from xalign.metrics.base import Metric, Score

RESAMPLES = 300


def _sacrebleu(metric: Any) -> Callable[[list[float]], float]:
    return lambda sums: metric._compute_score_from_stats(sums).score


def _f1(sums: list[float]) -> float:
    """From true positives, predicted and gold ones."""
    return 2 * sums[0] / (sums[1] + sums[2]) if sums[0] else 0.0


def _share(sums: list[float]) -> float:
    return sums[0] / sums[1] if sums[1] else 0.0


@lru_cache
def value_function(metric_name: str) -> Callable[[list[float]], float]:
    """The function that turns summed statistics into the metric's value.

    Raises:
        KeyError: the metric has no statistics: its value is the mean over examples.
    """
    metric_name = re.sub(r"_(raw|tokens|bytes|pmi)$", "", metric_name)  # what the options were ranked by
    if metric_name in ("bleu", "bleu4", "chrf", "chrf++"):
        from sacrebleu.metrics import BLEU, CHRF

        return _sacrebleu(BLEU() if metric_name.startswith("bleu") else CHRF(word_order=2 if metric_name == "chrf++" else 0))
    return {"seqeval_f1": _f1, "seqeval_precision": _share, "token_accuracy": _share}[metric_name]


def value_of(metric_name: str, sums: Sequence[float]) -> float:
    """The value of a corpus metric from the sums of its examples' statistics.

    Args:
        metric_name: bleu, bleu4, chrf, chrf++ (0 to 100), seqeval_f1, seqeval_precision, token_accuracy (0 to 1).
        sums: one number a statistic, in the order of the metric's `statistics`.

    Raises:
        KeyError: the metric has no statistics.
    """
    return value_function(metric_name)([float(x) for x in sums])


class CorpusMetric(Metric):
    """A metric whose value is that of the summed `statistics`; the standard error is the bootstrap's over clusters."""

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> list[list[float]]:
        """One row of counts an example."""
        raise NotImplementedError

    def score(self, predictions: Sequence[Any], references: Sequence[Any], *, clusters: Sequence[Hashable] | None = None) -> Score:
        """The corpus score of `predictions`; examples with the same label in `clusters` are drawn together."""
        return self.of(self.statistics(predictions, references), clusters)

    def of(self, rows: Sequence[Sequence[float]], clusters: Sequence[Hashable] | None = None) -> Score:
        """The corpus score of examples whose statistics are `rows`."""
        import numpy as np

        if not len(rows):
            return Score(None, None, 0, self.signature, "no examples")
        sums: dict[Hashable, Any] = {}
        for row, label in zip(rows, range(len(rows)) if clusters is None else clusters, strict=True):
            sums[label] = sums.get(label, 0) + np.asarray(row, dtype=float)
        groups, value = np.stack(list(sums.values())), value_function(self.name)
        se, draw = None, np.random.default_rng(0)
        if len(groups) > 1:
            drawn = [value(groups[draw.integers(len(groups), size=len(groups))].sum(0).tolist()) for _ in range(RESAMPLES)]
            mean = math.fsum(drawn) / RESAMPLES
            se = math.sqrt(math.fsum((x - mean) ** 2 for x in drawn) / (RESAMPLES - 1))
        return Score(float(value(groups.sum(0).tolist())), se, len(rows), self.signature)
