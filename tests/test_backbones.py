"""Prompts, option scores, greedy decoding and saving, on a random Llama; one golden on the real weights."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xalign.backbones.decoding import decode
from xalign.backbones.load import load_backbone
from xalign.backbones.node import HubBackbone, SmolLM2, Tiny
from xalign.backbones.scoring import Tree, common_prefix
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError

SHARED = Path(__file__).parents[1].parent / "shared"
RUN = SimpleNamespace(seed=3)
QUESTIONS = ["Country: Finland. What is its capital?", "Country: Fiji. What is its capital?", "Name: Åland", "次の国の首都：日本"]
OPTIONS = [["Helsinki", "Helsingborg", "Suva"], ["Suva", "Helsinki"], ["Mariehamn"], ["東京", "京都", "Tokyo", "To"]]


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    return Cache(cache).get(Tiny().weights(RUN)).path


@pytest.fixture(scope="module")
def backbone(folder: Path):
    """Ten times the usual initialisation: a fresh model would only repeat its last token."""
    backbone = load_backbone(folder, Tiny())
    generator = torch.Generator().manual_seed(1)
    for name, p in backbone.model.named_parameters():
        if "proj" in name:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return backbone


def naive(backbone, prompt: list[int], answer: list[int]) -> float:
    """The sum of log p over the answer from one plain forward pass."""
    ids = prompt + answer
    with torch.inference_mode():
        logp = backbone.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logp[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))


def test_the_template_frames_prompt_and_answer(backbone):
    ids, n = backbone.encode_pair("Hello", "Moi")
    assert backbone.tokenizer.decode(ids[:n]) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert backbone.tokenizer.decode(ids[n:]) == "Moi<|im_end|>"
    assert ids[:n] == backbone.encode_prompts(["Hello"])[0]
    assert backbone.stop == {2} and backbone.end == [2]


def test_shots_are_turns_and_the_system_prompt_comes_first(folder):
    backbone = load_backbone(folder, Tiny(system="Be brief."))
    assert backbone.prompt("b", [("a", "A")]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n")


def test_alpaca_is_used_without_a_chat_template(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    backbone = load_backbone(tmp_path / "model", Tiny())
    ids, n = backbone.encode_pair("Name {one}.", "Suomi")
    assert "### Instruction:\nName {one}.\n\n### Response:" in backbone.tokenizer.decode(ids[:n])
    assert backbone.tokenizer.decode(ids[n:]) == " Suomi<|im_end|>"
    with pytest.raises(XalignError, match="no chat template"):
        load_backbone(tmp_path / "model", Tiny(template="chat"))


def test_common_prefix_and_tree():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2 and common_prefix([[5]]) == 1
    tree = Tree()
    for row in ([7, 8], [7, 9]):
        tree.add(row)
    assert tree.tokens == [7, 8, 9] and tree.depths == [0, 1, 1]
    assert tree.mask().tolist() == [[True, False, False], [True, True, False], [True, False, True]]


@pytest.mark.parametrize("shots", [(), (("Country: Togo. What is its capital?", "Lomé"),)])
def test_scores_equal_one_plain_pass_per_option(backbone, shots, monkeypatch):
    monkeypatch.setattr("xalign.backbones.scoring.TREE_TOKENS", 60)  # several passes, one prefix cache
    got = backbone.score(QUESTIONS, OPTIONS, shots=shots)
    for question, options, scores in zip(QUESTIONS, OPTIONS, got, strict=True):
        prompt = backbone.encode_prompts([question], shots)[0]
        for option, s in zip(options, scores, strict=True):
            ids = backbone.tokenizer(option, add_special_tokens=False).input_ids
            assert s.sum == pytest.approx(naive(backbone, prompt, ids), abs=1e-4)
            assert (s.tokens, s.bytes) == (len(ids), len(option.encode()))


def test_a_model_that_computes_every_logit_gives_the_same(backbone, monkeypatch):
    forward, scores, texts = backbone.model.forward, backbone.score(QUESTIONS, OPTIONS), backbone.generate(QUESTIONS, 6)

    def plain(input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                       past_key_values=past_key_values, use_cache=use_cache)

    monkeypatch.setattr(backbone.model, "forward", plain)
    assert backbone.generate(QUESTIONS, 6) == texts
    for ours, theirs in zip(backbone.score(QUESTIONS, OPTIONS), scores, strict=True):
        assert [s.sum for s in ours] == pytest.approx([s.sum for s in theirs], abs=1e-4)


def test_raw_text_scores_a_space_and_the_option(backbone):
    got = backbone.score(["P: rain\nAnswer:"], [["yes", "no"]], raw_text=True)[0]
    prompt = backbone.tokenizer("P: rain\nAnswer:").input_ids
    for option, s in zip(("yes", "no"), got, strict=True):
        ids = backbone.tokenizer(f"P: rain\nAnswer: {option}").input_ids
        assert ids[:len(prompt)] == prompt
        assert s.sum == pytest.approx(naive(backbone, prompt, ids[len(prompt):]), abs=1e-4)


def test_a_prompt_longer_than_the_model_is_cut_on_the_left_and_counted(folder):
    backbone = load_backbone(folder, Tiny(max_length=64))
    long = backbone.score(["word " * 300 + "end?"], [["yes", "no"]])[0]
    prompt = backbone.encode_prompts(["word " * 300 + "end?"])[0]
    ids = backbone.tokenizer("yes", add_special_tokens=False).input_ids
    longest = max(s.tokens for s in long)
    assert long[0].sum == pytest.approx(naive(backbone, prompt[-(64 - longest):], ids), abs=1e-4)
    assert backbone.truncated == 1


def test_greedy_answers_equal_transformers_and_keep_their_order(backbone, monkeypatch):
    monkeypatch.setattr("xalign.backbones.decoding.BATCH_TOKENS", 150)  # several batches
    prompts = [*QUESTIONS, "x", "a much longer question than the others, so that lengths differ within a batch"]
    seen = {}
    got = backbone.generate(prompts, 12, each=seen.__setitem__)
    assert seen == dict(enumerate(got)) and len(set(got)) == len(got)
    for prompt, text in zip(prompts, got, strict=True):
        ids = torch.tensor(backbone.encode_prompts([prompt]))
        out = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert text == backbone.tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True).strip()


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


def test_saving_and_loading_gives_the_same_scores(backbone, tmp_path):
    backbone.save(tmp_path / "saved")
    again = load_backbone(tmp_path / "saved", Tiny())
    assert again.score(QUESTIONS, OPTIONS) == backbone.score(QUESTIONS, OPTIONS)
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_training_loads_float32_with_gradients(folder):
    model = load_backbone(folder, Tiny(dtype="bfloat16"), train=True).model
    assert model.training and all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert {p.dtype for p in load_backbone(folder, Tiny(dtype="bfloat16")).model.parameters()} == {torch.bfloat16}


def test_a_local_folder_is_a_backbone_and_mistakes_are_one_line(folder, cache, tmp_path):
    node = HubBackbone(name=str(folder))
    node.check_run(RUN)
    artifact = Cache(cache).get(node.weights(RUN))
    assert load_backbone(artifact.path, node).score(["a"], [["b"]])[0][0].tokens == 1
    assert node.params() == Tiny().params(), "the weights' identity is in their stage, not in the name"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(XalignError) as caught:
        load_backbone(tmp_path, node)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    for name, what in {"": "is empty", str(tmp_path / "none"): "no such folder", str(tmp_path.parent): "no config.json"}.items():
        with pytest.raises(ConfigError, match=what):
            HubBackbone(name=name).check_run(RUN)


@pytest.mark.lab
def test_option_log_likelihoods_equal_the_harness_on_belebele(tmp_path):
    """Weights, tokenizer and scoring against lm-evaluation-harness 0.4.13, to 1e-3 nats.

    The harness read its folder with transformers' default rotary base of 10000, which a config written by
    transformers 5 and read by 4.57 falls back to; the GGUF file says 100000. So the golden's base is set
    here, and everything else is as a run has it.
    """
    golden = SHARED / "goldens" / "belebele_eng48_smollm2_loglikelihood.json"
    data = SHARED / "data" / "belebele" / "eng_Latn.jsonl"
    if not (golden.is_file() and data.is_file()):
        pytest.skip("shared/goldens or shared/data/belebele is not beside the repository")
    weights = Cache(os.environ.get("XALIGN_CACHE", "~/.cache/xalign")).get(SmolLM2().weights(RUN)).path
    config = json.loads((weights / "config.json").read_text())
    assert config["rope_theta"] == 100000
    for file in weights.iterdir():
        if file.name != "config.json":
            os.symlink(file, tmp_path / file.name)
    (tmp_path / "config.json").write_text(json.dumps(
        {**config, "rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}))
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:48]]
    got = load_backbone(tmp_path, SmolLM2()).score(
        [f"P: {r['flores_passage']}\nQ: {r['question']}\nAnswer:" for r in rows],
        [[r[f"mc_answer{k}"] for k in range(1, 5)] for r in rows], raw_text=True)
    expected = json.loads(golden.read_text())
    both = list(zip(got, expected["rows"], strict=True))
    worst = max(abs(s.sum - e) for scores, row in both for s, e in zip(scores, row["loglikelihood"], strict=True))
    assert worst < 1e-3
    right = sum(max(range(4), key=lambda k: scores[k].sum) == row["gold"] for scores, row in both)
    assert right / 48 == pytest.approx(expected["accuracy"], abs=1e-4)
    print("largest difference", worst)
