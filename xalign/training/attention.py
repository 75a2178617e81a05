"""Attention over a packed sequence: each row sees the shared prefix and itself.

Registered with transformers' attention interface, so that any model built on it (Llama, Mistral, Qwen,
Gemma, OLMo ...) can be trained on packed rows. No implementation has a T x T mask, and none computes
anything between rows:

    sdpa   PyTorch's scaled dot-product attention, row by row
    eager  the model's own function, row by row; it knows the model's logit caps and attention sinks
    flash  PyTorch's variable-length flash attention, all rows in one kernel; CUDA, bf16
"""
from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from xalign.config import ConfigError
from xalign.data.packing import IGNORED, Layout, Row, pack, pad
from xalign.training.losses import bare, label_logits

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def packed_sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                layout: Layout | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """Attention outputs [1, T, heads, d] for query [1, heads, T, d], key and value [1, kv_heads, T, d].

    Without a layout (a padded batch, or anything else that calls the model) this is plain SDPA.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    refuse("sdpa", kwargs, ("softcap", "s_aux"))
    refuse_long(kwargs, layout)
    if query.is_cuda:  # with a mask, its fast kernels want as many key heads as query heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    dropout = kwargs.get("dropout", 0.0) if module.training else 0.0

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=kwargs.get("scaling"), enable_gqa=True)
        return out.transpose(1, 2)

    return by_row(attend, query, key, value, layout), None


def packed_eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                 layout: Layout | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """The same by the eager function of the model's own file; shapes as in `packed_sdpa`."""
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise ConfigError(f"trainer.attention=eager: {type(module).__name__} has no eager attention of its own; "
                          "set trainer.attention=sdpa")

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)[None, None]
        return own(module, q, k, v, mask, **kwargs)[0]

    if layout is None:
        return attend(query, key, value, attention_mask), None
    refuse_long(kwargs, layout)
    return by_row(attend, query, key, value, layout), None


def packed_flash(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                 layout: Layout | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """The same in one kernel; shapes as in `packed_sdpa`. Without a layout this is plain SDPA."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    from torch.nn.attention.varlen import varlen_attn

    refuse("flash", kwargs, ("softcap", "s_aux"))
    if module.training:
        refuse("flash", kwargs, ("dropout",))
    k, v = (x[0].transpose(0, 1).index_select(0, layout.keys) for x in (key, value))
    window = (kwargs.get("sliding_window") or 0) - 1  # -1: sees everything before it
    out = varlen_attn(query[0].transpose(0, 1), k, v, layout.starts[0], layout.starts[1], max(layout.sizes), layout.mask.shape[1],
                      scale=kwargs.get("scaling"), window_size=(window, 0), enable_gqa=True)
    return out[None], None


def by_row(attend: Attend, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """[1, T, heads, d]: `attend` called for the prefix (mask None: causal), then for every row behind it."""
    p = layout.prefix
    rows = list(zip(*(x.split(layout.sizes, 2) for x in (query, key, value)), strict=True))
    out, shared = [], rows[0][1:]
    for q, k, v in rows[:1] if p else ():
        out.append(attend(q, k, v, None))
    for q, k, v in rows[1:] if p else rows:
        n = q.shape[2]
        if p:
            k, v = torch.cat([shared[0], k], 2), torch.cat([shared[1], v], 2)
        out.append(attend(q, k, v, layout.mask[:n, :p + n] if p else None))
    return torch.cat(out, 1)


def refuse(name: str, kwargs: dict[str, Any], extras: Sequence[str]) -> None:
    """Raise ConfigError if the model's attention has something that the implementation lacks."""
    for extra in extras:
        value = kwargs.get(extra)
        if isinstance(value, Tensor) or value:
            raise ConfigError(f"trainer.attention={name}: the model's attention uses {extra}, which {name} lacks; "
                              "set trainer.attention=eager")


def refuse_long(kwargs: dict[str, Any], layout: Layout) -> None:
    """Raise ConfigError for a row beyond the model's sliding window."""
    window = kwargs.get("sliding_window")
    if window and layout.mask.shape[1] > window:
        raise ConfigError(f"trainer.packing=true: a row of {layout.mask.shape[1]} tokens exceeds the model's sliding window of "
                          f"{window}; set trainer.max_length={window}, trainer.attention=flash or trainer.packing=false")


PACKED = {"flash": packed_flash, "sdpa": packed_sdpa, "eager": packed_eager}
# transformers looks for "sdpa" and "flash" in a name and then applies checks of its own
REGISTERED = {"flash": "xalign_varlen", "sdpa": "xalign_rows", "eager": "xalign_own"}


def flash_reason(model: Any) -> str:
    """Why flash cannot serve `model` where it is; empty if it can."""
    weight = next(bare(model).parameters())
    if not weight.is_cuda:
        return "needs a CUDA device"
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return f"computes in half precision only, the model is {str(weight.dtype).removeprefix('torch.')}; set trainer.precision=bf16"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"PyTorch {torch.__version__} has no variable-length attention"
    return "" if "enable_gqa" in inspect.signature(varlen_attn).parameters else f"PyTorch {torch.__version__}'s is too old"


def use_packed(model: Any, rows: Sequence[Row], choice: str = "auto", opaque: bool = False) -> str:
    """Switch a transformers model to packed attention, and prove on two short rows that it obeys.

    Args:
        model: the model, or the trainer's engine around it.
        choice: sdpa, eager, flash, or auto: the first of flash, sdpa and eager that this model passes.
        opaque: the model's layers are compiled: keep the compiler out of attention, whose rows differ from batch to batch.
    Returns:
        The implementation in use.
    Raises:
        ConfigError: when the model does not use transformers' attention interface, when the implementation lacks
            something that the model's attention has, or when the logits of packed rows are not those of separate rows.
    """
    inner = bare(model)
    if not getattr(inner, "_supports_attention_backend", False):
        raise ConfigError(f"trainer.packing=true: {type(inner).__name__} does not use transformers' attention interface; "
                          "set trainer.packing=false")
    reason = flash_reason(model)
    if choice == "flash" and reason:
        raise ConfigError(f"trainer.attention=flash: {reason}; set trainer.attention=auto")
    names = [choice] if choice != "auto" else [n for n in PACKED if n != "flash" or not reason]
    probe = sorted(rows, key=lambda r: len(r.ids))[:2]
    training = inner.training
    inner.eval()
    try:
        apart = _probe(model, pad(probe))
        failed: list[ConfigError] = []
        for name in names:
            key = REGISTERED[name] + "_opaque" * opaque
            ALL_ATTENTION_FUNCTIONS.register(key, torch.compiler.disable(PACKED[name]) if opaque else PACKED[name])
            inner.set_attn_implementation(key)
            try:
                packed = _probe(model, pack(probe))
            except ConfigError as e:
                failed.append(e)
                continue
            close = 1e-3 if packed.dtype == torch.float32 else 5e-2
            if (packed - apart).abs().max() <= close * apart.abs().max():
                return name
            failed.append(ConfigError(f"trainer.packing=true: {type(inner).__name__} does not keep packed rows apart with "
                                      f"trainer.attention={name}; set trainer.packing=false"))
        raise failed[0]
    finally:
        inner.train(training)


@torch.no_grad()
def _probe(model: Any, batch: Any) -> Tensor:
    """[targets, V] logits of the batch's targets, row by row."""
    logits, labels, _ = label_logits(model, batch.to(next(bare(model).parameters()).device))
    return logits[labels != IGNORED]
