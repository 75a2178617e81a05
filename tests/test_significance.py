"""Paired tests against scipy, sacrebleu and hand arithmetic; false alarms and power against simulation."""
from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from xalign.analysis.significance import LOOPED, detectable, holm, paired, t_over_languages


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


def ratio(sums):
    """A corpus metric of two statistics, of [2] or [R, 2]."""
    sums = np.asarray(sums, dtype=float)
    return sums[..., 0] / sums[..., 1]


def counts(seed: int, n: int, better: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Matches and lengths [n, 2] of two systems."""
    rng = np.random.default_rng(seed)
    length = rng.integers(5, 40, n)
    a = np.stack([rng.binomial(length, 0.4), length + rng.integers(0, 6, n)], 1)
    b = np.stack([rng.binomial(length, 0.4 + better), length + rng.integers(0, 6, n)], 1)
    return a.astype(float), b.astype(float)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_statistics_of_few_examples_give_scipys_exact_p(seed):
    a, b = counts(seed, 9, 0.05)

    # scipy permutes along the last axis; the two statistics travel together as one complex number
    def packed(x, y, axis=-1):
        x, y = x.sum(axis), y.sum(axis)
        return y.real / y.imag - x.real / x.imag

    theirs = stats.permutation_test((a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1]), packed, permutation_type="samples", vectorized=True)
    mine = paired(a, b, value=ratio)
    assert mine.diff == pytest.approx(theirs.statistic)
    assert 1 / 512 < theirs.pvalue.real < 1
    assert mine.p_randomisation == pytest.approx(theirs.pvalue.real, abs=1e-12)


def test_the_bootstrap_of_statistics_agrees_with_scipys():
    a, b = counts(5, 120, 0.03)

    def difference(index, axis=-1):
        return ratio(b[index.astype(int)].sum(-2)) - ratio(a[index.astype(int)].sum(-2))

    theirs = stats.bootstrap((np.arange(120),), difference, vectorized=True, method="percentile", n_resamples=10_000, rng=1)
    mine = paired(a, b, value=ratio)
    assert mine.se == pytest.approx(theirs.standard_error, rel=0.04)
    assert mine.ci_low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * mine.se)
    assert mine.ci_high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * mine.se)
    assert (mine.before, mine.after) == (pytest.approx(ratio(a.sum(0))), pytest.approx(ratio(b.sum(0))))
    assert mine.detectable() == pytest.approx(2.80 * mine.se, rel=0.01)


def test_a_mean_by_statistics_is_the_mean_by_values():
    rng = np.random.default_rng(9)
    a, b, labels = rng.random(60), rng.random(60) + 0.05, [i // 3 for i in range(60)]
    plain = paired(a, b, labels)
    summed = paired(*(np.stack([x, np.ones(60)], 1) for x in (a, b)), clusters=labels, value=ratio)
    assert (summed.diff, summed.p_randomisation, summed.p_bootstrap) == (
        pytest.approx(plain.diff), plain.p_randomisation, plain.p_bootstrap)
    assert summed.se == pytest.approx(plain.se, rel=0.1)  # the bootstrap's against the formula
    assert math.isnan(summed.discordance) and (summed.clusters, summed.resamples) == (20, 10_000)


def test_a_metric_of_one_vector_is_computed_less_often_and_says_so():
    a, b = counts(11, 200, 0.02)
    one = paired(a, b, value=lambda sums: float(sums[0]) / float(sums[1]))
    many = paired(a, b, value=ratio)
    assert (one.resamples, many.resamples) == (LOOPED, 10_000)
    assert one.p_randomisation == pytest.approx(many.p_randomisation, abs=0.05)


WORDS = [f"word{chr(97 + i)}{i}" for i in range(20)]


def translations(n: int = 150) -> tuple[list[str], list[str], list[str]]:
    """Two systems' outputs and the references: each word is wrong with its system's own probability."""
    rng = np.random.default_rng(12)
    references = [[WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(6, 14))] for _ in range(n)]

    def system(wrong: float) -> list[str]:
        return [" ".join(WORDS[rng.integers(len(WORDS))] if rng.random() < wrong else w for w in r) for r in references]

    return system(0.33), system(0.30), [" ".join(r) for r in references]


@pytest.mark.parametrize("name", ["BLEU", "CHRF"])
def test_corpus_scores_agree_with_sacrebleus_paired_tests(name):
    """sacrebleu's `ar` is this test; its `bs` counts one tail of absolute differences, half of both tails."""
    import sacrebleu.metrics
    from sacrebleu.significance import PairedTest

    base, system, references = translations()
    metric = getattr(sacrebleu.metrics, name)(references=[references])
    theirs = {}
    for test in ("ar", "bs"):
        _, got = PairedTest([("base", base), ("system", system)], {name: metric}, references=None, test_type=test, n_samples=5000)()
        theirs[test] = next(rows for key, rows in got.items() if key != "System")
    a, b = (np.array(metric._extract_corpus_statistics(texts, None)) for texts in (base, system))
    mine = paired(a, b, value=lambda sums: metric._compute_score_from_stats([int(x) for x in sums]).score)
    assert mine.resamples == LOOPED
    assert (mine.before, mine.after) == (pytest.approx(theirs["ar"][0].score), pytest.approx(theirs["ar"][1].score))
    assert 0.01 < theirs["ar"][1].p_value < 0.5, "the data should be neither clear nor equal"
    error = 4 * math.sqrt(theirs["ar"][1].p_value * (1 - theirs["ar"][1].p_value) * (1 / LOOPED + 1 / 5000))
    assert mine.p_randomisation == pytest.approx(theirs["ar"][1].p_value, abs=error)
    assert mine.p_bootstrap / 2 == pytest.approx(theirs["bs"][1].p_value, abs=error)
    # half the width of sacrebleu's interval of one system's score; of a difference it is of the same order
    assert 0.3 * theirs["bs"][1].ci < 1.96 * mine.se < 3 * theirs["bs"][1].ci


def seeded(rng, seeds: int, items: int, gain: float, of_run: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores [S, N] of two systems: items of different difficulty, runs that are better or worse as a whole."""
    easy = rng.normal(0, 1, items)
    a, b = (easy + rng.normal(0, of_run, (seeds, 1)) + rng.normal(0, 1, (seeds, items)) for _ in range(2))
    return a, b + gain


def test_an_item_over_all_seeds_is_exchanged_at_once():
    rng = np.random.default_rng(13)
    a, b = seeded(rng, 3, 8, 0.5)
    got = paired(a, b)
    sums = (b - a).sum(0)  # [8]: exchanging an item in every seed flips the sign of its sum
    exact = np.mean([abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-9 for signs in product((-1, 1), repeat=8)])
    assert got.p_randomisation == pytest.approx(exact) and 0 < exact < 1
    assert (got.seeds, got.n, got.clusters) == (3, 8, 8)
    assert got.diff == pytest.approx((b - a).mean())
    # one run copied three times is no more evidence than the run itself
    assert paired(np.tile(a[:1], (3, 1)), np.tile(b[:1], (3, 1))).p_randomisation == paired(a[0], b[0]).p_randomisation


def test_the_value_of_several_runs_is_the_mean_of_their_corpus_values():
    pairs = [counts(seed, 50, 0.05) for seed in (1, 2)]
    a, b = (np.stack(side) for side in zip(*pairs, strict=True))
    got = paired(a, b, value=ratio)
    assert got.after == pytest.approx(np.mean([ratio(x.sum(0)) for x in b]))
    assert got.after != pytest.approx(ratio(b.sum((0, 1))), abs=1e-9)


def test_the_bootstrap_over_seeds_sees_that_runs_differ():
    """20 runs with a spread of their own: the error of the difference is that of the runs, not of the many items."""
    rng = np.random.default_rng(14)
    a, b = seeded(rng, 20, 400, 0.0, of_run=0.5)
    got = paired(a, b)
    between = stats.sem((b - a).mean(1))
    assert got.se == pytest.approx(between, rel=0.25)
    assert got.se > 3 * paired(a.mean(0), b.mean(0)).se


def test_unequal_seeds_and_statistics_without_a_metric_are_refused():
    with pytest.raises(ValueError, match="one length"):
        paired(np.zeros((2, 5)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="one length"):
        paired(np.zeros((2, 5, 3)), np.zeros((2, 5, 3)))


def test_over_languages_is_scipys_paired_t_test():
    a = {"deu": 30.1, "fin": 12.0, "jpn": 9.5, "ara": 11.0}
    b = {"fin": 14.0, "deu": 31.0, "jpn": 12.5, "tur": 99.0, "ara": 11.5}
    got = t_over_languages(a, b)
    theirs = stats.ttest_rel([31.0, 14.0, 12.5, 11.5], [30.1, 12.0, 9.5, 11.0])
    assert (got.n, got.t, got.p) == (4, pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))
    assert got.diff == pytest.approx((0.9 + 2.0 + 3.0 + 0.5) / 4)


def test_too_few_or_equal_languages_have_a_reason_and_no_p():
    two = t_over_languages({"deu": 1.0, "fin": 2.0}, {"deu": 2.0, "fin": 2.5})
    assert two.p is None and two.reason == "it needs 3 languages, there are 2" and two.diff == 0.75
    same = t_over_languages({"deu": 1.0, "fin": 2.0, "jpn": 3.0}, {"deu": 1.1, "fin": 2.1, "jpn": 3.1})
    assert same.p is None and "the same in every language" in same.reason
    assert t_over_languages({}, {}).n == 0
