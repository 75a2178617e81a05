"""Continuous batching, beams and stop rules against transformers' `generate`, one prompt at a time, on a random Llama."""
from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import test_backbones
import torch
from test_backbones import QUESTIONS, alone

from xalign.backbones.decoding import decode
from xalign.backbones.node import HubBackbone
from xalign.backbones.soft import FILE
from xalign.backbones.vllm import VllmBackbone
from xalign.config import ConfigError, XalignError

folder, backbone = test_backbones.folder, test_backbones.backbone  # fixtures
PROMPTS = [*QUESTIONS, "x", "a much longer question than the others, so that lengths differ within a batch", "Name: Oslo", "x y", "x"]


@pytest.mark.parametrize("tokens, read", [(150, 384), (150, 16), (8192, 60), (1, 384)])
def test_greedy_answers_equal_transformers_and_keep_their_order(backbone, monkeypatch, tokens, read):
    """Few lines that others wait for, prompts read in pieces, all at once, one after the other."""
    monkeypatch.setattr("xalign.backbones.decoding.BATCH_TOKENS", tokens)
    monkeypatch.setattr("xalign.backbones.scoring.TREE_TOKENS", read)
    monkeypatch.setattr("xalign.backbones.decoding.ROOM", 3)
    expected = {p: alone(backbone, p, 12) for p in PROMPTS}
    some = backbone.tokenizer(expected[PROMPTS[1]], add_special_tokens=False).input_ids[3]
    seen = {}
    for stop in ({2}, {2, some}):  # with the second one, answers leave at different times
        monkeypatch.setattr(backbone, "stop", stop)
        got = backbone.generate(PROMPTS, 12, each=seen.__setitem__)
        assert [seen[i] for i in range(len(got))] == got and len(set(got)) == len(set(PROMPTS))
        for prompt, text in zip(PROMPTS, got, strict=True):
            assert text == alone(backbone, prompt, 12, eos_token_id=sorted(stop))


def test_an_answer_is_told_as_soon_as_it_is_finished(backbone, monkeypatch):
    rows = backbone.encode_prompts(PROMPTS)
    free = dict(decode(backbone.model, rows, 12, set()))
    first = max(range(len(rows)), key=lambda i: len(rows[i]))
    stop = {free[first][0]} - {t for i, tokens in free.items() if i != first for t in tokens[:1]}
    order = [i for i, _ in decode(backbone.model, rows, 12, stop)]
    assert sorted(order) == list(range(len(rows))) and (not stop or order[0] == first)
    assert stop, "the longest prompt's first token is one that no other answer begins with"


def test_beams_equal_transformers(backbone, monkeypatch):
    monkeypatch.setattr(backbone.model.generation_config, "repetition_penalty", 3.0)  # the model's own taste is not ours
    monkeypatch.setattr("xalign.backbones.decoding.BATCH_ROWS", 3)
    got = backbone.generate(PROMPTS, 10, beams=3)
    assert backbone.model.generation_config.repetition_penalty == 3.0
    assert got != backbone.generate(PROMPTS, 10)
    assert got == [alone(backbone, p, 10, num_beams=3, repetition_penalty=1.0) for p in PROMPTS]


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings_end_an_answer(backbone, beams):
    free = backbone.generate(["x", "次の国の首都：日本"], 12, raw_text=True, beams=beams)
    assert free[0] == backbone.tokenizer.decode(next(t for i, t in decode(
        backbone.model, [backbone.tokenizer("x").input_ids], 12, backbone.stop, beams=beams)), skip_special_tokens=True).strip()
    for stops in ([free[0][3:6], "never said"], [free[0][5:7]]):
        at = min(free[0].find(s) for s in stops if s in free[0])
        got = backbone.generate(["x", "次の国の首都：日本"], 12, raw_text=True, stop=stops, beams=beams)
        assert beams > 1 or got[0] == free[0][:at].strip()
        assert all(s not in text for s in stops for text in got)


def test_answers_end_at_stop_tokens_and_line_breaks(backbone, monkeypatch):
    rows = backbone.encode_prompts(QUESTIONS)
    free = dict(decode(backbone.model, rows, 12, set()))
    stop = {free[0][2], free[2][4]}  # lines that end early leave the batch to the others
    cut = dict(decode(backbone.model, rows, 12, stop))
    for i, tokens in free.items():
        first = next((k for k, t in enumerate(tokens) if t in stop), 12)
        assert cut[i] == tokens[:first]
    assert len({len(tokens) for tokens in cut.values()}) > 1
    monkeypatch.setattr(backbone, "stop", set(range(len(backbone.tokenizer))))
    assert backbone.generate(QUESTIONS, 12) == [""] * 4
    tokens = backbone.tokenizer("\nab\n", add_special_tokens=False).input_ids
    assert [backbone._is_break(tokens[:k]) for k in range(1, len(tokens) + 1)] == [False] * (len(tokens) - 1) + [True]


def stand_in(backbone):
    """vLLM's interface, as documented, over the tiny backbone's own model."""
    class LLM:
        def __init__(self, model, dtype, max_model_len, generation_config, trust_remote_code):
            assert (dtype, generation_config, trust_remote_code) == ("auto", "vllm", False)
            self.longest = max_model_len

        def generate(self, prompts, params, use_tqdm):
            assert params.temperature == 0.0 and all(len(p["prompt_token_ids"]) + params.max_tokens <= self.longest for p in prompts)
            return [self.answer(p["prompt_token_ids"], params) for p in prompts]

        def answer(self, ids, params):
            if hasattr(params, "prompt_logprobs"):
                with torch.inference_mode():
                    logp = backbone.model(torch.tensor([ids])).logits[0].log_softmax(-1)
                seen = [{t: SimpleNamespace(logprob=row[t].item())} for row, t in zip(logp[:-1], ids[1:], strict=True)]
                return SimpleNamespace(prompt_logprobs=[None, *seen])
            out = backbone.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                                          max_new_tokens=params.max_tokens, eos_token_id=params.stop_token_ids, pad_token_id=0)
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(out[0, len(ids):].tolist()))])

    return SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace, TokensPrompt=dict)


def test_vllm_is_asked_for_the_same_scores_and_answers(backbone, tmp_path, monkeypatch):
    backbone.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "vllm", stand_in(backbone))
    monkeypatch.setattr("xalign.backbones.vllm.CHUNK", 2)
    served = VllmBackbone(tmp_path / "model", backbone.tokenizer, HubBackbone(name="x", engine="vllm", max_length=256))
    long = ["word " * 600 + "end?"]  # cut to leave room for the token that vLLM writes
    options = [["Suva", "Helsinki"]] * len(PROMPTS)
    for theirs, ours in zip(served.score(PROMPTS, options), backbone.score(PROMPTS, options), strict=True):
        assert [s.sum for s in theirs] == pytest.approx([s.sum for s in ours], abs=1e-4)
    assert served.score(long, [["no"]])[0][0].tokens and served.truncated == 1
    seen = {}
    free = backbone.generate(PROMPTS, 12)
    assert served.generate(PROMPTS, 12, each=seen.__setitem__) == free and seen == dict(enumerate(free))
    assert served.generate(PROMPTS, 12, stop=[free[0][3:6]]) == backbone.generate(PROMPTS, 12, stop=[free[0][3:6]])
    with pytest.raises(XalignError, match="beams=2; set backbone.engine=native"):
        served.generate(["x"], 4, beams=2)
    (tmp_path / "model" / FILE).touch()
    with pytest.raises(XalignError, match="soft prompts, which vLLM does not read"):
        VllmBackbone(tmp_path / "model", backbone.tokenizer, HubBackbone(name="x"))


def test_an_engine_that_is_not_installed_is_refused_before_anything_runs(folder, monkeypatch):
    monkeypatch.setattr("xalign.backbones.node.find_spec", lambda name: None)
    node = HubBackbone(name=str(folder), engine="vllm")
    with pytest.raises(ConfigError, match="backbone.engine=vllm: vLLM is not installed; pip install"):
        node.check_run(SimpleNamespace(plan=False))
    assert node.params() == {**HubBackbone().params(), "engine": "vllm"}
