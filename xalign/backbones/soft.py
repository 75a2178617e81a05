"""Soft prompts (Lester et al. 2021): tokens whose input vectors are trained, whatever the model's own vocabulary is."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xalign.config import XalignError

FILE = "soft_prompt.safetensors"


class SoftEmbedding(nn.Module):
    """An embedding table with `vectors` [k, H] for the ids from `first` on; the ids below it are the base table's."""

    def __init__(self, base: nn.Embedding, first: int, vectors: Tensor) -> None:
        super().__init__()
        self.base, self.first, self.vectors = base, first, nn.Parameter(vectors)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] → [..., H]"""
        soft = ids >= self.first
        own = self.vectors[(ids - self.first).clamp(0, len(self.vectors) - 1)]
        return torch.where(soft[..., None], own.to(self.base.weight.dtype), self.base(ids.masked_fill(soft, 0)))


def embedded(model: Any) -> Any:
    """The transformers model that holds the input embeddings: the model itself, or an encoder inside its `Scorer`."""
    return getattr(model, "encoder", model)


def add_soft_tokens(backbone: Any, tokens: Sequence[tuple[Sequence[str], str]]) -> nn.Parameter:
    """Add tokens to the tokenizer and vectors for them to the model.

    Args:
        tokens: for each soft prompt its tokens, and a text: the vectors start as the embeddings of its tokens, repeated.
    Returns:
        The trainable vectors [k, H] of all prompts.
    """
    model, tokenizer = embedded(backbone.model), backbone.tokenizer
    base = model.get_input_embeddings()
    first, vectors = len(tokenizer), []
    for names, text in tokens:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        vectors.append(base.weight.detach()[[ids[i % len(ids)] for i in range(len(names))]])
        tokenizer.add_tokens(list(names), special_tokens=True)
    model.set_input_embeddings(SoftEmbedding(base, first, torch.cat(vectors).clone()))
    return model.get_input_embeddings().vectors


def save_soft(backbone: Any, folder: Path) -> None:
    """Write the soft vectors, if there are any, and take them off the model: the rest is then saved in the hub's format."""
    from safetensors.torch import save_file

    model = embedded(backbone.model)
    soft = model.get_input_embeddings()
    if isinstance(soft, SoftEmbedding):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": soft.vectors.detach().cpu().contiguous()}, folder / FILE, metadata={"first": json.dumps(soft.first)})
        model.set_input_embeddings(soft.base)


def load_soft(model: Any, folder: Path) -> None:
    """Put the vectors that `save_soft` wrote into `folder` back, if there are any.

    Raises:
        XalignError: for a damaged file, or vectors of another model's width.
    """
    from safetensors import SafetensorError, safe_open

    if not (folder / FILE).is_file():
        return
    try:
        with safe_open(folder / FILE, "pt") as f:
            first, vectors = int(json.loads(f.metadata()["first"])), f.get_tensor("vectors")
    except (SafetensorError, TypeError, KeyError, ValueError) as e:
        raise XalignError(f"{folder / FILE}: holds no soft prompt ({e}); fetch or train the model again") from None
    model = embedded(model)
    base = model.get_input_embeddings()
    if vectors.dim() != 2 or vectors.shape[1] != base.weight.shape[1]:
        raise XalignError(f"{folder / FILE}: its vectors {list(vectors.shape)} do not fit embeddings of width {base.weight.shape[1]}; "
                          "it belongs to another model")
    model.set_input_embeddings(SoftEmbedding(base, first, vectors.to(base.weight.dtype)))
