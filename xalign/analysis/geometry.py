"""How near translations lie in a model's space: retrieval, cosine margin, linear CKA, and maps in two dimensions. NumPy, no torch.

The three measures take the vectors of N sentences and of their translations, ``a`` and ``b`` [N, H], row i of one the translation of
row i of the other, and give a `Measured`: the value and each sentence's part in it, so that means over layers and differences between
two models have standard errors over sentences.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

TIED = 1e-9  # cosines closer than this are one
FLAT = 1e-12  # of a set of vectors: share of its sum of squares that is not its mean; below, all vectors are one
FEWEST = 5  # sentences: leaving one out has to leave four, which the debiased CKA needs


@dataclass(frozen=True)
class Measured:
    """A value over N sentences.

    Attributes:
        value: NaN where it does not exist.
        parts: [N], each sentence's own score (retrieval) or jackknife pseudo-value (margin, CKA). Parts of several layers of the same
            sentences may be averaged, and parts of two models subtracted: the spread of the result gives its error.
    """

    value: float
    parts: np.ndarray

    @property
    def se(self) -> float:
        """Standard error of the value over sentences; NaN where there is none."""
        return float(self.parts.std(ddof=1) / np.sqrt(len(self.parts)))


def mean(several: list[Measured]) -> Measured:
    """The mean over measurements of the same sentences, e.g. over layers; those without a value are left out."""
    found = [m for m in several if np.isfinite(m.value)]
    if not found:
        return several[0]
    return Measured(float(np.mean([m.value for m in found])), np.mean([m.parts for m in found], axis=0))


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors [N, H] of length 1; one of zeros stays."""
    x = np.asarray(x, dtype=np.float64)
    size = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(size > 0, size, 1)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines [N, N] of every row of `a` with every row of `b`; 0 for a vector of zeros."""
    return unit(a) @ unit(b).T


def centred(x: np.ndarray) -> np.ndarray:
    """Vectors without their mean: of one language's, what all its sentences share, first of all the language itself."""
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(0)


def retrieval(a: np.ndarray, b: np.ndarray) -> Measured:
    """Retrieval@1 by cosine, the mean of both directions; chance is 1/N.

    A sentence's score is 1 if its translation is the nearest of the N, 0 if not, and a share where several are equally near (as the
    input embeddings of final full stops are).
    """
    near = cosines(a, b)
    scores = [nearest(near), nearest(near.T)]
    parts = np.mean(scores, axis=0)
    return Measured(float(parts.mean()), parts)


def nearest(near: np.ndarray) -> np.ndarray:
    """[N] one direction of `retrieval` from the cosines [N, N]: rows ask, columns are what is found."""
    best = near >= near.max(1, keepdims=True) - TIED
    return np.diagonal(best) / best.sum(1)


def margin(a: np.ndarray, b: np.ndarray) -> Measured:
    """The mean cosine of translations minus that of all pairs which are none.

    The pseudo-values are the exact jackknife's: a sentence stands in one matching and in 2(N-1) other pairs.
    """
    near, n = cosines(a, b), _enough(a, b)
    own = np.diagonal(near)
    others = ((near.sum(0) + near.sum(1)) / 2 - own) / (n - 1)  # of sentence i, with those that are not its translation
    value = own.mean() - others.mean()
    without = (n * own.mean() - own) / (n - 1) - (n * others.mean() - 2 * others) / (n - 2)
    return Measured(float(value), n * value - (n - 1) * without)


def cka(a: np.ndarray, b: np.ndarray) -> Measured:
    """Linear CKA with unbiased estimates of the three HSICs; 0 on average for unrelated vectors, however few the sentences.

    Below as many sentences as dimensions the plain CKA of unrelated vectors is far above 0. NaN where one side's vectors are all
    the same. The pseudo-values are the exact jackknife's.

    Source: Kornblith et al. 2019 (similarity of neural network representations), Song et al. 2012, equation 5 (unbiased HSIC).
    """
    n = _enough(a, b)
    if flat(a) or flat(b):
        return Measured(float("nan"), np.full(n, np.nan))
    grams = [_gram(x) for x in (a, b)]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    pairs = [_hsic(*pair) for pair in ((grams[0], grams[1]), (grams[0], grams[0]), (grams[1], grams[1]))]
    (both, one, other), left = zip(*pairs, strict=True)
    if one <= 0 or other <= 0:
        return Measured(float("nan"), np.full(n, np.nan))
    value = both / np.sqrt(one * other)
    below = left[1] * left[2]
    without = left[0] / np.sqrt(np.where(below > 0, below, np.nan))
    return Measured(float(value), n * value - (n - 1) * without)


def plain_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA as usually printed, |A'B|² / (|A'A| |B'B|) with centred features; biased upwards for few sentences, see `cka`.

    Source: Kornblith et al. 2019, section 3; NaN where one side's vectors are all the same.
    """
    if flat(a) or flat(b):
        return float("nan")
    one, other = _gram(a), _gram(b)
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


def flat(x: np.ndarray) -> bool:
    """True if all vectors are the same one."""
    return float((centred(x) ** 2).sum()) <= FLAT * float((np.asarray(x, dtype=np.float64) ** 2).sum())


def _enough(a: np.ndarray, b: np.ndarray) -> int:
    if np.shape(a)[0] != np.shape(b)[0] or len(a) < FEWEST:
        raise ValueError(f"needs {FEWEST} sentences and a translation of each, found {np.shape(a)[0]} and {np.shape(b)[0]}")
    return len(a)


def _gram(x: np.ndarray) -> np.ndarray:
    """Products [N, N] of the centred vectors, scaled so that their squares do not overflow."""
    x = centred(x)
    return x @ x.T / (x**2).mean()


def _hsic(k: np.ndarray, m: np.ndarray) -> tuple[float, np.ndarray]:
    """Unbiased HSIC of two Gram matrices with zero diagonals, and [N] what it is without each sentence."""
    n, rows_k, rows_m, products = len(k), k.sum(1), m.sum(1), (k * m).sum(1)

    def unbiased(n: int, trace: Any, sum_k: Any, sum_m: Any, cross: Any) -> Any:
        return (trace + sum_k * sum_m / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))

    trace, sum_k, sum_m, cross = products.sum(), rows_k.sum(), rows_m.sum(), rows_k @ rows_m
    without = unbiased(n - 1, trace - 2 * products, sum_k - 2 * rows_k, sum_m - 2 * rows_m,
                       cross - rows_k * rows_m - m @ rows_k - k @ rows_m + products)
    return float(unbiased(n, trace, sum_k, sum_m, cross)), without


def tsne(x: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """(coordinates [N, 2], perplexity) by scikit-learn's t-SNE, started from PCA; perplexity 30, less for fewer than 91 vectors.

    Source: van der Maaten and Hinton 2008, as SDRRL's Figure 2 uses it.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(np.asarray(x, dtype=np.float32)), perplexity


def pca(x: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """(coordinates [N, 2], share of the variance that each of the two axes explains)."""
    from sklearn.decomposition import PCA

    fitted = PCA(2, svd_solver="full")
    return fitted.fit_transform(np.asarray(x, dtype=np.float64)), [float(v) for v in fitted.explained_variance_ratio_]
