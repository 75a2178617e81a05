"""Paired tests of stored per-example scores, means and corpus metrics alike.

Corpus metrics are computed for many resamples at once: what `xalign.metrics.statistics.value_of` gives, for rows of sums.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xalign.analysis.significance import Paired, paired

Examples = Mapping[str, Sequence[Any]]  # id → [value, cluster(, statistics)]


def are_summed(examples: Sequence[Examples]) -> bool:
    """True if the metric is a function of summed statistics, not a mean."""
    return all(len(row) > 2 for e in examples for row in e.values())


def paired_examples(metric: str, before: Sequence[Examples], after: Sequence[Examples], bootstrap: bool = True) -> Paired | None:
    """`paired` on the examples that all runs share; None if there is none.

    Args:
        before, after: one entry a run, the two systems' runs of one seed at the same place.
    """
    runs = [*before, *after]
    summed = are_summed(runs)
    ids = sorted(i for i in runs[0] if all(i in e and (summed or e[i][0] is not None) for e in runs))
    if not ids:
        return None
    a, b = ([[e[i][2 if summed else 0] for i in ids] for e in side] for side in (before, after))
    return paired(a, b, [runs[0][i][1] for i in ids], value=rows_value(metric) if summed else None,
                  bootstrap=bootstrap)


def rows_value(metric: str) -> Callable[[Any], Any]:
    """The metric as `xalign.analysis.significance.paired` takes it: of [K] or, for the known ones, [..., K] → [...].

    Twenty thousand resamples by sacrebleu's own functions take half a second; by these a hundredth of that.
    """
    from xalign.metrics.statistics import value_of

    known = {"bleu": _bleu, "bleu4": _bleu, "chrf": _chrf, "chrf++": _chrf, "seqeval_f1": _f1, "seqeval_precision": _share,
             "token_accuracy": _share}
    return known.get(re.sub(r"_(raw|tokens|bytes|pmi)$", "", metric)) or partial(value_of, metric)


def _divide(a: np.ndarray, b: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """a / b, and `otherwise` where b is not positive."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), otherwise)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """sacrebleu's BLEU with exponential smoothing; statistics: system and reference length, 4 matches, 4 totals."""
    length, reference, correct, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    halvings = np.cumsum((correct == 0) & (total > 0), -1)
    share = _divide(np.where(correct == 0, 0.5**halvings, correct), total)
    usable = (total > 0).all(-1) & (correct > 0).any(-1)  # else sacrebleu's score is 0
    logs = np.log(np.where(share > 0, share, 1.0)).mean(-1)
    brevity = np.exp(np.minimum(0.0, 1 - _divide(reference, length, np.inf)))
    return np.where(usable, 100 * brevity * np.exp(logs), 0.0)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """sacrebleu's chrF2 and chrF2++; statistics: system, reference and matching n-grams of each order."""
    system, reference, match = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counted = (system > 0) & (reference > 0)
    orders = counted.sum(-1)
    precision, recall = (_divide((_divide(match, side) * counted).sum(-1), orders) for side in (system, reference))
    return 100 * _divide(5 * precision * recall, 4 * precision + recall)


def _f1(sums: np.ndarray) -> np.ndarray:
    return _divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _share(sums: np.ndarray) -> np.ndarray:
    return _divide(sums[..., 0], sums[..., 1])
