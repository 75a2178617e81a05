"""Metrics of ranked options: accuracy and mean reciprocal rank."""
from __future__ import annotations

from collections.abc import Sequence

from xalign.metrics.base import Metric


class _Ranking(Metric):
    """Options ranked by a score, highest first.

    Args:
        by: how options are scored: raw (sum of log-likelihoods), tokens or bytes (that sum per token or
            byte), pmi (the sum minus that under a neutral prompt).
        shots: solved examples before the question.
        shots_from: where they are taken from, when that is not obvious.
        asked: which of several prompts; empty: there is one.
    """

    def __init__(self, by: str = "raw", shots: int = 0, shots_from: str = "", asked: str = "") -> None:
        self.by, self.shots, self.shots_from, self.asked = by, shots, shots_from, asked

    @property
    def signature(self) -> str:
        origin = f" from {self.shots_from}" if self.shots and self.shots_from else ""
        return f"options:{self.by}|shots:{self.shots}{origin}|ties:shared{f'|prompt:{self.asked}' if self.asked else ''}"

    def per_example(self, scores: Sequence[Sequence[float]], gold: Sequence[int]) -> list[float | None]:
        """One value an example, from its options' scores and the index of the right one."""
        return [self._one(row, g) for row, g in zip(scores, gold, strict=True)]

    def _one(self, row: Sequence[float], gold: int) -> float:
        raise NotImplementedError


class Accuracy(_Ranking):
    """1 if the right option scores highest; 1/k if it shares the first place with k - 1 others."""

    name = "accuracy"

    def _one(self, row: Sequence[float], gold: int) -> float:
        best = max(row)
        return 1 / sum(s == best for s in row) if row[gold] == best else 0.0


class MRR(_Ranking):
    """1 / rank of the right option; tied options all take their mean rank."""

    name = "mrr"

    def _one(self, row: Sequence[float], gold: int) -> float:
        above, equal = sum(s > row[gold] for s in row), sum(s == row[gold] for s in row)
        return 1 / (above + (equal + 1) / 2)
