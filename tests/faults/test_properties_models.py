"""Properties of what stands between text and model: templates, token borders, option scores, batched decoding, an encoder's batches."""
from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import strategies as st
from properties import TEXTS, holds

from xalign.data.choices import gather
from xalign.data.examples import Example
from xalign.data.instructions import TEMPLATES, coit_prompt, completion_prompt, translation_prompt
from xalign.data.prompts import TASKS, Frame
from xalign.languages import LANGUAGES

CODES = st.sampled_from(sorted(LANGUAGES))


@lru_cache(maxsize=4)
def backbone(kind: str):
    """A random model with its tokenizer: ``chat``, ``alpaca``, ``similarity`` or ``cross``."""
    from xalign.backbones.load import load_backbone
    from xalign.backbones.node import Tiny, TinyEncoder
    from xalign.backbones.tiny import make_tiny, make_tiny_encoder

    encoder = kind in ("similarity", "cross")
    with tempfile.TemporaryDirectory() as d:
        (make_tiny_encoder if encoder else make_tiny)(Path(d), width=32, layers=2, vocab=600, seed=3)
        found = load_backbone(Path(d), TinyEncoder(head=kind, max_length=64) if encoder else Tiny(template=kind))
    for name, weight in found.model.named_parameters():  # fresh weights hardly look at what stands before
        if "_proj" in name:
            weight.mul_(12)
    return found


# ---- templates: what stands in a text is text

@holds(40, text=TEXTS, lang=CODES, index=st.integers(0, 200), task=st.sampled_from(sorted(TASKS)), options=st.lists(TEXTS, max_size=3))
def test_instructions_carry_the_text_as_it_is(text, lang, index, task, options):
    for prompt in (translation_prompt(text, "eng", lang), coit_prompt(text, "eng", lang, index), completion_prompt(text, lang)):
        assert prompt.endswith("\n" + text) and "{" not in prompt.removesuffix(text)
    framed = Frame()(task, lang, text, options)
    listed = ", ".join(options).count("{") if "{categories}" in TASKS[task] else 0
    assert framed.endswith(text) and framed.removesuffix(text).count("{") == listed
    assert LANGUAGES[lang].name in framed and len(TEMPLATES) == len(set(TEMPLATES))


@holds(30, text=TEXTS, more=TEXTS, answer=TEXTS, kind=st.sampled_from(("chat", "alpaca")))
def test_prompts_carry_the_text_as_it_is(text, more, answer, kind):
    model = backbone(kind)
    prompt = model.prompt(text, [(more, answer)])
    assert text in prompt and more in prompt and answer in prompt
    assert prompt.replace(text, "", 1).replace(more, "", 1) or not text
    assert model.prompt(text) != model.prompt(text + "x")


@holds(20, lang=st.sampled_from(("eng", "fin", "jpn", "ara")), text=TEXTS)
def test_worded_prompts_fill_their_places_once(lang, text):
    import re

    from xalign.tasks.wording import _all, say

    for key, template in _all()[lang].items():
        if isinstance(template, str):
            places = set(re.findall(r"\{(\w+)\}", template)) - {"language"}
            said = say(lang, key, **dict.fromkeys(places, text), **({"language": "fin"} if "{language}" in template else {}))
            assert said.count(text) >= len(places)


# ---- where the prompt ends and the answer begins

@holds(60, prompt=TEXTS.filter(bool), answer=TEXTS, pivot=TEXTS, kind=st.sampled_from(("chat", "alpaca")))
def test_the_targets_are_the_answer_and_its_end(prompt, answer, pivot, kind):
    model = backbone(kind)
    row = model.paired_row(Example("x", "fin", prompt, answer, pivot=pivot))
    if row is None:  # the answer is split differently behind the pivot
        return
    for r in (row, row.twin) if row.twin else (row,):
        said = r.ids[r.n_prompt:]
        assert list(r.ids[:r.n_prompt]) == model.encode_prompts([prompt if r is row else pivot])[0]
        assert list(said[len(said) - len(model.end):]) == model.end and 1 <= r.n_prompt < len(r.ids)
        assert model.tokenizer.decode(said[:len(said) - len(model.end)]) == model.lead + answer
    assert (row.twin is not None) == bool(pivot) and (not row.twin or row.twin.ids[row.twin.n_prompt:] == row.ids[row.n_prompt:])


@holds(30, text=TEXTS.filter(bool))
def test_plain_text_is_a_target_from_its_second_token_on(text):
    model = backbone("chat")
    row = model.row(Example("x", "fin", "", text))
    assert row.n_prompt == 1 and model.tokenizer.decode(row.ids[:-1]) == text and row.ids[-1] == model.tokenizer.eos_token_id


@holds(30, n=st.integers(1, 40), room=st.integers(0, 40), limit=st.integers(1, 40))
def test_a_long_prompt_loses_its_beginning(n, room, limit):
    model = backbone("chat")
    before, kept = model.max_length, model.truncated
    model.max_length = limit
    try:
        found = model._fit(list(range(n)), room)
    finally:
        model.max_length, cut = before, model.truncated - kept
        model.truncated = kept
    assert found and found == list(range(n))[-len(found):] and cut == (len(found) < n)
    assert len(found) == n or len(found) == max(limit - room, 1)


# ---- options scored together or one by one

TOKENS = st.lists(st.integers(3, 40), min_size=1, max_size=14)
ASKED = st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4))
SHARED = st.tuples(st.lists(st.integers(3, 12), max_size=24), st.lists(ASKED, min_size=1, max_size=5))


@holds(25, case=SHARED, budget=st.sampled_from((16, 48, 384)))
def test_a_token_tree_scores_as_one_option_at_a_time_does(case, budget):
    from xalign.backbones import scoring

    first, rows = case
    rows = [(first + prompt, options) for prompt, options in rows]
    model = backbone("chat").model
    assert scoring.takes_trees(model, 64)
    kept, scoring.TREE_TOKENS = scoring.TREE_TOKENS, budget
    try:
        got = scoring.score_rows(model, rows)
    finally:
        scoring.TREE_TOKENS = kept
    with torch.inference_mode():
        for (prompt, options), scores in zip(rows, got, strict=True):
            for option, score in zip(options, scores, strict=True):
                logp = model(input_ids=torch.tensor([prompt + option])).logits[0].float().log_softmax(-1)
                alone = sum(logp[len(prompt) + k - 1, t].item() for k, t in enumerate(option))
                assert score == pytest.approx(alone, abs=1e-4 * len(option), rel=1e-5)


@holds(60, prompts=st.lists(TOKENS, min_size=1, max_size=8), budget=st.integers(1, 40))
def test_every_row_is_read_once_and_behind_what_it_shares(prompts, budget):
    from xalign.backbones.scoring import passes

    rows = [([5] * 9 + p, [[1, 2]]) for p in prompts] + [([5] * 9 + p, [[1, 2]]) for p in prompts]
    seen = []
    for depth, members in passes(rows, budget):
        assert len({tuple(rows[i][0][:depth]) for i in members}) == 1 and all(len(rows[i][0]) > depth for i in members)
        seen += members
    assert sorted(seen) == list(range(len(rows)))


@holds(6, seed=st.integers(0, 10**6), most=st.integers(3, 12), lines=st.sampled_from((2, 3, 100)))
def test_answers_do_not_depend_on_who_is_answered_beside_them(seed, most, lines):
    from xalign.backbones import decoding

    model, draw = backbone("chat").model, Random(seed)
    rows = [[draw.randrange(3, 500) for _ in range(draw.randint(1, 30))] for _ in range(7)]
    stop = set(draw.sample(range(3, 600), 150))  # some answers end early, and others take their places
    kept, decoding.BATCH_TOKENS = decoding.BATCH_TOKENS, lines * 42
    try:
        together = dict(decoding.decode(model, rows, most, stop))
    finally:
        decoding.BATCH_TOKENS = kept
    alone = [dict(decoding.decode(model, [row], most, stop))[0] for row in rows]
    plain = [greedy(model, row, most, stop) for row in rows]
    assert [together[i] for i in range(len(rows))] == alone == plain


def greedy(model, row, most, stop):
    """One token after the other, everything read anew."""
    out = []
    with torch.inference_mode():
        while len(out) < most:
            token = model(input_ids=torch.tensor([row + out])).logits[0, -1].argmax().item()
            if token in stop:
                break
            out.append(token)
    return out


@holds(12, texts=st.lists(TEXTS, min_size=1, max_size=4), cut=st.sampled_from(("\n", "e", "ä", "ab")), most=st.integers(1, 10))
def test_generated_text_ends_before_the_stop_string(texts, cut, most):
    model = backbone("chat")
    free = model.generate(texts, most)
    ended = model.generate(texts, most, stop=[cut])
    assert all(cut not in e and f.startswith(e) for e, f in zip(ended, free, strict=True))
    lines = model.generate(texts, most, stop_newline=True)
    assert all("\n" not in line for line in lines)


# ---- an encoder's batch

PARTS = st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=5), min_size=2, max_size=4)


@holds(48, cases=st.lists(st.tuples(PARTS, st.integers(-1, 2)), min_size=1, max_size=5))
def test_an_encoders_batch_holds_every_text_once_and_refers_to_it(cases):
    from xalign.backbones.encoder import make_row

    rows = [make_row(str(i), parts, gold=min(gold, len(parts) - 2)) for i, (parts, gold) in enumerate(cases)]
    batch = gather(rows)
    texts = [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), batch.attention_mask.sum(1).tolist(), strict=True)]
    assert len(set(texts)) == len(texts) and set(texts) == {tuple(p) for parts, _ in cases for p in parts}
    for k, (parts, _) in enumerate(cases):
        own = batch.index[k][batch.mask[k]].tolist()
        assert [texts[i] for i in own] == [tuple(p) for p in parts] and int(batch.gold[k]) == rows[k].gold
    assert int((batch.gold >= 0).sum()) == sum(r.targets for r in rows)


@holds(15, rows=st.lists(st.tuples(TEXTS, st.lists(TEXTS.filter(bool), min_size=2, max_size=4)), min_size=1, max_size=5),
       head=st.sampled_from(("similarity", "cross")))
def test_an_encoder_scores_a_question_as_if_it_were_alone(rows, head):
    model = backbone(head)
    if head == "cross":  # zeros tie everything
        torch.nn.init.normal_(model.model.head.weight, generator=torch.Generator().manual_seed(1))
    prompts, options = [p for p, _ in rows], [o for _, o in rows]
    together = model.score(prompts, options)
    model._options.clear()
    for prompt, own, scores in zip(prompts, options, together, strict=True):
        alone = model.score([prompt], [own])[0]
        assert [s.sum for s in scores] == pytest.approx([s.sum for s in alone], abs=2e-3, rel=1e-4) and len(scores) == len(own)
        assert [s.bytes for s in scores] == [len(o.encode()) for o in own]


@holds(40, sizes=st.lists(st.integers(0, 12), min_size=1, max_size=2), limit=st.integers(4, 30))
def test_a_shortened_text_keeps_its_special_tokens_and_its_beginning(sizes, limit):
    from xalign.backbones.encoder import shorten

    ids, special = [], []
    for k, n in enumerate(sizes):
        ids += [0, *(100 * k + 10 + i for i in range(n)), 2]
        special += [1, *[0] * n, 1]
    found = shorten(ids, special, limit)
    assert [t for t in found if t in (0, 2)] == [0, 2] * len(sizes)
    assert len(found) == len(ids) if len(ids) <= limit else len(found) >= limit
    for k, n in enumerate(sizes):
        own = [t for t in found if 100 * k + 10 <= t < 100 * k + 10 + n]
        assert own == list(range(100 * k + 10, 100 * k + 10 + len(own))) and bool(own) == bool(n)
    if len(ids) > limit:
        assert len(found) == limit or all(sum(100 * k + 10 <= t < 100 * k + 110 for t in found) <= 1 for k in range(len(sizes)))
