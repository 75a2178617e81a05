"""Sharing a budget of translation data among languages (x-LLM section 3.3 and Table 4; ANALYSIS.md)."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xalign.config import ConfigError, XalignError, nearest
from xalign.data.reading import check_file, text_of_file

STRATEGIES = ("uniform", "proportional", "optimised")


@dataclass(frozen=True)
class Law:
    """Scaling law of one language: S(X) = 100 - alpha (gamma X)^beta for X translation rows (x-LLM equation 2)."""

    alpha: float
    beta: float
    gamma: float = 1.0

    @property
    def scale(self) -> float:
        """a of S(X) = 100 - a X^beta."""
        return self.alpha * self.gamma ** self.beta

    def score(self, rows: float) -> float:
        """S(X)."""
        return 100 - self.scale * rows ** self.beta

    def gain(self, rows: float) -> float:
        """S'(X): points that one more row adds."""
        return self.scale * -self.beta * rows ** (self.beta - 1)


@dataclass(frozen=True)
class Budget:
    """How many translation rows there are in all, and who gets them.

    Attributes:
        rows: in all; 0 takes what `given` adds up to.
        strategy: one of `STRATEGIES`.
        laws: language → law, for ``optimised``.
        given: language → rows (whole numbers) or share (adding up to 1); goes before the strategy.
    """

    rows: int
    strategy: str = "uniform"
    laws: Mapping[str, Law] | None = None
    given: Mapping[str, float] | None = None

    def allocate(self, available: Mapping[str, int]) -> dict[str, int]:
        """Rows of each language; see `allocate`."""
        if self.given is None:
            return allocate(self.strategy, self.rows, available, self.laws)
        asked = dict(self.given) if counts(self.given) else whole({k: v * self.rows for k, v in self.given.items()}, self.rows)
        for lang, n in asked.items():
            if n > available[lang]:
                raise XalignError(f"method.allocation_file: asks for {n} translation rows in {lang}, and there are {available[lang]}; "
                                  "lower it, or give more parallel text (parallel.*)")
        return {lang: int(asked[lang]) for lang in available}

    def params(self) -> dict[str, Any]:
        """What decides the shares: part of the key."""
        return asdict(self)


def allocate(strategy: str, budget: int, available: Mapping[str, int], laws: Mapping[str, Law] | None = None) -> dict[str, int]:
    """Share `budget` rows among languages.

    Args:
        strategy: uniform: as evenly as the available rows allow; proportional: to the available rows; optimised: the highest mean
            S(X_i) (`closed_form`).
        available: language → rows that there are.
        laws: for ``optimised``.
    Returns:
        Whole numbers that add up to `budget`, none above what is available.
    Raises:
        XalignError: if there are fewer rows than `budget`, or a law is missing.
    """
    if strategy not in STRATEGIES:
        raise XalignError(f"method.allocation={strategy}: must be one of {', '.join(STRATEGIES)}{nearest(strategy, STRATEGIES)}")
    total = sum(available.values())
    if budget > total:
        counted = ", ".join(f"{lang} {n}" for lang, n in available.items())
        raise XalignError(f"method.budget={budget}: there are {total} translation rows ({counted}); lower it, or give more parallel "
                          "text (parallel.*)")
    if strategy == "uniform":
        shares = level(budget, available)
    elif strategy == "proportional":
        shares = {lang: budget * n / max(total, 1) for lang, n in available.items()}
    else:
        if laws is None or set(available) - set(laws):
            raise XalignError("method.allocation=optimised: needs a scaling law for each of "
                              f"{', '.join(available)}; give them in the file method.law")
        shares = closed_form(budget, available, laws)
    return whole({lang: min(x, available[lang]) for lang, x in shares.items()}, budget)


def level(budget: float, available: Mapping[str, int]) -> dict[str, float]:
    """The same for all, but for those that have less; what they leave goes to the others."""
    shares, left = {}, float(budget)
    for i, lang in enumerate(sorted(available, key=lambda k: available[k])):
        shares[lang] = min(available[lang], left / (len(available) - i))
        left -= shares[lang]
    return {lang: shares[lang] for lang in available}


def closed_form(budget: float, available: Mapping[str, int], laws: Mapping[str, Law]) -> dict[str, float]:
    """The optimum by its KKT conditions: X_i = min((a_i |b_i| / λ)^(1 / (1 - b_i)), available_i), with λ by bisection.

    a_i is `Law.scale`, b_i is beta, λ the gain in score that the last row of every language has in common.
    """
    usable = {lang: n for lang, n in available.items() if n > 0}
    steep = {lang: math.log(laws[lang].scale * -laws[lang].beta) for lang in usable}

    def at(log_gain: float) -> dict[str, float]:
        return {lang: min(math.exp(min((steep[lang] - log_gain) / (1 - laws[lang].beta), 700.0)), n) for lang, n in usable.items()}

    def gain(lang: str, rows: float) -> float:
        return steep[lang] + (laws[lang].beta - 1) * math.log(rows)

    # at the lower end every language takes all it has; at the upper end none takes more than an even share
    low = min((gain(lang, n) for lang, n in usable.items()), default=0.0)
    high = max((gain(lang, max(budget, 1e-9) / len(usable)) for lang in usable), default=0.0)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(at(middle).values()) >= budget:
            low = middle
        else:
            high = middle
    return {lang: at(low).get(lang, 0.0) for lang in available} if usable else dict.fromkeys(available, 0.0)


def slsqp(budget: float, available: Mapping[str, int], laws: Mapping[str, Law]) -> dict[str, float]:
    """The optimum by sequential quadratic programming, over shares z = X / C with the Jacobian: a check on `closed_form`.

    On raw counts SLSQP returns the even split and calls it a success: its steps are lost in the tolerance. So they can be with
    very unequal shares: each is measured by where it starts, first the even split, then what that led to.

    Where scores hardly depend on the shares it stops early: over 2,500 random problems of up to 26 languages and 10^8 rows, within
    1e-6 of the closed form's rows in all but 16, within 2e-5 in those.

    Raises:
        XalignError: if it does not converge.
    """
    import numpy as np
    from scipy.optimize import minimize

    usable = {lang: n for lang, n in available.items() if n > 0}
    z = np.array(list(level(budget, usable).values())) / budget
    most = np.array(list(usable.values())) / budget
    beta, scale = (np.array([getattr(laws[lang], name) for lang in usable]) for name in ("beta", "scale"))

    def improved(start: Any) -> Any:
        loss = scale * (budget * start) ** beta
        loss /= loss.sum()
        found = minimize(lambda u: (loss * u ** beta).sum(), np.ones(len(usable)), jac=lambda u: loss * beta * u ** (beta - 1),
                         method="SLSQP", bounds=[(1e-6, max(m, 1.0)) for m in most / start],
                         constraints={"type": "eq", "fun": lambda u: start @ u - 1, "jac": lambda u: start},
                         options={"ftol": 1e-16, "maxiter": 1000})
        return start * found.x, found

    z, found = improved(improved(z)[0])
    if not found.success:
        raise XalignError(f"data allocation: SLSQP did not converge ({found.message}); look at the scaling laws")
    rows = dict(zip(usable, (budget * z).tolist(), strict=True))
    return {lang: rows.get(lang, 0.0) for lang in available}


def whole(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that add up to `total`: rounded down, then up again where most was lost; none above its share rounded up."""
    shares = {lang: round(x, 6) for lang, x in shares.items()}
    counts = {lang: math.floor(x) for lang, x in shares.items()}
    order = sorted(shares, key=lambda lang: counts[lang] - shares[lang])
    for lang in order[:total - sum(counts.values())]:
        counts[lang] += 1
    return counts


def counts(given: Mapping[str, float]) -> bool:
    """True if the values are numbers of rows, false if they are shares."""
    return all(isinstance(x, int) for x in given.values())


def read_mapping(given: Any, key: str, langs: Sequence[str] | None, holds: str) -> dict[str, Any]:
    """The entries of a YAML or JSON file for each of `langs`.

    Args:
        given: the file, or the mapping itself.
        key: the configuration key that names the file.
        langs: None: all that it has.
        holds: what an entry looks like, for the error message.
    Raises:
        ConfigError: if the file is not there, is not such a mapping, or lacks a language.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path, values = (f"{{{', '.join(map(str, given))}}}", given) if isinstance(given, Mapping) else (given, None)
    file = Path(str(path)).expanduser()
    if values is None:
        check_file(key, path, f"name a YAML or JSON file with {holds} for each language")
    try:
        if values is None:
            values = OmegaConf.to_container(OmegaConf.create(text_of_file(file)))
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError, AssertionError) as e:  # the last: OmegaConf, of a lone number
        reason = (str(e).splitlines() or ["a single value"])[0]
        raise ConfigError(f"{key}={path}: is neither YAML nor JSON ({reason}); it must hold {holds} for each "
                          "language") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{key}={path}: must be a mapping with {holds} for each language")
    if not values and langs is None:
        raise ConfigError(f"{key}={path}: is empty; write {holds} for each language")
    langs = list(map(str, values)) if langs is None else langs
    missing = [lang for lang in langs if lang not in values]
    if missing:
        raise ConfigError(f"{key}={path}: has nothing for {', '.join(missing)}; add {holds} for each language of lang=[{','.join(langs)}]")
    return {lang: values[lang] for lang in langs}


def read_laws(path: Any, key: str, langs: Sequence[str] | None = None) -> dict[str, Law]:
    """The laws of `langs` (None: of all there are): a mapping of language to alpha, beta and (1, if left out) gamma, or a file of that.

    Raises:
        ConfigError: see `read_mapping`; and for a parameter out of its range.
    """
    entry = "{alpha: 300, beta: -0.3, gamma: 0.5}"
    laws = {}
    for lang, values in read_mapping(path, key, langs, entry).items():
        names = set(values) if isinstance(values, dict) else set()
        if not {"alpha", "beta"} <= names <= {"alpha", "beta", "gamma"}:
            raise ConfigError(f"{key}={path}: the law of {lang} must be like {entry}, found {values}")
        for name, (low, high) in {"alpha": (0, math.inf), "beta": (-1, 0), "gamma": (0, 1)}.items():
            x = values.get(name, 1)
            inside = isinstance(x, (int, float)) and not isinstance(x, bool) and (low < x < high or name == "gamma" and x == 1)
            if not inside:
                span = f"above {low}" if high == math.inf else f"in ({low}, {high}{']' if name == 'gamma' else ')'}"
                raise ConfigError(f"{key}={path}: {name} of {lang} is {x}; it must be a number {span} (S(X) = 100 - alpha (gamma X)^beta)")
        laws[lang] = Law(**{name: float(x) for name, x in values.items()})
    return laws


def read_given(path: str, key: str, langs: Sequence[str], budget: int) -> dict[str, float]:
    """What each of `langs` gets: rows (whole numbers), or shares of `budget` (with a decimal point, adding up to 1).

    Raises:
        ConfigError: see `read_mapping`; if they are neither, or do not fit the budget.
    """
    given = read_mapping(path, key, langs, "a number of rows or a share")
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 <= x < math.inf for x in given.values()):
        raise ConfigError(f"{key}={path}: must give numbers of rows or shares, found {given}")
    total = sum(given.values())
    if counts(given):
        if not total or budget not in (0, total):
            raise ConfigError(f"{key}={path}: its rows add up to {total}, and method.budget={budget}; make them the same, or set "
                              "method.budget=0")
        return given
    if not budget:
        raise ConfigError(f"{key}={path}: gives shares, and method.budget=0 says of nothing; set method.budget=N, or give numbers of rows")
    if abs(total - 1) > 0.01:
        raise ConfigError(f"{key}={path}: its shares add up to {total:g} instead of 1; correct them, or give numbers of rows")
    return {lang: x / total for lang, x in given.items()}
