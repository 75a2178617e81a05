"""Scaling laws out of published allocations (x-LLM Table 4): what these say, what mean scores add, what is left to assume. No torch.

An allocation of C rows that maximises the mean of S_i(X_i) = 100 - a_i X_i^b_i under X_i <= Xmax_i has one number lambda with

    a_i |b_i| X_i^(b_i - 1) = lambda    where X_i < Xmax_i,      >= lambda    where X_i = Xmax_i.

In logarithms, with c_i = log(a_i |b_i|) and s_i = 1 - b_i: c_i - s_i log X_ik = log lambda_k at budget k. From budgets 1 and 2 follow

- the exponents, up to one factor: s_i = L / log(X_i2 / X_i1), where L = log(lambda_1 / lambda_2) is the same for all languages, and
  -1 < b_i < 0 leaves max log(X_i2 / X_i1) < L < 2 min log(X_i2 / X_i1);
- the scales, up to one factor: a_i |b_i| = lambda_1 X_i1^s_i;
- the optimum at every other budget: as lambda falls, log X_i rises in proportion to log(X_i2 / X_i1), whatever L and lambda_1 are. These
  two are needed for scores and gains alone; no allocation depends on them.

The mean score at one budget gives lambda_1, at a second one L too. alpha and gamma cannot be told apart (alpha gamma^b = a): gamma is 1.
A language that has all its rows at every budget but one tells its a_i |b_i| for a given exponent, and of the exponent only that its bound
binds: s_i <= L / log(Xmax_i / X_i1). Further budgets overdetermine all this: least squares on the logarithms.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xalign.analysis.allocation import Law
from xalign.config import XalignError
from xalign.data.reading import text_of_file

ROUNDED = 1e-3  # what there is of a language is often published in thousands: rows this near to it are all of it
ASSUMED_SCORE = 80.0  # the mean score at the smallest budget where none is given
EDGE = 1e-4  # of the range of L, kept from its ends: there an exponent is 0 or -1
SHAPE = "BUDGET: {rows: {LANG: ROWS, ...}, score: MEAN, even: MEAN} for each budget (scores may be left out), and most: {LANG: ROWS}"


@dataclass(frozen=True)
class Optimum:
    """How one budget was shared out.

    Attributes:
        rows: language → rows.
        score: mean over the languages, 0 to 100; None where it is not known.
        even: the same of an even split of the budget. No law is made from it: it shows how well they foretell.
    """

    rows: Mapping[str, float]
    score: float | None = None
    even: float | None = None


@dataclass(frozen=True)
class Recovered:
    """Laws that have the published allocations as their optima.

    Attributes:
        laws: language → law, gamma 1.
        most: language → rows that there are, of those that have them all at some budget: what they got there.
        bound: language → budgets at which it has all its rows.
        betas: language → lowest and highest exponent that the allocations alone allow.
        assumed: sentences about what neither allocations nor scores say.
    """

    laws: dict[str, Law]
    most: dict[str, float]
    bound: dict[str, list[int]]
    betas: dict[str, tuple[float, float]]
    assumed: list[str]


def recover(published: Mapping[int, Optimum], most: Mapping[str, float] | None = None) -> Recovered:
    """The laws behind allocations that were published as optimal; the module's text says how.

    Assumed where nothing says it: of a language with rows to spare at one budget only, s_i is the mean of the others', or what its bound
    allows; without two scores, L is the middle of its range; without any, the mean score at the smallest budget is 80.

    Args:
        published: budget → its optimum, two or more.
        most: language → rows that there are, where that is known.
    Raises:
        XalignError: the allocations are no optima of such laws, or say too little.
    """
    budgets, most = sorted(published), most or {}
    if len(budgets) < 2:
        raise XalignError("fewer than two budgets say nothing about the laws' exponents; give the allocations of two or more")
    langs = list(published[budgets[0]].rows)
    spare = {lang: [published[k].rows.get(lang, 0) < most.get(lang, math.inf) * (1 - ROUNDED) for k in budgets] for lang in langs}
    _check(published, spare, most)
    logs = {lang: [math.log(published[k].rows[lang]) for k in budgets] for lang in langs}
    costs, slopes, prices = _unit_laws(logs, spare)
    assumed = [_complete(lang, logs[lang], spare[lang].index(True), budgets, costs, slopes, prices) for lang in langs if lang not in slopes]
    low, high = 1 / min(slopes.values()), 2 / max(slopes.values())
    if low >= high:
        raise XalignError("no scaling laws with exponents between -1 and 0 share the budgets like this: one language's rows grow by more "
                          "than the square of another's factor; are these optimal allocations?")
    ratio, price = _from_scores(published, logs, costs, slopes, (low, high), assumed)
    laws = {lang: Law(math.exp(price + ratio * costs[lang]) / (ratio * slopes[lang] - 1), 1 - ratio * slopes[lang]) for lang in langs}
    bound = {lang: [k for k, more in zip(budgets, spare[lang], strict=True) if not more] for lang in langs if not all(spare[lang])}
    return Recovered(laws, {lang: float(published[at[0]].rows[lang]) for lang, at in bound.items()}, bound,
                     {lang: (1 - high * slopes[lang], 1 - low * slopes[lang]) for lang in langs}, assumed)


def _check(published: Mapping[int, Optimum], spare: Mapping[str, Sequence[bool]], most: Mapping[str, float]) -> None:
    """Refuse what cannot be optima of the same laws."""
    budgets = sorted(published)
    for k in budgets:
        rows = published[k].rows
        if set(rows) != set(spare) or len(rows) < 2:
            raise XalignError(f"{k:,}: has {', '.join(rows)}, and {budgets[0]:,} has {', '.join(spare)}; give all budgets the same "
                              "languages, two or more")
        if abs(sum(rows.values()) / k - 1) > ROUNDED:
            raise XalignError(f"{k:,}: its rows add up to {sum(rows.values()):,}; correct the budget or the rows")
        for lang, x in rows.items():
            if x < 1 or x > most.get(lang, math.inf) * (1 + ROUNDED):
                there = f" and at most what there is ({most[lang]:,})" if lang in most else ""
                raise XalignError(f"{k:,}: {lang} has {x:,} rows; it must have at least 1{there}")
    for lang, more in spare.items():
        if not any(more):
            raise XalignError(f"{lang}: has all its rows at every budget, which says nothing about its law; leave the language out of the "
                              "budgets")
        for i, (k, after) in enumerate(zip(budgets, budgets[1:], strict=False)):
            x, y = (published[budget].rows[lang] for budget in (k, after))
            if y <= x and (more[i] or more[i + 1]):
                raise XalignError(f"{lang}: has {x:,} rows of {k:,} and {y:,} of {after:,}; by a scaling law the larger budget gives "
                                  "it more, up to what there is (most)")
    scores = [(k, published[k].score) for k in budgets if published[k].score is not None]
    for (k, low), (after, high) in zip(scores, scores[1:], strict=False):
        if not low < high:  # type: ignore[operator]
            raise XalignError(f"the mean score is {low:g} at {k:,} and {high:g} at {after:,}; by scaling laws a larger budget's optimum "
                              "scores higher, leave the scores out")
    if not any(sum(more) > 1 for more in spare.values()):
        raise XalignError("no language has rows to spare at two budgets, which says nothing about exponents; give smaller budgets")


def _unit_laws(logs: Mapping[str, Sequence[float]],
               spare: Mapping[str, Sequence[bool]]) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """(c, s, log lambda) for L = 1 and lambda_1 = 1, of the languages with rows to spare at two budgets or more.

    Raises:
        XalignError: too many languages are at their bounds.
    """
    import numpy as np

    told = [lang for lang, more in spare.items() if sum(more) > 1]
    n, last = len(told), len(spare[told[0]]) - 1
    lines, right = [], []
    for i, lang in enumerate(told):
        for k, x in enumerate(logs[lang]):
            if spare[lang][k]:  # c_i - s_i x - log lambda_k = 0, where the first is 0 and the last -1
                line = np.zeros(2 * n + last - 1)
                line[i], line[n + i] = 1, -x
                if 0 < k < last:
                    line[2 * n + k - 1] = -1
                lines.append(line)
                right.append(-1.0 if k == last else 0.0)
    found, _, rank, _ = np.linalg.lstsq(np.array(lines), np.array(right), rcond=None)
    if rank < 2 * n + last - 1:
        raise XalignError("at some budget too few languages have rows to spare, which leaves the exponents open; leave such budgets out")
    values = found.tolist()
    return dict(zip(told, values, strict=False)), dict(zip(told, values[n:], strict=False)), [0.0, *values[2 * n:], -1.0]


def _complete(lang: str, logs: Sequence[float], at: int, budgets: Sequence[int], costs: dict[str, float], slopes: dict[str, float],
              prices: Sequence[float]) -> str:
    """Set c and s of a language with rows to spare at one budget, its place `at`; returns what was assumed."""
    limits = [(prices[at] - prices[k]) / (logs[k] - logs[at]) for k in range(at + 1, len(budgets))]
    mean = sum(slopes.values()) / len(slopes)
    slopes[lang] = min([mean, *limits])
    costs[lang] = prices[at] + slopes[lang] * logs[at]
    return (f"{lang} has rows to spare at {budgets[at]:,} only, which leaves its exponent open: taken is "
            f"{'the mean of the others' if slopes[lang] == mean else 'the steepest with which its bound still binds'}.")


def _from_scores(published: Mapping[int, Optimum], logs: Mapping[str, Sequence[float]], costs: Mapping[str, float],
                 slopes: Mapping[str, float], limits: tuple[float, float], assumed: list[str]) -> tuple[float, float]:
    """(L, log lambda_1) that fit the mean scores best; adds to `assumed` what they leave open."""
    import numpy as np
    from scipy.optimize import minimize_scalar

    known = [(i, math.log(100 - score)) for i, k in enumerate(sorted(published)) for score in [published[k].score] if score is not None]
    if not known:
        known = [(0, math.log(100 - ASSUMED_SCORE))]
        assumed.append(f"No mean score is given: taken is {ASSUMED_SCORE:g} at {min(published):,}.")
    c, s = (np.array([values[lang] for lang in logs]) for values in (costs, slopes))
    x = np.array([logs[lang] for lang in logs])

    def gaps(ratio: float) -> np.ndarray:
        """log lambda_1 by each score: its logarithm of 100 - S less that of the mean of a X^b at lambda_1 = 1."""
        return np.array([y - math.log(np.mean(np.exp(ratio * (c - s * x[:, i]) + x[:, i]) / (ratio * s - 1))) for i, y in known])

    low, high = limits[0] + EDGE * (limits[1] - limits[0]), limits[1] - EDGE * (limits[1] - limits[0])
    if len(known) > 1:
        ratio = float(minimize_scalar(lambda v: np.var(gaps(v)), bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
        if min(ratio - low, high - ratio) < EDGE * (high - low):
            less = "less" if ratio - low < high - ratio else "more"
            assumed.append(f"The scores rise {less} with the budget than these shares and exponents between -1 and 0 allow: taken are "
                           "exponents at the end of their range, and the scores are not met.")
    else:
        ratio = (low + high) / 2
        assumed.append("Fewer than two mean scores leave the exponents' common factor open: taken is the middle of its range. Predicted "
                       "scores depend on it, allocations do not.")
    return ratio, float(np.mean(gaps(ratio)))


def read_published(path: str) -> tuple[dict[int, Optimum], dict[str, float]]:
    """(budget → optimum, language → rows that there are) from a YAML file like `SHAPE`.

    Raises:
        XalignError: it is not there, or is no such file.
    """
    import yaml

    try:
        values = yaml.safe_load(text_of_file(Path(path).expanduser()))
    except (yaml.YAMLError, RecursionError) as e:
        raise XalignError(f"{path}: is no YAML ({str(e).splitlines()[0]}); write {SHAPE}") from None
    if not isinstance(values, dict):
        raise XalignError(f"{path}: must hold {SHAPE}; write one budget a line")
    most = _numbers(values.pop("most", None) or {}, f"{path}: most")
    found = {}
    for k, entry in values.items():
        if not isinstance(k, int) or k < 1 or not isinstance(entry, dict) or not {"rows"} <= set(entry) <= {"rows", "score", "even"}:
            raise XalignError(f"{path}: '{k}: {entry}' is none of its entries; write {SHAPE}")
        scores = {name: x for name, x in entry.items() if name != "rows"}
        for name, x in scores.items():
            if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x < 100:
                raise XalignError(f"{path}: {k}: {name} is {x}; it must be a number between 0 and 100")
        found[k] = Optimum(_numbers(entry["rows"], f"{path}: {k}: rows"), **scores)
    return found, most


def _numbers(values: Any, where: str) -> dict[str, float]:
    """A mapping of languages to numbers of rows."""
    if not isinstance(values, dict) or any(isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x < math.inf
                                           for x in values.values()):
        raise XalignError(f"{where}: must give languages numbers of rows, found {values}")
    return {str(lang): x for lang, x in values.items()}
