"""Attention over a packed sequence: each row sees the shared prefix and itself.

Registered with transformers' attention interface, so that any model built on it (Llama, Mistral, Qwen,
Gemma, OLMo ...) can be trained on packed rows. The rows are viewed as a padded batch for the scores only, and
transformers' own SDPA function does the arithmetic: no T x T mask, nothing computed between rows.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from xalign.config import ConfigError
from xalign.data.packing import IGNORED, Layout, Row, pack, pad
from xalign.training.losses import label_logits

NAME = "xalign_packed"


def packed_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                     layout: Layout | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """Attention outputs [1, T, heads, d] for query [1, heads, T, d], key and value [1, kv_heads, T, d].

    Without a layout (a padded batch, or anything else that calls the model) this is plain SDPA.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for extra in ("softcap", "s_aux"):
        if kwargs.get(extra) is not None:
            raise ConfigError(f"trainer.packing=true: the model's attention uses {extra}, which SDPA lacks; "
                              "set trainer.packing=false")
    window = kwargs.get("sliding_window")
    if window and layout.mask.shape[-1] > window:
        raise ConfigError(f"trainer.packing=true: a row of {layout.mask.shape[-1]} tokens exceeds the model's sliding window of "
                          f"{window}; set trainer.max_length={window} or trainer.packing=false")
    p = layout.prefix

    def by_row(x: Tensor) -> Tensor:
        return x[0, :, layout.rows].transpose(0, 1)

    def behind_prefix(x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :p].expand(len(layout.rows), -1, -1, -1), by_row(x)], 2)

    own, _ = sdpa_attention_forward(module, by_row(query), behind_prefix(key), behind_prefix(value), layout.mask, **kwargs)
    own = own.flatten(0, 1)[layout.back][None]
    if not p:
        return own, None
    shared, _ = sdpa_attention_forward(module, query[:, :, :p], key[:, :, :p], value[:, :, :p], None, is_causal=True, **kwargs)
    return torch.cat([shared, own], 1), None


@torch.no_grad()
def use_packed(model: Any, rows: Sequence[Row]) -> None:
    """Switch a transformers model to packed attention, and prove on two short rows that it obeys.

    Raises:
        ConfigError: when the model does not use transformers' attention interface, or when its logits on
            packed rows are not those on separate rows (attention sinks, or a layout that never arrives).
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise ConfigError(f"trainer.packing=true: {type(model).__name__} does not use transformers' attention interface; "
                          "set trainer.packing=false")
    probe = sorted(rows, key=lambda r: len(r.ids))[:2]
    training = model.training
    model.eval()
    apart, labels, _ = label_logits(model, pad(probe))
    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)
    packed, _, _ = label_logits(model, pack(probe))
    model.train(training)
    apart = apart[labels != IGNORED]
    if not (packed[0] - apart).abs().max() <= 1e-3 * apart.abs().max():
        raise ConfigError(f"trainer.packing=true: {type(model).__name__} does not keep packed rows apart; "
                          "set trainer.packing=false")
