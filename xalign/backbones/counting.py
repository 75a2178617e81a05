"""Counts what a model computes, call by call, in `xalign.meter.work`: one mechanism for training, scoring, generation and rollouts."""
from __future__ import annotations

from typing import Any

import torch

from xalign.backbones.encoder import Scorer
from xalign.meter import work


def watch(model: Any) -> None:
    """Count every forward pass of `model` from now on.

    A position read costs 2 FLOPs a weight, and with a backward pass to come 6, of a frozen weight 4; embeddings are only
    looked up. The output projection counts for the positions whose logits are computed. What attention scores cost is left out, as
    usual (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and so is what activation checkpointing computes again.

    Args:
        model: a transformers model, causal or encoder-decoder, or an encoder's `Scorer`; not yet partitioned by ZeRO-3.
    """
    if isinstance(model, Scorer):
        readers, head = [model.encoder], model.head
    else:
        readers = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]
        head = model.get_output_embeddings()
    known = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    known |= {id(p) for p in head.parameters()} if head is not None else set()
    for reader in readers:
        _count(reader, [p for p in reader.parameters() if id(p) not in known], reads=True)
    if head is not None:
        _count(head, list(head.parameters()), reads=False)


def _count(module: Any, weights: list[Any], reads: bool) -> None:
    """Add what each call of `module` costs, which has these weights; `reads`: its positions are tokens read."""
    trained = sum(p.numel() for p in weights if p.requires_grad)
    total = sum(p.numel() for p in weights)

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
        x = next((x for x in given if x is not None), None)
        if x is None:
            return
        positions = x.shape[:-1].numel() if x.is_floating_point() else x.numel()
        work.flops += positions * (4 * total + 2 * trained if trained and torch.is_grad_enabled() else 2 * total)
        if reads:
            work.tokens += positions
            work.half = next(module.parameters()).dtype != torch.float32

    module.register_forward_pre_hook(note, with_kwargs=True)
