"""Data allocation: two solvers against each other and against a grid, rounding, refusals."""
from __future__ import annotations

import itertools
import random

import pytest

from xalign.analysis.allocation import STRATEGIES, Law, allocate, closed_form, level, slsqp, whole
from xalign.config import XalignError

LAWS = {"ara": Law(280, -0.25, 0.6), "hin": Law(900, -0.4, 0.4), "tur": Law(350, -0.3), "vie": Law(150, -0.2, 0.8)}
AVAILABLE = {"ara": 1_097_200, "hin": 234_300, "tur": 477_700, "vie": 1_073_800}


def mean_score(rows: dict[str, float], laws: dict[str, Law]) -> float:
    """Mean of 100 - alpha (gamma X)^beta."""
    return sum(100 - laws[k].alpha * (laws[k].gamma * x) ** laws[k].beta for k, x in rows.items()) / len(rows)


def problems(n: int) -> list[tuple[int, dict[str, int], dict[str, Law]]]:
    """Random laws, with some languages short of data."""
    rng = random.Random(3)
    found = []
    for _ in range(n):
        names = "abcdefgh"[:rng.randint(2, 8)]
        laws = {k: Law(rng.uniform(50, 800), -rng.uniform(0.05, 0.9), rng.uniform(0.1, 1)) for k in names}
        available = {k: rng.randint(1, 10 ** rng.randint(3, 6)) for k in names}
        found.append((rng.randint(len(names), sum(available.values())), available, laws))
    return found


def test_the_two_solvers_agree() -> None:
    for budget, available, laws in [(600_000, AVAILABLE, LAWS), *problems(100)]:
        a, b = closed_form(budget, available, laws), slsqp(budget, available, laws)
        assert a == pytest.approx(b, rel=1e-6) and sum(a.values()) == pytest.approx(budget, rel=1e-9)
        assert all(0 <= a[k] <= available[k] for k in available)


def test_a_solution_obeys_the_conditions_of_an_optimum() -> None:
    """One more row gains the same everywhere, and at least as much where there is none left."""
    rows = closed_form(1_200_000, AVAILABLE, LAWS)
    gain = {k: (LAWS[k].alpha * LAWS[k].gamma ** LAWS[k].beta) * -LAWS[k].beta * x ** (LAWS[k].beta - 1) for k, x in rows.items()}
    assert rows["hin"] == AVAILABLE["hin"] and gain["hin"] > gain["ara"]
    assert gain["ara"] == pytest.approx(gain["tur"], rel=1e-9) == pytest.approx(gain["vie"], rel=1e-9)


def test_no_other_whole_split_is_better() -> None:
    laws, available = {"a": Law(90, -0.5), "b": Law(90, -0.5, 0.2), "c": Law(30, -0.8)}, {"a": 40, "b": 17, "c": 40}
    best = allocate("optimised", 50, available, laws)
    splits = [{"a": i, "b": j, "c": 50 - i - j} for i, j in itertools.product(range(1, 41), range(1, 18)) if 1 <= 50 - i - j <= 40]
    top = max(splits, key=lambda s: mean_score(s, laws))
    assert best["b"] == top["b"] == 17 and all(abs(best[k] - top[k]) <= 1 for k in best)
    assert mean_score(best, laws) > mean_score(allocate("uniform", 50, available), laws) + 0.05


def test_equal_laws_share_evenly_and_likeness_to_the_source_saves_data() -> None:
    same = dict.fromkeys("abc", Law(200, -0.3, 0.5))
    assert allocate("optimised", 300, dict.fromkeys("abc", 500), same) == dict.fromkeys("abc", 100)
    two = allocate("optimised", 1000, {"a": 5000, "b": 5000}, {"a": Law(100, -0.5), "b": Law(100, -0.5, 0.25)})
    assert two == {"a": 386, "b": 614}  # a is 100 and 200: 1000 / (1 + 2^(2/3)) = 386.49


def test_uniform_and_proportional() -> None:
    available = {"a": 10, "b": 100, "c": 45}
    assert allocate("uniform", 30, available) == {"a": 10, "b": 10, "c": 10}
    assert allocate("uniform", 90, available) == {"a": 10, "b": 40, "c": 40}
    assert allocate("uniform", 120, available) == {"a": 10, "b": 65, "c": 45}
    assert allocate("proportional", 31, available) == {"a": 2, "b": 20, "c": 9}
    assert level(90, available) == {"a": 10, "b": 40, "c": 40}
    for strategy in STRATEGIES:
        assert allocate(strategy, 155, available, dict.fromkeys("abc", Law(100, -0.5))) == available


def test_allocations_are_whole_and_within_bounds() -> None:
    for (budget, available, laws), strategy in itertools.product(problems(60), STRATEGIES):
        rows = allocate(strategy, budget, available, laws)
        assert sum(rows.values()) == budget and all(isinstance(x, int) and 0 <= x <= available[k] for k, x in rows.items())
    assert whole({"a": 1.2, "b": 1.7, "c": 1.1}, 4) == {"a": 1, "b": 2, "c": 1}
    assert whole({"a": 0.5, "b": 0.5, "c": 2.0}, 3) == {"a": 1, "b": 0, "c": 2}
    assert allocate("optimised", 4, {"a": 9, "b": 0}, dict.fromkeys("ab", Law(1, -0.1))) == {"a": 4, "b": 0}
    assert allocate("proportional", 0, {"a": 0}) == {"a": 0}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_than_there_is_is_refused(strategy: str) -> None:
    with pytest.raises(XalignError, match=r"method.budget=16: there are 15 translation rows \(a 10, b 5\); lower it, or give"):
        allocate(strategy, 16, {"a": 10, "b": 5}, dict.fromkeys("ab", Law(100, -0.5)))


def test_wrong_calls_are_named() -> None:
    with pytest.raises(XalignError, match="method.allocation=optimized: must be one of .*; did you mean 'optimised'"):
        allocate("optimized", 1, {"a": 1})
    with pytest.raises(XalignError, match="method.allocation=optimised: needs a scaling law for each of a, b"):
        allocate("optimised", 1, {"a": 1, "b": 1}, {"a": Law(1, -0.1)})
