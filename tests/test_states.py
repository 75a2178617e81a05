"""Sentence vectors from every layer: which tokens count, no effect of padding, the same numbers as transformers and the similarity head."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import processors

from xalign.backbones.causal import CausalBackbone
from xalign.backbones.node import HubBackbone, Tiny, TinyEncoder
from xalign.backbones.states import _causal_rows, open_states, sentence_vectors
from xalign.backbones.tiny import make_tiny, make_tiny_encoder

TEXTS = ["Hello", "What is the capital of Finland?", "日本の首都", "Mikä on Suomen pääkaupunki ja missä se sijaitsee? " * 9, "Suomi"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder, width=32, layers=2, vocab=600, seed=0)
    return open_states(folder, Tiny())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_encoder")
    make_tiny_encoder(folder, width=32, layers=2, vocab=600, seed=0)
    return open_states(folder, TinyEncoder(prefix="query: "))


def states(model, ids: list[int]) -> np.ndarray:
    """[L + 1, T, H] of one text by transformers, without padding."""
    with torch.inference_mode():
        return torch.stack(model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0].float().numpy()


@pytest.mark.parametrize("kind, instruction", [("causal", False), ("causal", True), ("encoder", False)])
def test_a_text_has_the_same_vectors_alone_and_in_a_batch(kind, instruction, request):
    backbone, counted = request.getfixturevalue(kind), []
    many = sentence_vectors(backbone, TEXTS, instruction, counted.append)
    assert sum(counted) == len(TEXTS)
    for name in ("mean", "last"):
        assert many[name].shape == (3, len(TEXTS), 32) and many[name].dtype == np.float32
        alone = np.concatenate([sentence_vectors(backbone, [text], instruction)[name] for text in TEXTS], axis=1)
        np.testing.assert_allclose(many[name], alone, atol=1e-5)
        assert len(np.unique(many[name][-1].round(4), axis=0)) == len(TEXTS)


def test_a_causal_model_reads_a_start_token_that_the_mean_leaves_out(causal):
    tokenizer = causal.tokenizer
    ids = tokenizer("Helsinki on kaupunki").input_ids
    assert tokenizer.bos_token_id is None and tokenizer.eos_token_id not in ids and len(ids) > 3
    whole = states(causal.model, [tokenizer.eos_token_id, *ids])
    found = sentence_vectors(causal, ["Helsinki on kaupunki"])
    np.testing.assert_allclose(found["mean"][:, 0], whole[:, 1:].mean(1), atol=1e-5)
    np.testing.assert_allclose(found["last"][:, 0], whole[:, -1], atol=1e-5)
    words = causal.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(found["mean"][0, 0], words[ids].mean(0), atol=1e-6)  # layer 0
    with torch.inference_mode():
        last = causal.model.model(input_ids=torch.tensor([[tokenizer.eos_token_id, *ids]])).last_hidden_state[0, -1]
    np.testing.assert_allclose(found["last"][-1, 0], last.numpy(), atol=1e-5)  # behind the final norm


def test_a_tokenizer_that_puts_its_own_tokens_gets_no_second_start_and_no_end(causal, monkeypatch):
    core = causal.tokenizer.backend_tokenizer
    start, end = causal.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    plain = causal.tokenizer("Suomi").input_ids
    monkeypatch.setattr(core, "post_processor", processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", start), ("<|im_end|>", end)]))
    causal.tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    try:
        assert causal.tokenizer("Suomi").input_ids == [start, *plain, end]
        assert _causal_rows(causal, ["Suomi"], False) == ([[start, *plain]], [(1, 1 + len(plain))])
    finally:
        core.post_processor = None
        causal.tokenizer.bos_token = None


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_an_instruction_is_read_in_the_template_and_its_own_tokens_are_averaged(causal, template):
    backbone = CausalBackbone(causal.model, causal.tokenizer, replace(causal.node, template=template))
    for text in ("What is the capital of Finland?", "x", "日本の首都は何ですか。"):
        ids = backbone.encode_prompts([text])[0]
        (row,), ((start, stop),) = _causal_rows(backbone, [text], True)
        assert row == ids and backbone.tokenizer.decode(ids[start:stop]).strip() == text
        whole, found = states(backbone.model, ids), sentence_vectors(backbone, [text], True)
        np.testing.assert_allclose(found["mean"][:, 0], whole[:, start:stop].mean(1), atol=1e-5)
        np.testing.assert_allclose(found["last"][:, 0], whole[:, -1], atol=1e-5)


def test_long_texts_are_cut_as_prompts_are(causal):
    short = CausalBackbone(causal.model, causal.tokenizer, replace(causal.node, max_length=64))
    text = TEXTS[3]
    whole = short.encode_prompts([text])[0]
    assert len(whole) > 200
    (row,), ((start, stop),) = _causal_rows(short, [text], True)
    tail = len(whole) - whole.index(short.tokenizer.eos_token_id, 5)  # the template behind the text
    assert row == whole[-64:] and (start, stop) == (0, 64 - tail)
    (row,), span = _causal_rows(short, [text], False)
    assert row == [short.tokenizer.eos_token_id, *short.tokenizer(text).input_ids][:64] and span == [(1, 64)]


def test_an_encoders_last_layer_is_the_vector_that_its_similarity_head_compares(encoder):
    found = sentence_vectors(encoder, TEXTS)
    for i, text in enumerate(TEXTS):
        got = encoder.tokenizer("query: " + text, return_tensors="pt")
        with torch.inference_mode():
            own = encoder.model.encode(got.input_ids, got.attention_mask)[0].numpy()
        np.testing.assert_allclose(found["mean"][-1, i], own, atol=1e-5)
        whole = states(encoder.model.encoder, got.input_ids[0].tolist())
        assert got.input_ids[0, -1] == encoder.tokenizer.sep_token_id
        np.testing.assert_allclose(found["last"][:, i], whole[:, -1], atol=1e-5)
        np.testing.assert_allclose(found["mean"][:, i], whole.mean(1), atol=1e-5)


def test_a_cross_heads_encoder_reads_the_text_without_prefix(tmp_path):
    make_tiny_encoder(tmp_path, width=32, layers=1, vocab=600, seed=0)
    backbone = open_states(tmp_path, TinyEncoder(head="cross", prefix="query: ", max_length=16))
    ids = backbone.tokenizer(TEXTS[3]).input_ids
    cut = [*ids[:15], ids[-1]]  # a long text loses its end, not its closing token
    np.testing.assert_allclose(sentence_vectors(backbone, [TEXTS[3]])["mean"][:, 0], states(backbone.model.encoder, cut).mean(1), atol=1e-5)


def test_hidden_states_come_from_transformers_whatever_the_engine(tmp_path):
    make_tiny(tmp_path, width=32, layers=1, vocab=600, seed=0)
    assert type(open_states(tmp_path, HubBackbone(name=str(tmp_path), engine="vllm"))) is CausalBackbone
