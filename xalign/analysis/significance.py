"""Paired tests on per-example scores, what they could have found, and Holm's correction.

All tests compare two systems on the same examples. Where several examples share a source (the four
questions about one country, two renderings of one sentence) they are resampled together, as one
cluster: treating them as independent would make p too small.
"""
from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_CHUNK = 1000  # resamples held in memory at once


@dataclass(frozen=True)
class Paired:
    """The result of `paired`.

    Attributes:
        diff: mean(after) - mean(before), in the scores' own unit.
        se: cluster-robust standard error of `diff`; NaN with fewer than two clusters.
        p_randomisation: two-sided p of the sign-flip test (exact when there are few clusters).
        p_bootstrap: two-sided p of the paired bootstrap, resamples shifted to the null hypothesis.
        ci_low, ci_high: 95 % percentile bootstrap interval of `diff`; NaN with fewer than two clusters.
        n: number of examples.
        clusters: number of independent units, equal to `n` when no clusters were given.
        discordance: mean squared difference; for 0/1 scores the share of examples on which the two differ.
    """

    diff: float
    se: float
    p_randomisation: float
    p_bootstrap: float
    ci_low: float
    ci_high: float
    n: int
    clusters: int
    discordance: float

    def detectable(self, scale: float = 1.0) -> float:
        """Smallest difference, in the scores' unit, that this comparison would have found with power .8 at alpha .05.

        Uses the effective number of examples: clusters whose members agree count for fewer.

        Args:
            scale: what a perfect score is: 1 for shares, 100 for BLEU and chrF.
        """
        spread = self.discordance - self.diff**2
        effective = min(float(self.n), spread / self.se**2) if self.se > 0 and spread > 0 else float(self.clusters)
        return scale * detectable(effective, self.discordance / scale**2)


def paired(before: Sequence[float], after: Sequence[float], clusters: Sequence[Hashable] | None = None,
           n: int = 10_000, seed: int = 0) -> Paired:
    """Compare two systems on the same examples.

    Args:
        before, after: per-example scores, same order; ``diff = mean(after) - mean(before)``.
        clusters: one label an example; examples with the same label are flipped and resampled together.
        n: number of random sign flips and of bootstrap resamples.
        seed: of both.
    Raises:
        ValueError: for no examples, different lengths, or a score that is not a finite number.
    """
    a, b = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"paired test: needs two score lists of one length, found {a.shape} and {b.shape}")
    if clusters is not None and len(clusters) != len(a):
        raise ValueError(f"paired test: {len(clusters)} cluster labels for {len(a)} examples")
    d = b - a
    if not np.isfinite(d).all():
        raise ValueError("paired test: a score is not a finite number")
    label = np.arange(len(d)) if clusters is None else _codes(clusters)
    sums, sizes = np.bincount(label, weights=d), np.bincount(label).astype(float)
    units, diff = len(sums), float(d.mean())
    rng = np.random.default_rng(seed)
    p_random = _sign_flip(sums, n, rng)
    if units < 2:
        se = p_boot = low = high = float("nan")
    else:
        residual = sums - diff * sizes
        se = float(np.sqrt(units / (units - 1) * (residual**2).sum()) / len(d))
        means = _resample(sums, sizes, n, rng)
        p_boot = float((1 + (np.abs(means - diff) >= abs(diff) - 1e-12).sum()) / (n + 1))
        low, high = (float(v) for v in np.quantile(means, [0.025, 0.975]))
    return Paired(diff, se, p_random, p_boot, low, high, len(d), units, float((d**2).mean()))


def _codes(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels as 0, 1, 2 ... in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels])


def _sign_flip(sums: np.ndarray, n: int, rng: np.random.Generator) -> float:
    """Two-sided p that the clusters' total is this far from 0 when each sign is a fair coin.

    Clusters with total 0 do not change under a flip, so only the others are flipped; when all their
    sign patterns are fewer than `n` they are enumerated and p is exact.
    """
    moving = sums[sums != 0]
    target = abs(moving.sum()) - 1e-9 * np.abs(moving).sum()
    if 2 ** min(len(moving), 60) <= n:
        patterns = (np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving))) & 1
        return float((np.abs((2 * patterns - 1) @ moving) >= target).mean())
    hits = 0
    for start in range(0, n, _CHUNK):
        signs = 2.0 * rng.integers(0, 2, (min(_CHUNK, n - start), len(moving))) - 1
        hits += int((np.abs(signs @ moving) >= target).sum())
    return (1 + hits) / (n + 1)  # the observed pattern is one of the equally likely ones


def _resample(sums: np.ndarray, sizes: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Means [n] of bootstrap resamples of whole clusters."""
    means = []
    for start in range(0, n, _CHUNK):
        pick = rng.integers(0, len(sums), (min(_CHUNK, n - start), len(sums)))
        means.append(sums[pick].sum(1) / sizes[pick].sum(1))
    return np.concatenate(means)


def detectable(n: float, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true difference that a paired test of `n` independent examples finds.

    Solves ``delta * sqrt(n) = z(alpha/2) * sqrt(d) + z(power) * sqrt(d - delta**2)`` for delta, the usual
    sample-size equation of McNemar's test (Connor 1987). With discordance .25: 194 examples show .10,
    398 show .07. A difference needs at least as much discordance as itself, so where the solution
    exceeds `discordance` the equation is solved with d = delta: agreement does not make n large.

    Args:
        n: number of independent examples.
        discordance: share of examples on which the systems differ (0/1 scores), or the mean squared
            difference (scores in [0, 1]).
    Returns:
        The difference in the scores' unit, at most 1.
    """
    if n <= 0:
        raise ValueError(f"detectable: n={n} must be positive")
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    # root of the equation for d = 1; it scales with sqrt(d)
    inner = z_alpha**2 * n - (n + z_power**2) * (z_alpha**2 - z_power**2)
    unit = (z_alpha * n**0.5 + max(inner, 0.0) ** 0.5) / (n + z_power**2)
    return min(unit * max(discordance**0.5, unit), 1.0)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (family-wise error over all of them)."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted
