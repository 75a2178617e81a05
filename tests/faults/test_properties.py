"""Properties of the data's pure functions: code-switching, packing, splitting, filters, files."""
from __future__ import annotations

import json
import tempfile
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import strategies as st
from properties import TEXTS, holds

from xalign.cache import Stage
from xalign.data.codeswitch import _edges, code_switch, read_dictionary, read_muse, switch_questions
from xalign.data.examples import Example, read_examples, read_jsonl, write_jsonl
from xalign.data.filters import RULES, SIDES, Filters, count_words
from xalign.data.packing import IGNORED, Row, common_prefix, deal, pack, pad, plan_steps, split_groups
from xalign.digests import digest_of
from xalign.languages import LANGUAGES

# ---- the code-switcher

TERMS = st.text(min_size=1, max_size=4).filter(lambda t: t == t.strip() and t.strip() and not any(c.isspace() for c in t))
MAPPINGS = st.dictionaries(st.one_of(TERMS, st.sampled_from(("cat", "helsinki", "the", "日本", "東京", "กำ", "е", "x2"))),
                           st.lists(TERMS, min_size=1, max_size=3).map(tuple), max_size=5)


def text_with(terms):
    """Text in which some of `terms` stand, in several cases, with punctuation around them."""
    known = [f(t) for t in terms for f in (str, str.upper, str.capitalize, "({})".format, "{}?!".format)]
    return st.lists(st.one_of(TEXTS, st.sampled_from(known or [""])), max_size=8).map(" ".join)


SWITCHED = MAPPINGS.flatmap(lambda m: st.tuples(st.just(m), text_with(m)))


@holds(60, case=SWITCHED, p=st.sampled_from((0.0, 0.3, 1.0)), seed=st.integers(0, 9))
def test_only_words_of_the_dictionary_change_and_what_stands_around_them_stays(case, p, seed):
    mapping, text = case
    got = code_switch(text, mapping, p, Random(seed), spaced=True)
    assert got == code_switch(text, mapping, p, Random(seed), spaced=True)
    rest = got
    for token in split(text):
        head, core, tail = _edges(token)
        known = mapping.get(core) or mapping.get(core.lower()) or ()
        options = ([head + t + tail for t in known] if p else []) + ([token] if p < 1 or not known else [])
        fits = [o for o in sorted(options, key=len, reverse=True) if rest.startswith(o)]
        assert fits, (token, rest)
        if len(fits) > 1:  # translations that begin like each other: any of them
            return
        rest = rest[len(fits[0]):]
    assert not rest


def split(text):
    """Words and the whitespace between them."""
    import itertools

    return ["".join(g) for _, g in itertools.groupby(text, str.isspace)]


@holds(60, terms=st.lists(st.text(alphabet="abAB日本กำe\u0301ع 2.", min_size=1, max_size=4).map(str.strip).filter(bool),
                           min_size=1, max_size=5, unique=True),
       text=st.text(alphabet="abAB日本กำe\u0301ع 2.?", max_size=20), spaced=st.booleans(), p=st.sampled_from((0.5, 1.0)))
def test_putting_the_terms_back_gives_the_text(terms, text, spaced, p):
    marks = {t: chr(0xE000 + i) for i, t in enumerate(terms)}
    got = code_switch(text, {t: (m,) for t, m in marks.items()}, p, Random(1), spaced)
    for term, mark in marks.items():
        assert spaced or len(term) > 1 or mark not in got  # one character is too little where no spaces part words
        got = got.replace(mark, term)
    assert got.casefold() == text.casefold()


@holds(120, text=st.text(alphabet="ab1日กแ\u0e48\u0301", min_size=4, max_size=16),
       terms=st.sets(st.text(alphabet="ab1日ก", min_size=2, max_size=2), min_size=3, max_size=12))
def test_without_spaces_no_latin_word_number_or_grapheme_is_cut(text, terms):
    got = code_switch(text, {t: ("\uE000" * len(t),) for t in terms}, 1.0, Random(0), spaced=False)
    assert len(got) == len(text)
    for i in (i for i in range(1, len(got)) if (got[i] == "\uE000") != (got[i - 1] == "\uE000")):
        assert not (text[i - 1] in "ab1" and text[i] in "ab1") and not unicodedata.combining(text[i])


@holds(80, case=SWITCHED, spaced=st.booleans())
def test_no_share_and_no_dictionary_change_nothing(case, spaced):
    mapping, text = case
    assert code_switch(text, mapping, 0.0, Random(0), spaced) == text == code_switch(text, {}, 1.0, Random(0), spaced)


@holds(30, p=st.sampled_from((0.1, 0.5, 0.9)), seed=st.integers(0, 1000), spaced=st.booleans())
def test_the_share_of_switched_words_is_the_one_asked_for(p, seed, spaced):
    n = 1500
    text = (" " if spaced else "、").join(["猫犬"] * n)
    changed = code_switch(text, {"猫犬": ("cat",)}, p, Random(seed), spaced).count("cat")
    assert abs(changed - n * p) < 5 * (n * p * (1 - p)) ** 0.5


@holds(20, texts=st.lists(TEXTS, min_size=1, max_size=6), lang=st.sampled_from(("fin", "jpn", "ara")), seed=st.integers(0, 3))
def test_a_question_is_switched_the_same_whatever_stands_beside_it(texts, lang, seed):
    rows = [Example(str(i), lang, f"{t} kissa 猫犬 القط", "x", subset="LL") for i, t in enumerate(texts)]
    words = {lang: {"kissa": ("cat", "puss"), "猫犬": ("pets", "zoo"), "القط": ("cat", "tom")}}
    out, changed = switch_questions(rows, words, 0.6, seed)
    back, _ = switch_questions(rows[::-1], words, 0.6, seed)
    assert out == back[::-1] and [r.with_(prompt="") for r in out] == [r.with_(prompt="") for r in rows]
    assert changed.get("LL", 0) == sum(a != b for a, b in zip(rows, out, strict=True))


def test_another_seed_switches_other_words():
    rows = [Example(str(i), "fin", "kissa koira", "x") for i in range(20)]
    words = {"fin": {"kissa": ("cat",), "koira": ("dog",)}}
    assert len({tuple(r.prompt for r in switch_questions(rows, words, 0.5, s)[0]) for s in range(5)}) == 5


WORD = TEXTS.map(lambda t: t.strip().strip("\ufeff").strip()).filter(lambda t: t and not set("\t\n\r\0") & set(t))


@holds(20, pairs=st.lists(st.tuples(WORD, WORD).filter(lambda p: p[0] != p[1]), min_size=1, max_size=5))
def test_a_dictionary_file_comes_back(pairs):
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "d.tsv"
        path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8", newline="\n")
        assert read_muse(path) == pairs
        found, order = read_dictionary(path), [a for a, _ in pairs]
        assert [(a, b) for a, more in found.items() for b in more] == sorted(set(pairs), key=lambda p: (order.index(p[0]), pairs.index(p)))


# ---- the packer

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=10)


@st.composite
def rows_of(draw, most=8):
    out = []
    for i, ids in enumerate(draw(st.lists(IDS, min_size=1, max_size=most))):
        n = draw(st.integers(1, len(ids)))
        twin = Row(f"t{i}", tuple(draw(IDS)), 1) if draw(st.integers(0, 4)) == 0 else None
        out.append(Row(f"r{i}", tuple(ids), n, group=draw(st.sampled_from(("", "a", "b", "c"))),
                       weight=draw(st.sampled_from((1.0, 0.5))), twin=twin))
    return out


@holds(60, rows=rows_of(), limit=st.integers(1, 30), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_row_once_a_pass_and_no_step_above_the_limit(rows, limit, seed, epoch):
    steps = plan_steps(rows, limit, seed, epoch)
    assert sorted(r.id for s in steps for r in s) == sorted(r.id for r in rows)
    assert all(len(s) == 1 or sum(r.tokens for r in s) <= limit for s in steps) and all(steps)
    assert all(sum(r.tokens for r in a) + b[0].tokens > limit for a, b in zip(steps, steps[1:], strict=False))
    assert steps == plan_steps(list(rows), limit, seed, epoch)


def test_each_epoch_and_each_seed_has_its_own_order():
    rows = [Row(str(i), (1, 2), 1) for i in range(30)]
    orders = {tuple(r.id for s in plan_steps(rows, 8, seed, epoch) for r in s) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@holds(60, rows=rows_of(), parts=st.integers(1, 9), shuffle=st.randoms(use_true_random=False))
def test_every_process_gets_as_many_batches_and_about_as_many_tokens(rows, parts, shuffle):
    bins = deal(rows, parts)
    assert len(bins) == parts and all(bins)
    real = [[r for r in b if r in rows] for b in bins]
    fillers = [r for b in bins for r in b if r not in rows]
    assert sum(r.targets for b in bins for r in b) == sum(r.targets for r in rows)
    dealt = Counter(r.id for b in bins for r in b if r.targets)
    assert dealt == Counter(r.id for r in rows if r.targets)
    assert all(not r.targets for r in fillers)
    sizes = [sum(r.tokens for r in b) for b in real]
    assert max(sizes) - min(sizes) <= max(r.tokens for r in rows)
    other = list(rows)
    shuffle.shuffle(other)
    assert [[r.id for r in b if r.targets] for b in deal(other, parts)] == [[r.id for r in b if r.targets] for b in bins]


@holds(30, rows=rows_of())
def test_a_packed_batch_says_what_the_padded_one_says(rows):
    rows = [replace(r, twin=None) for r in rows]
    packed, padded = pack(rows), pad(rows)
    lay, p = packed.layout, packed.layout.prefix
    assert p == common_prefix(rows) and p < min(r.n_prompt for r in rows)
    assert sum(lay.sizes) == packed.input_ids.shape[1] == p + sum(len(r.ids) - p for r in rows)
    assert lay.starts[:, -1].tolist() == [sum(lay.sizes), len(lay.keys)]
    for s, r in enumerate(rows):
        own = packed.segment_ids[0] == s
        labels, weights = packed.labels[0][own], packed.weights[0][own]
        assert labels[labels != IGNORED].tolist() == list(r.ids[r.n_prompt:])
        assert packed.position_ids[0][own].tolist() == list(range(p, len(r.ids)))
        assert packed.input_ids[0][own].tolist() == list(r.ids[p:])
        assert weights.tolist() == [r.weight if x != IGNORED else 0.0 for x in labels.tolist()]
        there = padded.labels[s]
        assert there[there != IGNORED].tolist() == list(r.ids[r.n_prompt:]) and padded.input_ids[s][:len(r.ids)].tolist() == list(r.ids)
        start, end = lay.starts[1][s + (p > 0)].item(), lay.starts[1][s + (p > 0) + 1].item()
        assert packed.input_ids[0][lay.keys[start:end]].tolist() == list(r.ids)  # a row looks at itself, prefix first
    assert (packed.labels[0][:p] == IGNORED).all()


# ---- the splitter

@holds(80, rows=rows_of(12), share=st.floats(0, 0.5), seed=st.integers(0, 3))
def test_a_group_is_on_one_side_and_the_share_is_kept(rows, share, seed):
    train, valid = split_groups(rows, share, seed)
    key = [r.group or r.id for r in rows]
    sides = {r.group or r.id for r in train}, {r.group or r.id for r in valid}
    assert not sides[0] & sides[1] and sorted(train + valid, key=rows.index) == rows
    assert [r for r in rows if r in train] == train and [r for r in rows if r in valid] == valid
    if share == 0 or len(set(key)) < 2:
        assert not valid
    else:
        assert train and valid
        assert len(valid) <= share * len(rows) or len(sides[1]) == 1
    assert (train, valid) == split_groups(rows, share, seed)
    assert {r.id for r in split_groups(rows[::-1], share, seed)[1]} == {r.id for r in valid}


@holds(20, n=st.integers(20, 60), more=st.integers(1, 10), seed=st.integers(0, 5))
def test_further_rows_do_not_reshuffle_the_split(n, more, seed):
    rows = [Row(f"r{i}", (1, 2), 1) for i in range(n + more)]
    small, large = ({r.id for r in split_groups(part, 0.2, seed)[1]} for part in (rows[:n], rows))
    old = {r.id for r in rows[:n]}
    assert (large & old) <= small or small <= (large & old)  # a prefix of one seeded order


# ---- the filters

ASKED = st.sampled_from(("What is this?", "Kuka on <b>tuo</b>?", "one two three four five six seven"))
RECORDS = st.lists(st.tuples(ASKED, TEXTS.filter(bool),
                             st.one_of(st.none(), TEXTS, st.sampled_from(("<i>a</i>", "x" * 50, "sana " * 30, "kissa"))),
                             st.one_of(st.none(), TEXTS, st.sampled_from(("kissa", "koira")))), max_size=7)


def filtered(node, cases, lang="fin", quality=None):
    originals = [Example(str(i), "eng", p, r) for i, (p, r, _, _) in enumerate(cases)]
    records = [{"id": str(i), "prompt": p, "response": r, "failed": {s: "model" for s, t in (("prompt", p), ("response", r)) if t is None}}
               for i, (_, _, p, r) in enumerate(cases)]
    out, facts = node.apply(originals, records, "eng", lang, quality)
    return originals, records, out, facts


@holds(48, cases=RECORDS, lang=st.sampled_from(("fin", "jpn", "tha", "zho", "ara")), langid=st.booleans())
def test_filters_take_away_and_count_what_they_take(cases, lang, langid):
    originals, records, out, facts = filtered(Filters(langid=langid, max_words=20), cases, lang)
    assert [r["id"] for r in out] == [r["id"] for r in records]
    for side in SIDES:
        assert all(new[side] in (None, old[side]) for new, old in zip(out, records, strict=True))
        assert all((new[side] is None) == (side in new["failed"]) for new in out)
        there = sum(r[side] is not None for r in records)
        count = facts.get(side, {"translated": 0, "kept": 0, "dropped": {}})
        assert count["translated"] == there == count["kept"] + sum(count["dropped"].values())
        assert count["kept"] == sum(r[side] is not None for r in out)
        assert Counter(r["failed"][side] for r in out if r["failed"].get(side) in RULES) == Counter(count["dropped"])
        assert all(count_words(r[side], lang) <= 20 for r in out if r[side] is not None)
        assert all(count_words(r[side], lang) > 20 for r, new in zip(records, out, strict=True) if new["failed"].get(side) == "words")
    assert all("failed" in r and r["failed"] != "x" for r in records)


@holds(48, cases=RECORDS)
def test_filtering_twice_is_filtering_once(cases):
    node = Filters(langid=False, dedup=False, max_words=20)
    originals, _, once, _ = filtered(node, cases)
    assert node.apply(originals, once, "eng", "fin")[0] == once


@holds(48, cases=RECORDS, key=st.sampled_from(("max_words", "max_word_chars", "max_ratio")), low=st.integers(1, 40),
       more=st.integers(0, 40))
def test_a_looser_threshold_keeps_all_that_a_stricter_one_kept(cases, key, low, more):
    strict, loose = (filtered(Filters(langid=False, **{key: limit}), cases)[2] for limit in (low, low + more))
    assert all(b[s] is not None for a, b in zip(strict, loose, strict=True) for s in SIDES if a[s] is not None)


@holds(30, cases=RECORDS, scores=st.randoms(use_true_random=False), low=st.floats(0, 1), more=st.floats(0, 1))
def test_quality_is_read_in_the_texts_order(cases, scores, low, more):
    n = sum(t is not None for c in cases for t in c[2:])
    quality = [scores.random() for _ in range(n)]
    free = Filters(html=False, langid=False, dedup=False, max_words=10**6, max_word_chars=10**6, max_ratio=10**6)
    _, records, out, _ = filtered(replace(free, threshold=low), cases, quality=quality)
    left = iter(quality)
    assert all((r[s] is not None) == (next(left) >= low) for r, o in zip(out, records, strict=True) for s in SIDES if o[s] is not None)
    looser = filtered(replace(free, threshold=low * more), cases, quality=quality)[2]
    assert all(b[s] is not None for a, b in zip(out, looser, strict=True) for s in SIDES if a[s] is not None)


@holds(60, text=TEXTS, lang=st.sampled_from(sorted(LANGUAGES)))
def test_counting_words_never_fails(text, lang):
    n = count_words(text, lang)
    assert n >= 0 and (n == 0) == (not text.strip()) and count_words(f"{text} {text}", lang) == pytest.approx(2 * n)


# ---- files and keys

NUMBERS = st.one_of(st.integers(-2**60, 2**60), st.floats(allow_nan=False, allow_infinity=False))
JSON = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)), max_leaves=8)


@holds(30, records=st.lists(st.dictionaries(TEXTS, JSON, max_size=4), max_size=4))
def test_jsonl_comes_back_line_by_line(records):
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "x.jsonl"
        assert write_jsonl(path, records) == len(records)
        assert list(read_jsonl(path)) == records
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
        assert list(read_jsonl(path)) == records


@holds(40, texts=st.lists(st.tuples(TEXTS, TEXTS), max_size=4), options=st.lists(TEXTS, max_size=3), weight=st.floats(0, 5))
def test_examples_come_back(texts, options, weight):
    rows = [Example(f"{i}", "fin", p, r, group=p, weight=weight, options=tuple(options), pivot=r) for i, (p, r) in enumerate(texts)]
    with tempfile.TemporaryDirectory() as d:
        write_jsonl(Path(d) / "x.jsonl", rows)
        assert read_examples(Path(d) / "x.jsonl") == rows


@holds(20, value=st.dictionaries(TEXTS, JSON, max_size=5), other=st.dictionaries(TEXTS, JSON, max_size=5),
       shuffle=st.randoms(use_true_random=False))
def test_a_digest_depends_on_the_content_alone(value, other, shuffle):
    items = list(value.items())
    shuffle.shuffle(items)
    assert digest_of(dict(items)) == digest_of(value) == digest_of(json.loads(json.dumps(value)))
    same = json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest_of(value) == digest_of(other)) == same


@holds(30, params=st.dictionaries(TEXTS, JSON, max_size=4), name=TEXTS, version=st.integers(1, 5))
def test_a_stage_is_another_when_anything_that_decides_it_is(params, name, version):
    def key(*args, **more):
        return Stage(*args, work=lambda *_: None, **more).key

    first = Stage("x", 1, {}, lambda *_: None)
    second = Stage("y", 1, {}, lambda *_: None)
    plain = key(name, version, params)
    assert plain == key(name, version, params, seconds=9, label="z", resumable=True)
    others = [key(name + "x", version, params), key(name, version + 1, params), key(name, version, {**params, "\x00new": 1}),
              key(name, version, params, inputs=(first,)), key(name, version, params, inputs=(first, second)),
              key(name, version, params, inputs=(second, first))]
    assert len({plain, *others}) == 7
