"""What every metric gives back: a value with its standard error, its n and the recipe it was made by."""
from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """One value of one metric.

    Attributes:
        value: None when there was nothing to score; `reason` then says why.
        se: standard error; None where it cannot be estimated.
        n: examples behind the value.
        signature: the recipe, ``key:value`` parts joined by ``|``.
    """

    value: float | None
    se: float | None
    n: int
    signature: str
    reason: str | None = None


class Metric:
    """A metric over examples.

    Subclasses give `name`, `signature` and `per_example`; the value of a set is the mean over the
    examples that could be judged, unless a subclass overrides `score`.
    """

    name = ""

    @property
    def signature(self) -> str:
        raise NotImplementedError

    def per_example(self, *columns: Sequence[Any]) -> list[float | None]:
        """One value an example (None: cannot be judged), given one sequence per input."""
        raise NotImplementedError

    def aggregate(self, values: Sequence[float | None], clusters: Sequence[Hashable] | None = None) -> Score:
        """Mean and standard error of per-example values, None left out.

        Args:
            clusters: examples with the same label are not independent (questions on one country): the
                error is then the cluster-robust one.
        """
        labels = range(len(values)) if clusters is None else clusters
        kept = [(v, c) for v, c in zip(values, labels, strict=True) if v is not None]
        n = len(kept)
        if not n:
            return Score(None, None, 0, self.signature, "no example could be judged" if values else "no examples")
        mean = sum(v for v, _ in kept) / n
        sums: dict[Hashable, float] = {}
        for v, c in kept:
            sums[c] = sums.get(c, 0.0) + v - mean
        g = len(sums)
        se = math.sqrt(g / (g - 1) * sum(s * s for s in sums.values())) / n if g > 1 else None
        return Score(mean, se, n, self.signature)

    def score(self, *columns: Sequence[Any], clusters: Sequence[Hashable] | None = None) -> Score:
        """The metric's value on a set of examples; `clusters` as in `aggregate`."""
        return self.aggregate(self.per_example(*columns), clusters)
