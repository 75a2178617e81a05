"""Prompts, option scores and saving, on a random Llama and other families; one golden on the real weights."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xalign.backbones.causal import CausalBackbone
from xalign.backbones.load import load_backbone
from xalign.backbones.node import HubBackbone, SmolLM2, Tiny
from xalign.backbones.scoring import Tree, common_prefix, passes, takes_trees
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError

SHARED = Path(__file__).parents[1].parent / "shared"
RUN = SimpleNamespace(seed=3, plan=False)
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


def test_passes_read_no_shared_prefix_twice():
    passages = [[100 * k + i for i in range(40)] for k in range(3)]
    shots = [900 + i for i in range(20)]
    rows = [(shots + passages[k] + [7, 8, 700 + i], [[i, 1], [i, 2]]) for i, k in enumerate((0, 1, 0, 2, 1, 0))]
    everything = Tree()
    for prompt, options in rows:
        for option in options:
            everything.add(prompt + option[:-1])
    for budget in (1000, 130, 70, 30, 10):
        held, read, seen = [], 0, []
        for depth, members in passes(rows, budget):
            prefix, tree = rows[members[0]][0][:depth], Tree()
            read += depth - common_prefix([prefix, held]) if depth else 0
            held = prefix or held
            for i in members:
                assert rows[i][0][:depth] == prefix and len(rows[i][0]) > depth
                for option in rows[i][1]:
                    tree.add(rows[i][0][depth:] + option[:-1])
            read += len(tree.tokens)
            seen += members
        assert sorted(seen) == list(range(6))
        assert budget == 1000 or seen == [0, 2, 5, 1, 4, 3], "a passage's rows together, in the order of the first"
        # the two tokens between a passage and a row's own are shared by fewer than SHARED_MIN: only they may be read again
        assert len(everything.tokens) <= read <= len(everything.tokens) + 2 * 3


@pytest.mark.parametrize("budget", [384, 30, 12])
def test_rows_of_a_passage_score_as_one_plain_pass_each(backbone, budget, monkeypatch):
    monkeypatch.setattr("xalign.backbones.scoring.TREE_TOKENS", budget)
    words = ["rain", "snow", "wind", "storm", "cloud", "frost", "hail", "fog"]
    passages = [" ".join(words[k:] + words[:k]) * 2 for k in (0, 3)]
    prompts = [f"P: {passages[k]}\nQ: {q}\nAnswer:" for q in ("which", "where is it", "when") for k in (0, 1)] + ["P"]
    options = [["the rain", "the snow", "wind"]] * 6 + [["a"]]
    got = backbone.score(prompts, options, raw_text=True)
    for prompt, own, scores in zip(prompts, options, got, strict=True):
        ids = backbone.tokenizer(prompt).input_ids
        for option, s in zip(own, scores, strict=True):
            whole = backbone.tokenizer(f"{prompt} {option}").input_ids
            assert s.sum == pytest.approx(naive(backbone, ids, whole[len(ids):]), abs=1e-4)


def other(backbone, kind):
    """A random model of another family, with the tiny backbone's tokenizer."""
    import transformers as t

    size = {"vocab_size": 1500, "hidden_size": 64, "pad_token_id": 0, "eos_token_id": 2}
    config = {"bloom": lambda: t.BloomConfig(n_layer=2, n_head=4, **size),
              "mamba": lambda: t.MambaConfig(num_hidden_layers=2, state_size=8, **size),
              "mistral": lambda: t.MistralConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
                                                 sliding_window=24, **size),
              "gpt2": lambda: t.GPT2Config(n_layer=2, n_head=4, n_embd=64, vocab_size=1500, bos_token_id=2, eos_token_id=2)}[kind]()
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.dim() == 2:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return CausalBackbone(model, backbone.tokenizer, Tiny())


@pytest.mark.parametrize("kind, trees", [("gpt2", True), ("mistral", True), ("bloom", False), ("mamba", False)])
def test_every_family_scores_and_answers_as_it_does_alone(backbone, kind, trees):
    """Recurrent and ALiBi models, and texts longer than a sliding window, are read without trees."""
    model = other(backbone, kind)
    prompts = ["x", "yes or no", "a much longer question than the others, longer than the window of 24 tokens"]
    assert takes_trees(model.model, 20) is trees and not (kind == "mistral" and takes_trees(model.model, 25))
    for part in (prompts[:2], prompts):
        scores, texts = model.score(part, [["one", "the other thing"]] * len(part)), model.generate(part, 8)
        for prompt, own, text in zip(part, scores, texts, strict=True):
            ids = model.encode_prompts([prompt])[0]
            for option, s in zip(("one", "the other thing"), own, strict=True):
                assert s.sum == pytest.approx(naive(model, ids, model.tokenizer(option, add_special_tokens=False).input_ids), abs=1e-4)
            assert text == alone(model, prompt, 8)


def alone(backbone, prompt, tokens, **more):
    """The answer of transformers' generate to one prompt."""
    ids = torch.tensor(backbone.encode_prompts([prompt]))
    out = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0, **more)
    return backbone.tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True).strip()


def test_a_wrong_tree_is_found_out(backbone, monkeypatch):
    """A model that ignores the mask would give plausible numbers: the probe has to see it."""
    monkeypatch.setattr("xalign.backbones.scoring._takes_trees", {})
    monkeypatch.setattr(Tree, "mask", lambda tree: torch.ones(len(tree.tokens), len(tree.tokens)).tril().bool().numpy())
    assert not takes_trees(backbone.model, 20)


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
