"""Paired tests of two systems on the same examples, over seeds and over languages, and Holm's correction.

Where several examples share a source (the four questions about one country, two renderings of one
sentence) they are swapped and resampled together, as one cluster: treating them as independent would
make p too small. A metric is a mean of per-example scores or any function of summed statistics.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

Value = Callable[[Any], Any]

LOOPED = 1000  # resamples where the metric has to be computed one resample at a time
LANGUAGES_AT_LEAST = 3
_DRAWN = 1_000_000  # random numbers drawn at once


@dataclass(frozen=True)
class Paired:
    """The result of `paired`.

    Attributes:
        diff: the value of `after` minus that of `before`, in the metric's own unit.
        se: standard error of `diff`: cluster-robust for means of one run, else the bootstrap's; NaN with
            fewer than two clusters.
        p_randomisation: two-sided p of the randomisation test (exact when there are few clusters).
        p_bootstrap: two-sided p of the paired bootstrap, resamples shifted to the null hypothesis.
        ci_low, ci_high: 95 % percentile bootstrap interval of `diff`; NaN with fewer than two clusters.
        n: number of examples.
        clusters: number of independent units, equal to `n` when no clusters were given.
        discordance: mean squared difference; for 0/1 scores the share of examples on which the two differ;
            NaN for a function of summed statistics.
        before, after: the two values.
        seeds: runs of each system.
        resamples: of the bootstrap, and of the randomisation unless it enumerated every pattern.
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
    before: float
    after: float
    seeds: int
    resamples: int

    def detectable(self, scale: float = 1.0) -> float:
        """Smallest difference, in the metric's unit, that this comparison would have found with power .8 at alpha .05.

        For means by the effective number of examples: clusters whose members agree count for fewer. For a
        function of summed statistics by the standard error alone: (1.96 + .84) se, at most `scale`.

        Args:
            scale: what a perfect score is: 1 for shares, 100 for BLEU and chrF.
        """
        if np.isnan(self.discordance):
            return float("nan") if np.isnan(self.se) else min(scale, (_z(0.975) + _z(0.8)) * self.se)
        spread = self.discordance - self.diff**2
        effective = min(float(self.n), spread / self.se**2) if self.se > 0 and spread > 0 else float(self.clusters)
        return scale * detectable(effective, self.discordance / scale**2)


def paired(before: Any, after: Any, clusters: Sequence[Hashable] | None = None, n: int = 10_000, seed: int = 0,
           value: Value | None = None, bootstrap: bool = True) -> Paired:
    """Compare two systems on the same examples, by randomisation and by the bootstrap.

    *Randomisation*. Null hypothesis: on every cluster of examples the two systems' results could as well have been
    exchanged. All results of a cluster are exchanged at once, its examples and its seeds, each within its seed: they
    share the text and depend on each other. Nothing is assumed of the metric. It judges the models at hand, with
    the seeds that they had; when seeds differ much, two equal methods come out as different models.

    *Bootstrap*. Clusters are drawn with replacement, and seeds too where there are several, the same ones for both
    systems, so interval and p are about further runs as well. With few seeds that is rough: too careful when runs
    hardly differ (both draws carry the noise of single items), too bold when they differ much (three seeds
    show little of their spread). p counts, in both tails, resampled differences as far from the observed one as that is
    from 0; sacrebleu's ``bs`` counts one tail of absolute differences, about half of this.

    Args:
        before, after: per-example scores [N], their mean is the metric; or with `value` the examples'
            statistics [N, K]. Several runs of each system, seed by seed: [S, N] or [S, N, K].
        clusters: one label an example; examples with the same label are exchanged and resampled together.
        n: number of random exchanges and of bootstrap resamples; at most 1,000 where `value` takes only one
            vector at a time.
        seed: of both tests.
        value: the metric of summed statistics [K]; faster when it also takes [R, K] and gives [R]. The value
            of several runs is the mean of their values.
        bootstrap: False leaves out the bootstrap, half of the time; what it gives is NaN.
    Raises:
        ValueError: for no examples, different shapes, or a score that is not a finite number.
    """
    a, b = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    inner = 1 if value is None else 2
    if a.ndim not in (inner, inner + 1) or a.shape != b.shape or not a.size:
        raise ValueError(f"paired test: needs two score lists of one length, found {a.shape} and {b.shape}")
    if a.ndim == inner:
        a, b = a[None], b[None]
    seeds, count = a.shape[:2]
    if clusters is not None and len(clusters) != count:
        raise ValueError(f"paired test: {len(clusters)} cluster labels for {count} examples")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("paired test: a score is not a finite number")
    label = np.arange(count) if clusters is None else _codes(clusters)
    discordance = float("nan") if value else float(((b - a).mean(0) ** 2).mean())
    if value is None:
        a, b = (np.stack([x, np.ones_like(x)], -1) for x in (a, b))
        metric, many = _mean, True
    else:
        metric, many = _vectorised(value, a[0].sum(0))
    n = n if many else min(n, LOOPED)
    a, b = _by_cluster(a, label), _by_cluster(b, label)  # [units, seeds, K]
    units = len(a)

    def values(sums: np.ndarray) -> np.ndarray:
        """Summed statistics [R, seeds, K] → values [R, seeds]."""
        return np.asarray(metric(sums.reshape(-1, sums.shape[-1])), dtype=float).reshape(sums.shape[:2])

    one, two = values(a.sum(0)[None])[0], values(b.sum(0)[None])[0]
    diff = float((two - one).mean())
    p_random = _randomise(a, b, values, diff, 1e-9 * float(np.abs(one).sum() + np.abs(two).sum()), n, seed)
    se = p_boot = low = high = float("nan")
    if units > 1 and bootstrap:
        diffs = _bootstrap(a, b, values, n, seed)
        p_boot = float((1 + (np.abs(diffs - diff) >= abs(diff) - 1e-12).sum()) / (n + 1))
        low, high = (float(v) for v in np.quantile(diffs, [0.025, 0.975]))
        se = float(diffs.std(ddof=1))
    if units > 1 and value is None and seeds == 1:
        residual = (b - a)[:, 0, 0] - diff * a[:, 0, 1]
        se = float(np.sqrt(units / (units - 1) * (residual**2).sum()) / count)
    return Paired(diff, se, p_random, p_boot, low, high, count, units, discordance, float(one.mean()), float(two.mean()), seeds, n)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _vectorised(value: Value, sums: np.ndarray) -> tuple[Value, bool]:
    """(a function of [R, K], whether `value` itself takes that)."""
    rows = np.stack([sums, sums + 1, sums])
    try:
        many = np.asarray(value(rows), dtype=float)
        if many.shape == (3,) and np.allclose(many, [value(row) for row in rows], rtol=1e-9, atol=1e-12):
            return value, True
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        pass
    return lambda rows: [value(row) for row in rows], False


def _codes(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels as 0, 1, 2 ... in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels])


def _by_cluster(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Statistics [S, N, K] summed within clusters: [units, S, K]."""
    out = np.zeros((label.max() + 1, x.shape[0], x.shape[2]))
    np.add.at(out, label, x.transpose(1, 0, 2))
    return out


def _blocks(n: int, units: int) -> list[tuple[int, int]]:
    """(number, size) of the blocks in which `n` resamples of `units` are drawn."""
    size = max(1, min(n, _DRAWN // units))
    return [(k, min(size, n - k * size)) for k in range(-(-n // size))]


@lru_cache(maxsize=32)
def _signs(units: int, block: int, size: int, seed: int) -> np.ndarray:
    """Fair ±1 [size, units]; kept, since the metrics of one test set share them."""
    return (2 * np.random.default_rng([seed, 0, block]).integers(0, 2, (size, units), dtype=np.int8) - 1).astype(np.int8)


@lru_cache(maxsize=32)
def _counts(units: int, block: int, size: int, seed: int) -> np.ndarray:
    """How often each unit is drawn in each resample, [size, units]; kept like `_signs`."""
    pick = np.random.default_rng([seed, 1, block]).integers(0, units, (size, units))
    flat = (pick + units * np.arange(size)[:, None]).ravel()
    return np.bincount(flat, minlength=size * units).reshape(size, units).astype(np.int32 if units > 30_000 else np.int16)


def _times(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[R, units] times [units, S, K] → [R, S, K]."""
    return (weights.astype(float) @ x.reshape(len(x), x.shape[1] * x.shape[2])).reshape(len(weights), *x.shape[1:])


def _randomise(a: np.ndarray, b: np.ndarray, values: Callable[[np.ndarray], np.ndarray], diff: float, slack: float, n: int,
               seed: int) -> float:
    """Two-sided p that the difference is this large when each cluster's results are exchanged with probability 1/2.

    Clusters on which the systems agree do not change under an exchange; when all patterns of the others are
    fewer than `n` they are enumerated and p is exact. `slack` keeps rounding from separating equal differences.
    """
    total, target = (a + b).sum(0), abs(diff) - slack
    moving = np.flatnonzero((a != b).any((1, 2)))

    def hits(signs: np.ndarray, chosen: np.ndarray) -> int:
        half = _times(signs, chosen)
        return int((np.abs((values((total + half) / 2) - values((total - half) / 2)).mean(1)) >= target).sum())

    if 2 ** min(len(moving), 60) <= n:
        patterns = 2 * ((np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving))) & 1) - 1
        return hits(patterns, (b - a)[moving]) / len(patterns)
    found = sum(hits(_signs(len(a), k, size, seed), b - a) for k, size in _blocks(n, len(a)))
    return (1 + found) / (n + 1)  # the observed pattern is one of the equally likely ones


def _bootstrap(a: np.ndarray, b: np.ndarray, values: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> np.ndarray:
    """Differences [n] of resamples of whole clusters and, where there are several, of seeds."""
    units, seeds, _ = a.shape
    diffs = []
    for k, size in _blocks(n, units):
        counts = _counts(units, k, size, seed)
        each = values(_times(counts, b)) - values(_times(counts, a))
        if seeds > 1:
            each = np.take_along_axis(each, np.random.default_rng([seed, 2, k]).integers(0, seeds, (size, seeds)), 1)
        diffs.append(each.mean(1))
    return np.concatenate(diffs)


@dataclass(frozen=True)
class OverLanguages:
    """The paired t-test over languages.

    Attributes:
        n: languages.
        diff: mean over languages of after minus before.
        t, p: of the two-sided test; None if there is none, and `reason` says why.
    """

    n: int
    diff: float
    t: float | None
    p: float | None
    reason: str = ""


def t_over_languages(before: Mapping[str, float], after: Mapping[str, float]) -> OverLanguages:
    """Paired t-test over the languages that both systems have a score for, as the alignment papers report it.

    The languages are taken as a sample: it says whether a further language would gain, which tests on the items
    of one language do not. It assumes independent, roughly normal differences; related languages are neither.

    Args:
        before, after: language → score of the two systems.
    """
    langs = [lang for lang in before if lang in after]
    a, b = (np.array([side[lang] for lang in langs], dtype=float) for side in (before, after))
    diff = float((b - a).mean()) if langs else float("nan")
    if len(langs) < LANGUAGES_AT_LEAST:
        return OverLanguages(len(langs), diff, None, None, f"it needs {LANGUAGES_AT_LEAST} languages, there are {len(langs)}")
    if np.ptp(b - a) <= 1e-12 * max(1.0, float(np.abs(b - a).max())):
        return OverLanguages(len(langs), diff, None, None, "the difference is the same in every language")
    from scipy.stats import ttest_rel  # takes a second to import

    got = ttest_rel(b, a)
    return OverLanguages(len(langs), diff, float(got.statistic), float(got.pvalue))


def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)


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
    z_alpha, z_power = _z(1 - alpha / 2), _z(power)
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
