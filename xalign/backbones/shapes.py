"""What a model's config.json says of its size, read without torch: the plan's arithmetic starts here."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# the published configurations of the two backbones that come in wheels
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True}
E5_SMALL: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 250037, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2}

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class Shape:
    """How large a model is, in numbers (elements), not bytes.

    Attributes:
        kind: causal | encoder.
        layers, hidden, intermediate, heads, vocab: as in config.json.
        queries, keys: width of a token's queries, and of its keys (as of its values).
        linears: (in, out) of each matrix of a layer, which are what LoRA adapts.
        vectors: biases and norms of a layer.
        norms: summed width of what a layer normalises.
        words: word embeddings.
        rest: everything else outside the layers: positions, the last norm, an output projection of its own, an encoder's head.
        frozen: how many of these parameters are not trained (an encoder's word embeddings).
    """

    kind: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocab: int
    queries: int
    keys: int
    linears: tuple[tuple[int, int], ...]
    vectors: int
    norms: int
    words: int
    rest: int
    frozen: int = 0

    @property
    def parameters(self) -> int:
        return self.layers * (sum(i * o for i, o in self.linears) + self.vectors) + self.words + self.rest

    @property
    def largest(self) -> int:
        """Elements of the largest matrix."""
        return max(self.words, *(i * o for i, o in self.linears))

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA of that rank on every linear map of every layer: rank x in and out x rank."""
        return self.layers * rank * sum(i + o for i, o in self.linears)


def read_config(path: Path) -> dict[str, Any]:
    """A config.json; empty if it cannot be read (loading the model will say why)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_shape(config: Mapping[str, Any], kind: str) -> Shape | str:
    """The shape that a ``config.json`` describes, or why it is not known: a wrong number would be worse than none.

    Args:
        kind: causal | encoder, as which the model is to be opened.
    """
    family, known = config.get("model_type"), DECODERS if kind == "causal" else ENCODERS
    if family not in known:
        return f"its architecture ({family}) is none of {', '.join(known)}"
    if config.get("quantization_config"):
        return "its weights are quantised"
    try:
        return (_decoder if kind == "causal" else _encoder)(config, str(family))
    except (KeyError, TypeError, ValueError) as e:
        return f"its config.json lacks a usable {e.args[0] if isinstance(e, KeyError) else 'size'}"


def _sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    return tuple(int(config[name]) for name in names)


def _decoder(config: Mapping[str, Any], family: str) -> Shape:
    """Llama and its kin: RMS norms, grouped queries, a gated MLP of three matrices."""
    layers, h, f, heads, vocab = _sizes(config)
    head = int(config.get("head_dim") or (128 if family == "qwen3" else h // heads))
    q, k = heads * head, int(config.get("num_key_value_heads") or heads) * head
    linears = ((h, q), (h, k), (h, k), (q, h), (h, f), (h, f), (f, h))
    bias = bool(config.get("attention_bias")) and family in ("llama", "qwen3")
    vectors = 2 * h + (q + 2 * k if bias or family == "qwen2" else 0) + (h if bias else 0)
    if config.get("mlp_bias") and family == "llama":
        vectors += 2 * f + h
    norms = 2 * h
    if family == "qwen3":  # queries and keys are normalised head by head
        vectors, norms = vectors + 2 * head, norms + q + k
    tied = bool(config.get("tie_word_embeddings", False))
    return Shape("causal", layers, h, f, heads, vocab, q, k, linears, vectors, norms, vocab * h, h + (0 if tied else vocab * h))


def _encoder(config: Mapping[str, Any], family: str) -> Shape:
    """BERT's kind, without pooler and language head: layer norms and biases everywhere, an MLP of two matrices."""
    layers, h, f, heads, vocab = _sizes(config)
    positions, types = int(config["max_position_embeddings"]), int(config.get("type_vocab_size", 2))
    linears = ((h, h), (h, h), (h, h), (h, h), (h, f), (f, h))
    vectors = sum(out for _, out in linears) + 4 * h  # each norm has a weight and a bias
    return Shape("encoder", layers, h, f, heads, vocab, h, h, linears, vectors, 2 * h, vocab * h, (positions + types + 2) * h)
