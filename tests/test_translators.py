"""NLLB's real code path on a tiny checkpoint made and trained here, by transformers and by CTranslate2."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from xalign.cache import Cache, Stage
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import Example, read_jsonl, write_jsonl
from xalign.translators.nllb import NLLB, by_tokens, load_tokenizer, split_sentences, split_text

PAIRS = {
    "fin_Latn": {"The lamp is on.": "Lamppu on päällä.", "The door is open.": "Ovi on auki.", "Is it cold?": "Onko kylmä?"},
    "jpn_Jpan": {
        "The lamp is on.": "ランプはついています。",
        "The door is open.": "ドアは開いています。",
        "Is it cold?": "寒いですか？",
    },
}


ENGINES = [
    "transformers",
    pytest.param("ctranslate2", marks=pytest.mark.skipif(not find_spec("ctranslate2"), reason="CTranslate2 is not installed")),
]


def examples_stage(rows: list[Example]) -> Stage:
    params = {"rows": [(r.id, r.prompt, r.response) for r in rows]}
    return Stage("questions", 1, params, lambda folder, inputs: {"n": write_jsonl(folder / "examples.jsonl", rows)})


# splitting and batching


@pytest.mark.parametrize(
    "line, sentences",
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met J. Doe at 3.5 p.m. yesterday.", ["Dr. Smith met J. Doe at 3.5 p.m. yesterday."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("これは本です。あれは「犬だ。」と言う。", ["これは本です。", "あれは「犬だ。」", "と言う。"]),
        ("", []),
        ("no end", ["no end"]),
    ],
)
def test_sentences(line: str, sentences: list[str]) -> None:
    assert split_sentences(line) == sentences


def test_lines_keep_their_marks() -> None:
    assert split_text("1. Buy milk. Boil it.\n\n  - Cool it ") == [
        ("1. ", ["Buy milk.", "Boil it."], ""),
        ("", [], ""),
        ("  - ", ["Cool it"], " "),
    ]


def test_batches_stay_within_the_token_budget() -> None:
    lengths = [9, 7, 7, 3, 2, 1]
    batches = list(by_tokens(range(6), lengths.__getitem__, 14))
    assert batches == [[0], [1, 2], [3, 4, 5]]
    assert list(by_tokens([0], lambda i: 99, 14)) == [[0]]  # one sentence over the budget goes alone


# NLLB


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer M2M100 that learned the six translations of `PAIRS`, with an NLLB tokenizer built here."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, M2M100Config, M2M100ForConditionalGeneration

    folder = tmp_path_factory.mktemp("nllb")
    codes = ["eng_Latn", "fin_Latn", "jpn_Jpan"]
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = [t for table in PAIRS.values() for pair in table.items() for t in pair]
    tokens.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=80, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    )
    tokens.add_special_tokens([*codes, "<mask>"])
    tokens.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
        "additional_special_tokens": codes,
        "tokenizer_class": "NllbTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=tokens.get_vocab_size(),
            d_model=48,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_position_embeddings=128,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            dropout=0.0,
            attention_dropout=0.0,
            encoder_layerdrop=0.0,
            decoder_layerdrop=0.0,
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, src_lang="eng_Latn")
    sources = tokenizer([s for table in PAIRS.values() for s in table], padding=True, return_tensors="pt")
    # an NLLB target is </s>, language code (forced when translating, so never learnt here), text, </s>
    targets = [
        [2, tokenizer.convert_tokens_to_ids(code), *tokenizer(t, add_special_tokens=False).input_ids, 2]
        for code, table in PAIRS.items()
        for t in table.values()
    ]
    width = max(map(len, targets))
    given = torch.tensor([t[:-1] + [1] * (width - len(t)) for t in targets])
    labels = torch.tensor([[-100] + t[2:] + [-100] * (width - len(t)) for t in targets])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(500):
        loss = model(
            input_ids=sources.input_ids, attention_mask=sources.attention_mask, decoder_input_ids=given, labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.001:
            break
    assert loss.item() < 0.001
    model.save_pretrained(folder)
    return folder


ROWS = [
    Example("a", "eng", "The lamp is on. The door is open.\n\n- Is it cold?", "42"),
    Example("b", "eng", "The door is open.", "Is it cold?"),
    Example("c", "eng", " ", "The lamp is on."),
]


@pytest.mark.parametrize(
    "lang, answers",
    [
        (
            "fin",
            [
                ("Lamppu on päällä. Ovi on auki.\n\n- Onko kylmä?", "42"),
                ("Ovi on auki.", "Onko kylmä?"),
                (None, "Lamppu on päällä."),
            ],
        ),
        (
            "jpn",
            [
                ("ランプはついています。ドアは開いています。\n\n- 寒いですか？", "42"),
                ("ドアは開いています。", "寒いですか？"),
                (None, "ランプはついています。"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_nllb_translates(checkpoint: Path, tmp_path: Path, lang: str, answers: list, engine: str) -> None:
    run = SimpleNamespace(source="eng", seed=0)
    for batch_tokens in (4096, 1):  # padding changes nothing
        node = NLLB(name=str(checkpoint), batch_tokens=batch_tokens, device="cpu", engine=engine)
        artifact = Cache(tmp_path / str(batch_tokens)).get(node.stage(run, examples_stage(ROWS), lang))
        records = list(read_jsonl(artifact.file("examples.jsonl")))
        assert [(r["prompt"], r["response"]) for r in records] == answers and [r["id"] for r in records] == ["a", "b", "c"]
        assert records[2]["failed"] == {"prompt": "empty text"}
        assert artifact.receipt["facts"] == {
            "prompt": {"translated": 2, "failed": {"empty text": 1}},
            "response": {"translated": 3, "failed": {}},
            "sentences": 3,
            "unfinished": 0,
        }


def test_one_side_only(checkpoint: Path, tmp_path: Path) -> None:
    stage = NLLB(name=str(checkpoint)).stage(SimpleNamespace(source="eng"), examples_stage(ROWS), "fin", ("response",))
    records = list(read_jsonl(Cache(tmp_path).get(stage).file("examples.jsonl")))
    assert [(r["prompt"], r["response"], r["failed"]) for r in records] == [
        (None, "42", {}),
        (None, "Onko kylmä?", {}),
        (None, "Lamppu on päällä.", {}),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_translation_that_does_not_end_fails(checkpoint: Path, tmp_path: Path, engine: str) -> None:
    rows = [
        Example("a", "eng", "Is it cold?", "The lamp is on. " * 3 + "end"),
        Example("b", "eng", "The door is open.", "The lamp is on."),
    ]
    node = NLLB(name=str(checkpoint), max_length=10, beam=1, engine=engine)
    artifact = Cache(tmp_path).get(node.stage(SimpleNamespace(source="eng"), examples_stage(rows), "jpn"))
    reason = "a sentence is longer than 10 tokens, or its translation did not end"
    assert list(read_jsonl(artifact.file("examples.jsonl"))) == [
        {"id": "a", "prompt": "寒いですか？", "response": None, "failed": {"response": reason}},  # too long to begin with
        {"id": "b", "prompt": "ドアは開いています。", "response": None, "failed": {"response": reason}},
    ]  # ten tokens; eleven
    assert artifact.receipt["facts"]["unfinished"] == 2


@pytest.mark.skipif(not find_spec("ctranslate2"), reason="CTranslate2 is not installed")
@pytest.mark.parametrize("beam", [1, 4])
def test_engines_agree(checkpoint: Path, tmp_path: Path, beam: int) -> None:
    """On sentences that the model never saw, and on those that it cannot end."""
    import shutil

    import torch
    from transformers import AutoModelForSeq2SeqLM

    blurred = tmp_path / "blurred"  # the checkpoint itself only knows six sentences
    shutil.copytree(checkpoint, blurred)
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator) * 0.5 * p.data.std()
    model.save_pretrained(blurred)
    words = ["The", "lamp", "door", "is", "cold", "open", "on", "Is it"]
    rows = [Example(str(i), "eng", " ".join(Random(i).sample(words, 2 + i % 4)), "x") for i in range(60)]
    texts = {}
    for engine in ("transformers", "ctranslate2"):
        node = NLLB(name=str(blurred), beam=beam, max_length=20, device="cpu", engine=engine)
        stage = node.stage(SimpleNamespace(source="eng"), examples_stage(rows), "fin", ("prompt",))
        texts[engine] = [r["prompt"] for r in read_jsonl(Cache(tmp_path).get(stage).file("examples.jsonl"))]
    ours, theirs = texts.values()
    assert None in ours and len(set(ours)) > 8
    assert ours == theirs


def test_ctranslate2_is_refused_where_it_cannot_work(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    node = NLLB(name=str(checkpoint), engine="ctranslate2")
    run, rows = SimpleNamespace(source="eng"), examples_stage(ROWS)
    assert node.stage(run, rows, "fin").key != NLLB(name=str(checkpoint)).stage(run, rows, "fin").key
    if find_spec("ctranslate2"):
        for kind, both, line in (("prophetnet", True, "cannot convert .*; set translator.engine=transformers"),
                                 ("bert", False, "no encoder-decoder")):
            shutil.copytree(checkpoint, tmp_path / kind)
            config = json.loads((tmp_path / kind / "config.json").read_text())
            (tmp_path / kind / "config.json").write_text(json.dumps(config | {"model_type": kind, "is_encoder_decoder": both}))
            with pytest.raises(XalignError, match=line) as caught:
                Cache(tmp_path / "cache").get(NLLB(name=str(tmp_path / kind), engine="ctranslate2").stage(run, rows, "fin"))
            assert "\n" not in str(caught.value) and str(tmp_path / kind) in str(caught.value)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="translator.engine=ctranslate2: CTranslate2 is not installed; pip install"):
        node.check_run(run)


def test_a_killed_translation_continues(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xalign.translators.nllb as module

    node, run, cache = NLLB(name=str(checkpoint), batch_tokens=1), SimpleNamespace(source="eng"), Cache(tmp_path)
    stage, asked = node.stage(run, examples_stage(ROWS), "fin"), []

    def dies(items, length, budget):
        for batch in by_tokens(items, length, budget):
            asked.append(batch)
            yield batch
            if len(asked) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "by_tokens", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.get(stage)
    log = cache.folder(stage).with_name(stage.key + ".partial") / "sentences.jsonl.0"
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2
    with open(log, "a", encoding="utf-8") as f:
        f.write('{"id": "half a li')  # what a power cut leaves
    artifact = cache.get(stage)
    assert len(asked) == 3  # only the third sentence was left to do
    assert next(read_jsonl(artifact.file("examples.jsonl")))["prompt"] == "Lamppu on päällä. Ovi on auki.\n\n- Onko kylmä?"


def test_unknown_language_and_folder(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(XalignError, match="its tokenizer does not know hun_Latn; use an NLLB-200 checkpoint"):
        load_tokenizer(checkpoint, "eng", "hun")
    with pytest.raises(XalignError, match="translator.name: .*cannot be opened as an NLLB model"):
        load_tokenizer(tmp_path, "eng", "fin")
    with pytest.raises(ConfigError, match="translator.name=./nowhere: no such folder"):
        build({"_target_": "xalign.translators.nllb.NLLB", "name": "./nowhere"}, "translator").check_run(SimpleNamespace())


def test_key_follows_what_decides_the_text(checkpoint: Path) -> None:
    run, rows = SimpleNamespace(source="eng"), examples_stage(ROWS)
    node = NLLB(name=str(checkpoint))
    assert node.stage(run, rows, "fin").key != NLLB(name=str(checkpoint), beam=1).stage(run, rows, "fin").key
    assert node.stage(run, rows, "fin").key == NLLB(name=str(checkpoint), batch_tokens=8).stage(run, rows, "fin").key
