"""What a loss is to the trainer: a sum and a count. Only the trainer divides."""
from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xalign.data.choices import ChoiceBatch, collate
from xalign.data.packing import IGNORED, Batch


@dataclass(frozen=True)
class LossOut:
    """One micro-batch's loss.

    Attributes:
        sum: scalar, summed over targets (supervised tokens; an encoder's choices), in nats; carries the gradient.
        count: scalar, the number of targets.
        logs: further scalars, summed over targets; the trainer logs each divided by the count.
    """

    sum: Tensor
    count: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Aids:
    """What a loss may use besides the model it trains: `aids(model)`. Never trained, never saved.

    Attributes:
        backbone: the trained model's backbone, for its tokenizer.
        teacher: another backbone, frozen, in evaluation mode; None unless the stage names one.
    """

    backbone: Any
    teacher: Any = None


@dataclass(frozen=True)
class Targets:
    """The model's predictions where a row has targets, in the rows' order.

    Attributes:
        logits: [n, V] over the vocabulary; for an encoder over the options of the row (missing ones: the least number).
        labels: [n] the right token or option.
        weights: [n] of each target in the loss.
        rows: [n] index into ``batch.rows``.
        states: [n, H] last hidden states there (an encoder: its prompt's vector), if asked for.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    rows: Tensor
    states: Tensor | None = None

    @property
    def count(self) -> Tensor:
        return torch.tensor(len(self.labels))


def bare(model: Any) -> Any:
    """The module inside the trainer's engine, or the module itself."""
    return getattr(model, "module", model)


def aids(model: Any) -> Aids:
    """See `Aids`."""
    return bare(model).aids


def twins(batch: Batch | ChoiceBatch) -> Batch | ChoiceBatch:
    """The batch of the twins of those rows that have one, in the same order and with the same labels."""
    packing = isinstance(batch, Batch) and batch.layout is not None
    return collate([r.twin for r in batch.rows if r.twin], packing).to(batch.input_ids.device)


def forward(model: Any, batch: Batch, **more: Any) -> Any:
    """transformers' output of a causal model for a batch; `more` goes to the model."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False, **more}
    if batch.layout:
        inputs["layout"] = batch.layout
    return model(**inputs)


def label_logits(model: Any, batch: Batch, states: bool = False) -> tuple[Tensor, ...]:
    """Run the model and return its logits where they are needed.

    Args:
        model: a causal language model of transformers, or the engine around it.
        batch: packed [1, T] (the model then needs `xalign.training.attention.use_packed`) or padded [B, T].
        states: also return the last hidden states there.
    Returns:
        logits [B, C, V], labels [B, C], weights [B, C] for the C positions that have a label in any row; states [B, C, H].
    """
    columns = (batch.labels != IGNORED).any(0).nonzero()[:, 0]
    more: dict[str, Any] = {"output_hidden_states": True} if states else {}
    few = "logits_to_keep" in inspect.signature(bare(model).forward).parameters
    if few:  # the vocabulary projection is the largest matrix: spare it the prompts
        more["logits_to_keep"] = columns
    out = forward(model, batch, **more)
    found = (out.logits if few else out.logits[:, columns], batch.labels[:, columns], batch.weights[:, columns])
    return (*found, out.hidden_states[-1][:, columns]) if states else found


def targets(model: Any, batch: Batch | ChoiceBatch, states: bool = False) -> Targets:
    """The model's predictions for every target of the batch; `states`: with `Targets.states`."""
    if isinstance(batch, ChoiceBatch):
        out = model(batch, vectors=states)
        logits, vectors = out if states else (out, None)
        kept = (batch.gold >= 0).nonzero()[:, 0]
        return Targets(logits[kept], batch.gold[kept], batch.weights[kept], kept, vectors[kept] if states else None)
    logits, labels, weights, *vectors = label_logits(model, batch, states)
    rows, kept = batch.segment_ids[:, (batch.labels != IGNORED).any(0)], labels != IGNORED
    # one sequence (packed, or a single row) has a label in every column: no copy then
    parts = [x[0] if len(labels) == 1 else x[kept] for x in (logits, labels, weights, rows, *vectors)]
    return Targets(*parts)


def cross_entropy(found: Targets) -> LossOut:
    """Weighted cross-entropy of the targets.

    Returns:
        sum: sum over targets of weight * CE [nats]; logs: ``ce``, the same without weights.
    """
    ce = torch.nn.functional.cross_entropy(found.logits.float(), found.labels, reduction="none")
    return LossOut((ce * found.weights).sum(), found.count, {"ce": ce.detach().sum()})


def supervised(model: Any, batch: Batch | ChoiceBatch) -> LossOut:
    """Weighted cross-entropy of the answer tokens, or of an encoder's choice among the options."""
    return cross_entropy(targets(model, batch))
