"""What a loss is to the trainer: a sum and a count. Only the trainer divides."""
from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xalign.data.packing import IGNORED, Batch


@dataclass(frozen=True)
class LossOut:
    """One micro-batch's loss.

    Attributes:
        sum: scalar, summed over supervised tokens, in nats; carries the gradient.
        count: scalar, the number of supervised tokens.
        logs: further scalars, summed over supervised tokens; the trainer logs each divided by the count.
    """

    sum: Tensor
    count: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


def label_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Run the model and return its logits where they are needed.

    Args:
        model: a causal language model of transformers, or the engine around it.
        batch: packed [1, T] (the model then needs `xalign.training.attention.use_packed`) or padded [B, T].
    Returns:
        logits [B, C, V], labels [B, C], weights [B, C] for the C positions that have a label in any row.
    """
    columns = (batch.labels != IGNORED).any(0).nonzero()[:, 0]
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if batch.layout:
        inputs["layout"] = batch.layout
    few = "logits_to_keep" in inspect.signature(getattr(model, "module", model).forward).parameters
    if few:  # the vocabulary projection is the largest matrix: spare it the prompts
        inputs["logits_to_keep"] = columns
    logits = model(**inputs).logits
    return logits if few else logits[:, columns], batch.labels[:, columns], batch.weights[:, columns]


def token_ce(model: Any, batch: Batch) -> LossOut:
    """Weighted cross-entropy of the supervised tokens.

    Returns:
        sum: sum over supervised tokens of weight * CE [nats]; logs: ``ce``, the same without weights.
    """
    logits, labels, weights = label_logits(model, batch)
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return LossOut((ce * weights.flatten()).sum(), (labels != IGNORED).sum(), {"ce": ce.detach().sum()})
