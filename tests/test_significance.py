"""Paired tests against scipy and hand arithmetic; false alarms and power against simulation."""
from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from xalign.analysis.significance import detectable, holm, paired


def test_the_standard_error_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.random(80), rng.random(80)
    got = paired(a, b)
    assert got.diff == pytest.approx(b.mean() - a.mean())
    assert got.se == pytest.approx(stats.sem(b - a))
    assert (got.n, got.clusters) == (80, 80)
    assert got.discordance == pytest.approx(((b - a) ** 2).mean())


def test_randomisation_agrees_with_scipy():
    rng = np.random.default_rng(2)
    a = (rng.random(300) < 0.4).astype(float)
    b = np.where(rng.random(300) < 0.2, 1 - a, a)
    b[:12] = 1
    theirs = stats.permutation_test((b, a), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=20_000, rng=0)
    mine = paired(a, b)
    assert 0.005 < theirs.pvalue < 0.5
    assert mine.p_randomisation == pytest.approx(theirs.pvalue, abs=0.01)
    assert mine.p_bootstrap == pytest.approx(theirs.pvalue, abs=0.03)


def test_few_moving_examples_give_the_exact_sign_test():
    before, after = [0] * 30, [0] * 30
    after[:6] = [1] * 6
    assert paired(before, after).p_randomisation == pytest.approx(stats.binomtest(6, 6).pvalue) == 2 / 64
    after[6], before[6] = 0, 1
    assert paired(before, after).p_randomisation == pytest.approx(stats.binomtest(6, 7).pvalue)


def test_clusters_are_flipped_together():
    """Five clusters of four: exact p over the 2^5 patterns of the cluster sums, not over 2^20."""
    sums = [4, 3, 2, 1, -1]
    before, after, labels = [], [], []
    for label, total in enumerate(sums):
        before += [0 if total > 0 else 1] * 4
        after += [1 if total > 0 else 0] * abs(total) + ([0] if total > 0 else [1]) * (4 - abs(total))
        labels += [f"c{label}"] * 4
    flips = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) >= 9 for signs in product((-1, 1), repeat=5)]
    got = paired(before, after, clusters=labels)
    # all |sums| together are 11; the observed 9 is kept by flipping nothing or one of the two 1s: 3 patterns, 2 directions
    assert sum(flips) == 6 and got.p_randomisation == pytest.approx(6 / 32)
    assert got.p_randomisation > 10 * paired(before, after).p_randomisation
    assert (got.n, got.clusters) == (20, 5)
    residuals = [s - got.diff * 4 for s in sums]
    assert got.se == pytest.approx(math.sqrt(5 / 4 * sum(r * r for r in residuals)) / 20)


def test_the_bootstrap_interval_is_the_normal_one_for_many_examples():
    rng = np.random.default_rng(3)
    a = rng.normal(size=400)
    got = paired(a, a + rng.normal(0.1, 1, 400))
    assert got.ci_low == pytest.approx(got.diff - 1.96 * got.se, abs=0.15 * got.se)
    assert got.ci_high == pytest.approx(got.diff + 1.96 * got.se, abs=0.15 * got.se)


def test_no_difference_is_p_one():
    got = paired([1, 0, 1], [1, 0, 1])
    assert (got.diff, got.se, got.p_randomisation, got.p_bootstrap) == (0, 0, 1, 1)
    assert got.detectable() > 0.5  # three examples show next to nothing, even when they agree


def test_one_cluster_has_no_standard_error_and_shows_nothing():
    got = paired([0, 0], [1, 1], clusters=["a", "a"])
    assert math.isnan(got.se) and math.isnan(got.ci_low) and got.p_randomisation == 1


def test_the_same_seed_gives_the_same_numbers():
    rng = np.random.default_rng(4)
    a, b = rng.random(100), rng.random(100)
    assert paired(a, b, seed=5) == paired(a, b, seed=5)


@pytest.mark.parametrize(("before", "after", "clusters", "says"), [
    ([], [], None, "one length"), ([1], [1, 2], None, "one length"), ([1], [float("nan")], None, "finite"),
    ([1], [1], [], "cluster labels")])
def test_unusable_scores_are_refused(before, after, clusters, says):
    with pytest.raises(ValueError, match=says):
        paired(before, after, clusters=clusters)


def test_a_difference_is_found_by_chance_as_often_as_p_says():
    rng = np.random.default_rng(6)
    found = 0
    for _ in range(300):
        d = rng.choice([-1, 0, 1], p=[0.15, 0.7, 0.15], size=60)
        found += paired(np.zeros(60), d, n=500).p_randomisation < 0.05
    assert found / 300 < 0.085  # .05 plus three standard errors


def test_detectable_is_the_sample_size_equation():
    assert detectable(194, 0.25) == pytest.approx(0.10, abs=0.002)  # both from LAB.md
    assert detectable(398, 0.25) == pytest.approx(0.07, abs=0.002)
    d, delta, n = 0.25, detectable(300, 0.25), 300
    assert delta * math.sqrt(n) == pytest.approx(1.959964 * math.sqrt(d) + 0.841621 * math.sqrt(d - delta**2), rel=1e-5)
    # where nothing differed, the answer is what full discordance in one direction would need
    floor = detectable(400, 0.0)
    assert detectable(400, 0.001) == floor == pytest.approx(0.0194, abs=0.0005)
    assert floor * 20 == pytest.approx(math.sqrt(floor) * (1.959964 + 0.841621 * math.sqrt(1 - floor)), rel=1e-5)
    assert detectable(2, 0.5) == 1.0
    with pytest.raises(ValueError):
        detectable(0, 0.1)


def test_the_detectable_difference_is_detected_four_times_in_five():
    rng = np.random.default_rng(7)
    n, discordance = 200, 0.25
    delta = detectable(n, discordance)
    up, down = (discordance + delta) / 2, (discordance - delta) / 2
    hits = sum(paired(np.zeros(n), rng.choice([1, -1, 0], p=[up, down, 1 - up - down], size=n), n=400).p_randomisation < 0.05
               for _ in range(300))
    assert hits / 300 == pytest.approx(0.8, abs=0.09)


def test_clusters_that_agree_and_the_scale_of_scores_enter_what_is_detectable():
    rng = np.random.default_rng(8)
    d = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=100)
    alone = paired(np.zeros(400), np.repeat(d, 4)).detectable()
    together = paired(np.zeros(400), np.repeat(d, 4), clusters=np.repeat(np.arange(100), 4).tolist()).detectable()
    assert together == pytest.approx(2 * alone, rel=0.1)  # four copies count for one
    percent = paired(np.zeros(100), 100 * d)
    assert percent.detectable(scale=100) == pytest.approx(100 * paired(np.zeros(100), d).detectable())


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
