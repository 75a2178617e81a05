"""An encoder's micro-batch: the texts of many choices, each text once."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xalign.data.packing import Batch, Row, pack, pad

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChoiceBatch:
    """N different texts and B rows that refer to them.

    Attributes:
        input_ids: [N, T] int64, padded on the right with 0.
        attention_mask: [N, T] int64, 0 on padding.
        index: [B, P] int64, the text of each part of each row (`Row.parts`); padding repeats text 0.
        mask: [B, P] bool, True where the row has that part.
        gold: [B] int64, index of the right option, -1 for none.
        weights: [B] float32, weight of the row's loss.
        rows: the rows themselves.
    """

    input_ids: Tensor
    attention_mask: Tensor
    index: Tensor
    mask: Tensor
    gold: Tensor
    weights: Tensor
    rows: tuple[Row, ...]

    def to(self, device: Any) -> ChoiceBatch:
        """The same batch on another device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if hasattr(v, "to")})


def gather(rows: Sequence[Row]) -> ChoiceBatch:
    """Put encoder rows into one batch; a text that several rows share (an option, say) is computed once."""
    import torch

    texts: dict[tuple[int, ...], int] = {}
    index: list[list[int]] = []
    for r in rows:
        at, own = 0, []
        for length in r.parts:
            own.append(texts.setdefault(r.ids[at:at + length], len(texts)))
            at += length
        index.append(own)
    widest, longest = max(map(len, index)), max(map(len, texts))
    return ChoiceBatch(torch.tensor([[*t, *[0] * (longest - len(t))] for t in texts]),
                       torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in texts]),
                       torch.tensor([[*own, *[0] * (widest - len(own))] for own in index]),
                       torch.tensor([[k < len(own) for k in range(widest)] for own in index]),
                       torch.tensor([r.gold for r in rows]), torch.tensor([r.weight for r in rows]), tuple(rows))


def collate(rows: Sequence[Row], packing: bool) -> Batch | ChoiceBatch:
    """The micro-batch of the rows: choices, or sequences packed or padded."""
    return gather(rows) if rows[0].parts else (pack if packing else pad)(rows)
