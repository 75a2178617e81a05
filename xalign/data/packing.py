"""Tokenised rows, and how they become micro-batches.

What a method may decide: ``method.row_weights(rows: list[Row]) -> list[float]`` gives, for each row, the
weight of *each of its supervised tokens* (`Method`'s default: ``row.weight``, which is ``Example.weight``).
The trainer calls it once on the training rows and once on the validation rows, after tokenising, when
`Row.targets` is known. The loss of a step is ``sum(weight * CE) / number of supervised tokens``.

A packed micro-batch is ONE sequence [1, T] without padding: the rows' common prefix (the system prompt
of a chat template, typically 40 % of a short row) once, then what is left of each row. Every row attends to
the prefix and to itself, never to a neighbour (`xalign.training.attention`), so loss and gradient equal
those of separate rows.
"""
from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # a position without a label
PREFIX = -1  # the segment id of the shared prefix
PADDING = -2  # the segment id of padding (unpacked batches only)


@dataclass(frozen=True)
class Row:
    """A tokenised Example.

    Attributes:
        ids: prompt and response token ids, the response ending with its end token.
        n_prompt: how many leading ids are prompt (at least 1, never supervised).
        weight: weight of each supervised token in the loss.
        subset, group: as in `Example`; an empty group means the row is its own group.
        parts: for an encoder, the lengths of the texts that `ids` concatenates (`xalign.data.choices`); the row
            then has one target, the choice of option `gold` (-1: none).
        twin: the same row with the source-language prompt (`Example.pivot`); as many targets, the same answer.
    """

    id: str
    ids: tuple[int, ...]
    n_prompt: int
    subset: str = ""
    group: str = ""
    weight: float = 1.0
    parts: tuple[int, ...] = ()
    gold: int = -1
    twin: Row | None = None

    @property
    def targets(self) -> int:
        """The number of supervised tokens; of an encoder's row, of supervised choices."""
        return int(self.gold >= 0) if self.parts else len(self.ids) - self.n_prompt

    @property
    def tokens(self) -> int:
        """Tokens that the row costs, its twin's included."""
        return len(self.ids) + (self.twin.tokens if self.twin else 0)

    def unlabelled(self) -> Row:
        """The row without targets: something to compute when there is nothing to learn."""
        return replace(self, n_prompt=len(self.ids), gold=-1, twin=self.twin and self.twin.unlabelled())


@dataclass(frozen=True)
class Layout:
    """Where a packed batch keeps its sequences, for the attention function.

    A sequence is the shared prefix (if there is one; always the first), or the own part of a row, whose queries look
    at the whole prefix and causally at themselves.

    Attributes:
        prefix: P, the leading positions that all rows share.
        sizes: length of each sequence; they add up to T.
        mask: [L, P + L] True where a query of a row of L tokens may look, L being the longest; a shorter row of n
            tokens takes the corner [:n, :P + n].
        keys: [K] the packed positions that each sequence looks at, one sequence after the other: the prefix, then
            prefix and own part of every row.
        starts: int32 [2, sequences + 1] where each sequence begins among the queries and among `keys`.
    """

    prefix: int
    sizes: tuple[int, ...]
    mask: Tensor
    keys: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch: [1, T] packed, or [B, T] padded on the right.

    Attributes:
        input_ids: int64.
        labels: int64, ALREADY SHIFTED: the token that this position must predict, or -100.
        position_ids: int64, restarting behind the prefix for every row.
        segment_ids: int64, index into `rows`; -1 for the shared prefix, -2 for padding.
        weights: float32, weight of the label's cross-entropy, 0 where there is no label.
        rows: the rows themselves, e.g. ``batch.rows[s].subset``.
        layout: the sequences' places when packed, else None.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    weights: Tensor
    rows: tuple[Row, ...]
    layout: Layout | None = None

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        def move(thing: Any) -> Any:
            return replace(thing, **{k: v.to(device) for k, v in vars(thing).items() if hasattr(v, "to")})

        moved = move(self)
        return replace(moved, layout=move(self.layout)) if self.layout else moved


def common_prefix(rows: Sequence[Row]) -> int:
    """How many leading ids all rows share without touching a supervised position; 0 for a single row."""
    if len(rows) < 2:
        return 0
    low, high = min(r.ids for r in rows), max(r.ids for r in rows)  # the extremes share what all share
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return min(n, min(r.n_prompt for r in rows) - 1)


def pack(rows: Sequence[Row]) -> Batch:
    """Concatenate rows into one packed batch [1, T]."""
    import torch

    prefix = common_prefix(rows)
    sizes = [prefix] * (prefix > 0) + [len(r.ids) - prefix for r in rows]
    ids, labels, positions = list(rows[0].ids[:prefix]), [IGNORED] * prefix, list(range(prefix))
    segments, weights = [PREFIX] * prefix, [0.0] * prefix
    keys, ends = list(range(prefix)), [prefix] * (prefix > 0)
    for s, r in enumerate(rows):
        row_labels, row_weights = _supervise(r)
        keys += [*range(prefix), *range(len(ids), len(ids) + len(r.ids) - prefix)]
        ends.append(len(keys))
        ids += r.ids[prefix:]
        labels += row_labels[prefix:]
        weights += row_weights[prefix:]
        positions += range(prefix, len(r.ids))
        segments += [s] * (len(r.ids) - prefix)
    longest = max(sizes[-len(rows):])
    mask = torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix)
    starts = torch.tensor([[0, *accumulate(sizes)], [0, *ends]], dtype=torch.int32)
    long = [torch.tensor([x]) for x in (ids, labels, positions, segments)]
    return Batch(*long, torch.tensor([weights]), tuple(rows), Layout(prefix, tuple(sizes), mask, torch.tensor(keys), starts))


def pad(rows: Sequence[Row]) -> Batch:
    """Put rows into one right-padded batch [B, T]; the causal mask alone keeps padding out of sight."""
    import torch

    length = max(len(r.ids) for r in rows)

    def table(values: list[list[Any]], fill: Any) -> Tensor:
        return torch.tensor([v + [fill] * (length - len(v)) for v in values])

    supervised = [_supervise(r) for r in rows]
    return Batch(table([list(r.ids) for r in rows], 0), table([labels for labels, _ in supervised], IGNORED),
                 torch.arange(length).repeat(len(rows), 1),
                 table([[s] * len(r.ids) for s, r in enumerate(rows)], PADDING),
                 table([weights for _, weights in supervised], 0.0), tuple(rows))


def _supervise(row: Row) -> tuple[list[int], list[float]]:
    """Labels and weights of one row: position n_prompt - 1 predicts the first response token."""
    before, n = row.n_prompt - 1, row.targets
    return [IGNORED] * before + list(row.ids[row.n_prompt:]) + [IGNORED], [0.0] * before + [row.weight] * n + [0.0]


def split_groups(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Cut rows into (training, validation) so that a group is on one side only.

    Groups enter the validation set in a seeded order while the set stays within `share` of the rows;
    at least one group when share > 0 and there are two groups or more.
    """
    groups: dict[str, list[Row]] = {}
    for r in rows:
        groups.setdefault(r.group or r.id, []).append(r)
    held: set[str] = set()
    if share > 0 and len(groups) > 1:
        order = sorted(groups, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
        room = share * len(rows)
        for g in order:
            if held and len(groups[g]) > room:
                break
            held.add(g)
            room -= len(groups[g])
    return ([r for r in rows if (r.group or r.id) not in held], [r for r in rows if (r.group or r.id) in held])


def plan_steps(rows: Sequence[Row], tokens_per_step: int, seed: int, epoch: int) -> list[list[Row]]:
    """Shuffle the rows of one epoch and cut them into optimiser steps of at most `tokens_per_step` tokens
    (a longer row is a step of its own).

    Depends on nothing but its arguments, so neither micro-batching nor the world size changes a step, and a
    resumed run finds its place by the step's number.
    """
    order = list(rows)
    random.Random(f"{seed}:{epoch}").shuffle(order)
    steps: list[list[Row]] = []
    used = tokens_per_step
    for r in order:
        if not steps or used + r.tokens > tokens_per_step:
            steps.append([])
            used = 0
        steps[-1].append(r)
        used += r.tokens
    return steps


def deal(rows: Sequence[Row], parts: int) -> list[list[Row]]:
    """Deal the rows of a step into `parts` micro-batches of about equal token counts.

    With fewer rows than parts, an empty part gets the shortest row without its labels: every process must
    run the same number of micro-batches.
    """
    bins: list[list[Row]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for r in sorted(rows, key=lambda r: (-r.tokens, r.id)):
        k = sizes.index(min(sizes))
        bins[k].append(r)
        sizes[k] += r.tokens
    filler = min(rows, key=lambda r: r.tokens).unlabelled()
    return [b or [filler] for b in bins]
