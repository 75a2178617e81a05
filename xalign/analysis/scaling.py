"""The scaling law of translation quality and how sure it is (x-LLM section 3.2, equation 2; ANALYSIS.md). No torch.

S(X) = 100 - alpha (gamma X)^beta for X translation rows, with alpha > 0 and -1 < beta < 0, by least squares on
S = 100 - exp(a) (gamma X / 10,000)^beta. In the fit of one language gamma stays 1: it cannot be told from alpha. In a shared fit
the languages have alpha and beta in common, and their given gammas set them apart: all points lie on one curve over gamma X.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from xalign.analysis.allocation import Law
from xalign.analysis.corpus import Examples, are_summed, rows_value
from xalign.config import XalignError

UNIT = 1e4  # rows: powers of gamma X / 10,000 stay near 1
LOWEST, HIGHEST = -1 + 1e-4, -1e-4  # of beta: its range is open
AT_LEAST = 3  # points with different X, one more than there are parameters
LEVEL = 0.95


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: alpha and beta, for X in rows times gamma.
        points: how many it was fitted to.
        rmse: root of the mean squared residual, in points of the score.
        r2: share of the scores' variance that it explains; None where they are all the same.
        bound: the bound that beta ran into, 0 or -1; None if it lies between them.
        alphas, betas: [R], those of the resamples.
    """

    law: Law
    points: int
    rmse: float
    r2: float | None
    bound: int | None
    alphas: np.ndarray = field(repr=False)
    betas: np.ndarray = field(repr=False)

    def interval(self, value: Callable[..., np.ndarray]) -> tuple[float, float] | None:
        """95 % percentile interval of `value(alpha, beta)`; None without resamples."""
        if not len(self.alphas):
            return None
        low, high = np.quantile(value(self.alphas, self.betas), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
        return float(low), float(high)


def score(alpha: np.ndarray, beta: np.ndarray, rows: float) -> np.ndarray:
    """S at `rows` (times gamma)."""
    return 100 - alpha * rows ** beta


def further_rows(alpha: np.ndarray, beta: np.ndarray, rows: float) -> np.ndarray:
    """How many rows (times gamma) more than `rows` raise S by one point; infinite where S is above 99 already."""
    short = alpha * rows ** beta
    with np.errstate(all="ignore"):
        more = rows * (np.where(short > 1, 1 - 1 / np.maximum(short, 1e-300), np.nan) ** (1 / beta) - 1)
    return np.where(short > 1, more, np.inf)


def fit(points: Sequence[tuple[float, float]], errors: np.ndarray | None = None, resamples: int = 2000, seed: int = 0,
        name: str = "scaling law") -> Fit:
    """The law through (gamma X, S), all points with the same weight, and a bootstrap of it.

    A resample is what the law says at every point, plus two errors, fitted again:

    - what other test items would have changed, one row of `errors`: points that share their items move together;
    - what another training would have changed: independent normal errors with the variance that the points scatter by around the
      law beyond what test items explain. So few points hardly know that variance, so every resample draws its own: the sum of squared
      residuals over a chi-square of n - 2 degrees of freedom, as Student's t does. Three or four points thus give wide intervals, as they
      should; without `errors` this is all there is.

    In simulations of four points the intervals hold the true values 94 to 99 % of the time; the surplus is where trainings do not vary.

    Gamma is taken as known. Systematic misfit (the law is not this curve) is seen only as scatter.

    Args:
        errors: [R, points], draws of the error that comes from the choice of test items (`item_errors`, or the points' standard errors).
        resamples: R; 0 leaves the bootstrap out.
        name: of what, for error messages.
    Raises:
        XalignError: for fewer than three different values of gamma X, or values that no law can have.
    """
    x, s = (np.array(column, float) for column in zip(*points, strict=True)) if points else (np.empty(0), np.empty(0))
    if not (np.isfinite(s).all() and np.isfinite(x).all() and (x > 0).all()):
        raise XalignError(f"{name}: a scaling law is fitted to finite scores at more than 0 rows; found {[tuple(p) for p in points]}")
    different = sorted(set(x.tolist()))
    if len(different) < AT_LEAST:
        there = ", ".join(f"{v:g}" for v in different) or "none"
        raise XalignError(f"{name}: a scaling law needs {AT_LEAST} different numbers of translation rows or more, and the runs have "
                          f"{len(different)} ({there}); add runs with other amounts of parallel text")
    if (s >= 100).all():
        raise XalignError(f"{name}: every score is 100, the law's ceiling, and leaves nothing to fit; take a harder test")
    u = np.log(x / UNIT)
    factor, beta, rest = _least_squares(u, (100 - s)[None])
    squares, freedom = float(rest[0]), len(x) - 2
    total = float(((s - s.mean()) ** 2).sum())
    bound = next((round(b) for b in (LOWEST, HIGHEST) if abs(beta[0] - b) < 1e-6), None)
    fitted = factor[0] * np.exp(beta[0] * u)
    rng = np.random.default_rng(seed)
    known = np.zeros((resamples, len(x))) if errors is None else errors[:resamples]
    if resamples:
        explained = _least_squares(u, fitted - known)[2].mean() / freedom
        scatter = np.sqrt(np.maximum(0, squares / rng.chisquare(freedom, len(known)) - explained))
        known = known + scatter[:, None] * rng.standard_normal(known.shape)
    factors, betas, _ = _least_squares(u, fitted - known)
    return Fit(Law(_alpha(factor, beta).item(), beta.item()), len(x), math.sqrt(squares / len(x)),
               1 - squares / total if total > 0 else None, bound, _alpha(factors, betas), betas)


def _alpha(factor: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return factor * UNIT ** -beta


def _least_squares(u: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """exp(a), beta and the sum of squares of y = exp(a + beta u), for many y at once.

    For a given beta the factor exp(a) is a linear problem; what is left is one number in a closed range: the best of a grid, then the
    root of the derivative between its neighbours.

    Args:
        u: [N]; y: [R, N].
    Returns:
        [R] each.
    """
    def at(beta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        curve = np.exp(beta[:, None] * u)
        factor = np.maximum((y * curve).sum(1) / (curve**2).sum(1), 0)
        return factor, factor[:, None] * curve, y - factor[:, None] * curve

    grid = np.linspace(LOWEST, HIGHEST, 101)
    curves = np.exp(grid[:, None] * u)
    explained = np.maximum(y @ curves.T, 0) ** 2 / (curves**2).sum(1)  # the sum of squares of y, less that of the residuals
    best = explained.argmax(1)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(60):
        middle = (low + high) / 2
        _, curve, rest = at(middle)
        rising = (rest * curve * u).sum(1) > 0  # the sum of squares falls with beta
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    beta = (low + high) / 2
    factor, _, rest = at(beta)
    return factor, beta, (rest**2).sum(1)


def item_errors(metric: str, examples: Sequence[Examples], resamples: int) -> np.ndarray | None:
    """What other test items would have changed in each run's score, by the bootstrap: the same items are drawn for all runs.

    The items decide the draws: those of two languages with the same source sentences go together, those of others are independent.

    Args:
        metric: its name in rows.jsonl; examples: one entry a run, id → [value, cluster(, statistics)].
    Returns:
        [resamples, runs] in the metric's unit, around 0; None without two clusters of items that all runs share.
    """
    summed = are_summed(examples)
    ids = [i for i in examples[0] if all(i in e and (summed or e[i][0] is not None) for e in examples)]
    groups = {c: k for k, c in enumerate(sorted({examples[0][i][1] for i in ids}))}
    if len(groups) < 2:
        return None
    seed = zlib.crc32("\n".join(groups).encode())
    drawn = np.random.default_rng(seed).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), resamples)
    value = rows_value(metric) if summed else lambda sums: sums[..., 0] / sums[..., 1]
    scores = []
    for e in examples:
        items = np.array([e[i][2] if summed else [e[i][0], 1.0] for i in ids], float)
        sums = np.zeros((len(groups), items.shape[1]))
        np.add.at(sums, [groups[examples[0][i][1]] for i in ids], items)
        scores.append(value(drawn @ sums))
    found = np.stack(scores, 1)
    return found - found.mean(0)
