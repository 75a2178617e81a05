"""Properties of what turns answers and scores into numbers."""
from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import strategies as st
from properties import TEXTS, WORDS, holds

from xalign.analysis.significance import detectable, holm, paired, t_over_languages
from xalign.languages import CONFUSABLE, LANGUAGES
from xalign.metrics.answers import F1, Containment, ExactMatch, normalise
from xalign.metrics.labels import SeqevalF1, SeqevalPrecision, TokenAccuracy
from xalign.metrics.offtarget import OffTarget, judged_language
from xalign.metrics.qa import MLQA_LANGUAGES, AnswerEM, AnswerF1, BestF1, mkqa, mlqa, squad
from xalign.metrics.ranking import MRR, Accuracy
from xalign.metrics.retrieval import NDCG
from xalign.metrics.rouge import Rouge
from xalign.training.schedule import auto_lr, cosine

CODES = st.sampled_from(sorted(LANGUAGES))
SCORES = st.lists(st.one_of(st.sampled_from((-2.0, -1.0, 0.0)), st.floats(-50, 0)), min_size=1, max_size=7)
SCHEMES = [squad(), *(make(lang) for make in (mkqa, mlqa) for lang in ("eng", "fra", "ara", "zho", "jpn", "vie", "fin", "spa"))]
ANSWERS = st.one_of(TEXTS, WORDS.map(" ".join))

# ---- ranking


@holds(80, row=SCORES, at=st.integers(0, 6))
def test_mrr_and_accuracy_are_means_over_the_orders_of_ties(row, at):
    gold = at % len(row)
    mrr, accuracy = MRR()._one(row, gold), Accuracy()._one(row, gold)
    assert 1 / len(row) <= mrr <= 1 and 0 <= accuracy <= 1 and (accuracy == 0 or mrr > 0)
    better, same = sum(s > row[gold] for s in row), sum(s == row[gold] for s in row)
    assert mrr == pytest.approx(1 / np.mean([better + k + 1 for k in range(same)]))  # mean rank of the tied
    assert accuracy == pytest.approx(sum(better == 0 and k == 0 for k in range(same)) / same)
    turned = row[1:] + row[:1]
    assert MRR()._one(turned, (gold - 1) % len(row)) == mrr and Accuracy()._one(turned, (gold - 1) % len(row)) == accuracy
    raised = [*row[:gold], row[gold] + 1, *row[gold + 1:]]
    assert MRR()._one(raised, gold) >= mrr and Accuracy()._one(raised, gold) >= accuracy


@holds(20, row=st.lists(st.sampled_from((-1.0, -2.0, -3.0)), min_size=1, max_size=5), at=st.integers(0, 4))
def test_accuracy_is_what_breaking_ties_by_chance_gives(row, at):
    gold = at % len(row)
    orders = [sorted(p, key=lambda i: -row[i])[0] == gold for p in permutations(range(len(row)))]
    assert Accuracy()._one(row, gold) == pytest.approx(np.mean(orders))


DOCUMENTS = st.tuples(st.integers(0, 4), st.sampled_from((0.1, 0.5, 0.7, 0.9)))


@holds(30, rows=st.lists(st.lists(DOCUMENTS, min_size=1, max_size=6), min_size=1, max_size=4))
def test_ndcg_is_in_bounds_and_does_not_see_the_order(rows):
    gains, scores = [[g for g, _ in r] for r in rows], [[s for _, s in r] for r in rows]
    found = NDCG().per_example(scores, gains)
    again = NDCG().per_example([s[::-1] for s in scores], [g[::-1] for g in gains])
    for value, other, g, s in zip(found, again, gains, scores, strict=True):
        if len(g) == 1:
            assert value is None
            continue
        assert -1e-9 <= value <= 1 + 1e-9 and value == pytest.approx(other)
        assert NDCG().per_example([g], [g])[0] == pytest.approx(1.0 if any(g) else 0.0)
        groups = {x: np.mean([a for a, b in zip(g, s, strict=True) if b == x]) for x in s}  # tied ones share their gain
        ideal = sum(x / math.log2(k + 2) for k, x in enumerate(sorted(g, reverse=True)))
        got = sum(groups[x] / math.log2(k + 2) for k, x in enumerate(sorted(s, reverse=True)))
        assert value == pytest.approx(got / ideal if ideal else 0.0)


@holds(40, values=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12),
       labels=st.lists(st.integers(0, 4), min_size=12, max_size=12))
def test_a_mean_is_of_what_was_judged_and_its_error_that_of_the_clusters(values, labels):
    kept = [v for v in values if v is not None]
    found = Accuracy().aggregate(values, labels[:len(values)])
    assert found.n == len(kept) and (found.value is None) == (not kept) == (found.reason is not None)
    if kept:
        assert found.value == pytest.approx(np.mean(kept)) and (found.se is None or found.se >= 0)
    plain = Accuracy().aggregate(values)
    if len(kept) > 1:
        assert plain.se == pytest.approx(np.std(kept, ddof=1) / len(kept)**0.5, abs=1e-12)


# ---- answers

@holds(100, text=TEXTS, cased=st.booleans())
def test_normalising_twice_is_normalising_once(text, cased):
    once = normalise(text, cased)
    assert normalise(once, cased) == once and once == once.strip()


@holds(60, a=ANSWERS, b=ANSWERS, lang=CODES)
def test_the_laboratorys_answers_are_in_bounds_and_agree_with_each_other(a, b, lang):
    em, f1, inside = ExactMatch()._one, F1(lang)._one, Containment()._one
    assert 0 <= f1(a, b) <= 1 and f1(a, b) == f1(b, a) and em(a, b) == em(b, a)
    assert em(a, a) == 1 and inside(a, a) == 1 and (em(a, b) <= inside(a, b))
    if em(a, b) and F1(lang)._units(a):
        assert f1(a, b) == 1
    assert ExactMatch(cased=True)._one(a, b) <= em(a, b)


@pytest.mark.parametrize("wrong, right", [("!", "?"), ("Helsinki", "…"), ("", "-"), ("yes", "—")])
def test_an_answer_of_punctuation_alone_is_not_any_answer(wrong, right):
    assert ExactMatch()._one(wrong, right) == 0 == Containment()._one(wrong, right)
    assert ExactMatch()._one(right, right) == 1 == Containment()._one(f"It is {right} or so", right)


@holds(20, texts=st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=5))
def test_benchmark_answers_are_in_bounds_and_right_ones_score_one(texts):
    for scheme in SCHEMES:
        em, f1 = AnswerEM(scheme), AnswerF1(scheme)
        for a, b in texts:
            assert em._one(a, b) in (0, 1) and 0 <= f1._one(a, b) <= 1
            assert f1._one(a, b) == f1._one(b, a) and em._one(a, a) == 1
            if em._one(a, b) and (scheme.tokens(a) or scheme.unanswerable):  # SQuAD's script: two empty answers share no token
                assert f1._one(a, b) == 1
            best = max(f1._one(a, x) for x in (b, a + " x"))
            assert f1.all_questions([a], [[b, a + " x"]]) == [best]


@holds(60, text=ANSWERS)
def test_benchmark_normalising_is_stable_where_the_official_one_is(text):
    for scheme in SCHEMES:
        once = scheme.tokens(text)
        assert all(t and not any(c.isspace() for c in t) for t in once)
        if "articles:fra" not in scheme.recipe:  # French ones are cut off the words' beginnings, one by one
            assert scheme.tokens(" ".join(once)) == once, scheme.recipe


def official_squad(text):
    """SQuAD 1.1's recipe in its own order: lower case, no punctuation, no articles, single spaces."""
    import re
    import string

    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


@holds(80, text=ANSWERS)
def test_squads_tokens_are_its_scripts(text):
    assert squad().tokens(text) == official_squad(text).split()


@holds(30, rows=st.lists(st.tuples(WORDS.map(" ".join), st.sampled_from(("", "cat", "the cat")), st.floats(0, 1)), min_size=1, max_size=6))
def test_mkqas_best_f1_is_the_best_over_all_thresholds(rows):
    given, right, chance = [r[0] for r in rows], [[r[1]] for r in rows], [r[2] for r in rows]
    found = np.mean(BestF1(mkqa("eng"), True).per_example(given, right, chance))
    raw = AnswerF1(mkqa("eng")).all_questions(given, right)
    order = sorted(range(len(rows)), key=chance.__getitem__)

    def value(k):
        return np.mean([(raw[i] if right[i][0] else float(not given[i])) if i in order[:k] else float(not right[i][0]) for i in order])

    assert found == pytest.approx(max(value(k) for k in range(len(rows) + 1))) and 0 <= found <= 1


# ---- overlap of texts

@holds(30, a=TEXTS, b=TEXTS, lang=CODES)
def test_rouge_is_in_bounds_and_one_for_the_same_text(a, b, lang):
    for order in "12L":
        rouge = Rouge(lang, order)
        forth, back, own = (rouge.per_example([x], [[y]])[0] for x, y in ((a, b), (b, a), (a, a)))
        assert 0 <= forth <= 1 and forth == pytest.approx(back)
        from xalign.metrics.rouge import _tokenizer

        n = len(_tokenizer(lang).tokenize(a))
        assert own == pytest.approx(float(n >= (2 if order == "2" else 1)))
        assert rouge.per_example([a], [[b, a]])[0] == pytest.approx(max(forth, own))


@holds(20, pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_chrf_is_in_bounds_and_does_not_see_the_order(pairs):
    from xalign.metrics.translation import ChrF

    metric = ChrF("fin")
    given, right = [a for a, _ in pairs], [b for _, b in pairs]
    score = metric.score(given, right)
    assert 0 <= score.value <= 100 + 1e-9 and score.value == pytest.approx(metric.score(given[::-1], right[::-1]).value)
    same = metric.score(right, right).value
    assert same == pytest.approx(100) or not "".join("".join(right).split())


TAGS = st.lists(st.sampled_from(("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "NOUN")), min_size=1, max_size=7)


@holds(40, pairs=st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=4))
def test_label_metrics_are_in_bounds_and_like_seqevals(pairs):
    import warnings

    from seqeval.metrics import f1_score, precision_score

    gold = [g for g, _ in pairs]
    given = [(p + ["O"] * len(g))[:len(g)] for g, p in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        official = f1_score(gold, given), precision_score(gold, given)
    for metric, value in zip((SeqevalF1(), SeqevalPrecision()), official, strict=True):
        assert metric.score(given, gold).value == pytest.approx(value) and 0 <= value <= 1
    share = np.mean([a == b for g, p in zip(gold, given, strict=True) for a, b in zip(g, p, strict=True)])
    assert TokenAccuracy().score(given, gold).value == pytest.approx(share)


@holds(30, text=TEXTS, lang=CODES)
def test_any_text_can_be_judged_for_its_language(text, lang):
    value, named = judged_language(text, lang)
    assert value in (None, 0.0, 1.0) and (value != 0 or named == lang) and (value is not None or named is None)
    assert OffTarget().per_example([text], [lang]) == [value]


# ---- tests of significance

P = st.lists(st.floats(0, 1), max_size=8)


@holds(80, p=P, shuffle=st.randoms(use_true_random=False))
def test_holm_is_holm(p, shuffle):
    found = holm(p)
    order = sorted(range(len(p)), key=p.__getitem__)
    naive = {i: min(1.0, max((len(p) - k) * p[j] for k, j in enumerate(order[:rank + 1]))) for rank, i in enumerate(order)}
    assert found == [naive[i] for i in range(len(p))]
    assert all(a <= b + 1e-15 and b <= 1 and b <= len(p) * a + 1e-15 for a, b in zip(p, found, strict=True))
    mixed = list(range(len(p)))
    shuffle.shuffle(mixed)
    assert sorted(holm([p[i] for i in mixed])) == sorted(found)


PAIRS = st.lists(st.tuples(st.sampled_from((0.0, 0.5, 1.0)), st.sampled_from((0.0, 0.5, 1.0)), st.integers(0, 3)), min_size=1, max_size=9)


@holds(30, rows=PAIRS, clustered=st.booleans())
def test_paired_tests_are_in_bounds_symmetric_and_exact_on_few_clusters(rows, clustered):
    a, b = [r[0] for r in rows], [r[1] for r in rows]
    clusters = [r[2] for r in rows] if clustered else None
    found, back = paired(a, b, clusters, n=600), paired(b, a, clusters, n=600)
    assert 0 < found.p_randomisation <= 1 and found.p_randomisation == back.p_randomisation and found.diff == pytest.approx(-back.diff)
    assert found.diff == pytest.approx(np.mean(b) - np.mean(a)) and (a != b or found.p_randomisation == 1)
    labels = clusters or list(range(len(rows)))
    sums = {c: sum(y - x for x, y, d in zip(a, b, labels, strict=True) if d == c) for c in labels}
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1)
    every = np.abs(signs.T @ np.array(list(sums.values())))
    assert found.p_randomisation == pytest.approx((every >= abs(sum(sums.values())) - 1e-9).mean())
    if found.clusters > 1:
        assert found.p_bootstrap == 1 or found.diff
        assert 0 < found.p_bootstrap <= 1 and found.ci_low <= found.ci_high and found.se >= 0 and -1 <= found.ci_low <= found.ci_high <= 1
    assert 0 <= found.detectable() <= 1


BY_LANGUAGE = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1))


@holds(30, before=BY_LANGUAGE, after=BY_LANGUAGE)
def test_the_t_test_says_why_it_has_no_p(before, after):
    found, back = t_over_languages(before, after), t_over_languages(after, before)
    assert (found.p is None) == bool(found.reason) == (back.p is None) and found.n == len(set(before) & set(after))
    assert found.p is None or 0 <= found.p <= 1 and found.p == pytest.approx(back.p)


@holds(40, n=st.integers(1, 10**6), d=st.floats(0, 1), more=st.integers(0, 10**6))
def test_more_examples_find_smaller_differences(n, d, more):
    assert 0 <= detectable(n + more, d) <= detectable(n, d) + 1e-12 <= 1 + 1e-12


# ---- schedule, languages

@holds(80, total=st.integers(1, 500), warmup=st.floats(0, 1), final=st.floats(0, 1), rate=st.integers(1, 10**8), share=st.floats(1e-6, 1))
def test_the_rate_rises_then_falls_between_zero_and_its_peak(total, warmup, final, rate, share):
    found = [cosine(k, total, warmup, final) for k in range(total)]
    rising = round(warmup * total)
    assert all(0 <= f <= 1 for f in found) and all(f > 0 for f in found[:rising])
    assert all(a <= b for a, b in zip(found[:rising], found[1:rising], strict=False))
    assert all(a >= b - 1e-12 and b >= final - 1e-12 for a, b in zip(found[rising:], found[rising + 1:], strict=False))
    assert total - rising < 2 or found[-1] == pytest.approx(final) and found[rising] == 1
    assert 0 < auto_lr(rate, share) <= auto_lr(rate + 1, share)


def test_the_table_of_languages_is_of_one_piece():
    import re

    from xalign.data.prompts import SCRIPTS, language_text
    from xalign.langid import _SCRIPTS

    assert len({x.name for x in LANGUAGES.values()}) == len({x.flores for x in LANGUAGES.values()}) == len(LANGUAGES)
    for code, x in LANGUAGES.items():
        assert code == x.code and re.fullmatch(r"[a-z]{3}", code) and re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", x.flores)
        assert x.script in SCRIPTS and x.script in _SCRIPTS and x.iso1 in x.cld3 and language_text(code)
        re.compile(x.articles)
    assert len({c for group in CONFUSABLE for c in group}) == sum(map(len, CONFUSABLE))
    assert set(MLQA_LANGUAGES) < set(LANGUAGES)
