"""A Llama-architecture GGUF file as a Hugging Face model folder.

The weights are dequantised to float32 by the `gguf` package and renamed; query and key rows, which GGUF
stores interleaved for its rotary embedding, are put back into the halves that transformers expects.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xalign.config import XalignError

LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
SPECIAL = 3  # GGUF token type "control"


def convert(path: Path, folder: Path) -> Mapping[str, Any]:
    """Write `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer's files into `folder`.

    Raises:
        XalignError: for an architecture other than Llama or a tokenizer other than SmolLM's byte-level BPE.
    """
    import gguf
    import numpy as np
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(str(path))

    def read(key: str, default: Any = None) -> Any:
        field = reader.fields.get(key)
        return default if field is None else field.contents()

    if read("general.architecture") != "llama" or read("tokenizer.ggml.pre") not in ("smollm", "smollm2"):
        raise XalignError(f"{path.name}: only Llama-architecture GGUF files with SmolLM's tokenizer can be converted")
    heads, kv_heads = read("llama.attention.head_count"), read("llama.attention.head_count_kv")
    hidden, eos = read("llama.embedding_length"), read("tokenizer.ggml.eos_token_id")

    tensors = {}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            if part in ("attn_q", "attn_k"):
                count = heads if part == "attn_q" else kv_heads
                value = value.reshape(count, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            target = f"model.layers.{layer}.{LAYER[part]}.weight"
        else:
            target = f"{TOP[name]}.weight"
        tensors[target] = np.ascontiguousarray(value)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": read("llama.vocab_size"),
        "hidden_size": hidden, "intermediate_size": read("llama.feed_forward_length"),
        "num_hidden_layers": read("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "hidden_act": "silu",
        "max_position_embeddings": read("llama.context_length"), "rope_theta": read("llama.rope.freq_base"),
        # transformers 5 reads this one
        "rope_parameters": {"rope_type": "default", "rope_theta": read("llama.rope.freq_base")},
        "rms_norm_eps": round(read("llama.attention.layer_norm_rms_epsilon"), 9), "initializer_range": 0.02,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": read("tokenizer.ggml.bos_token_id"), "eos_token_id": eos, "pad_token_id": eos,
        "use_cache": True, "dtype": "float32",
    }
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")})
    _tokenizer(folder, read("tokenizer.ggml.tokens"), read("tokenizer.ggml.token_type"), read("tokenizer.ggml.merges"),
               config["bos_token_id"], eos, read("tokenizer.ggml.unknown_token_id"), read("tokenizer.chat_template"),
               config["max_position_embeddings"])
    return {"parameters": int(sum(t.size for t in tensors.values())), "gguf": path.name}


def _tokenizer(folder: Path, tokens: list[str], types: list[int], merges: list[str], bos: int, eos: int, unk: int,
               template: str, length: int) -> None:
    """SmolLM's byte-level BPE. Nothing is added on encoding: the chat template writes every special token itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types) if kind == SPECIAL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": tokens[bos], "eos_token": tokens[eos], "pad_token": tokens[eos], "unk_token": tokens[unk]}
    _write(folder / "special_tokens_map.json", special)
    # The class name PreTrainedTokenizerFast is known to transformers 4 and 5 alike.
    _write(folder / "tokenizer_config.json", {**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length,
                                              "clean_up_tokenization_spaces": False, "chat_template": template,
                                              "model_input_names": ["input_ids", "attention_mask"]})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
