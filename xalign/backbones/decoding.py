"""Greedy decoding in length-sorted batches with a key-value cache."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from xalign.backbones.scoring import SHARED_MIN, common_prefix, logits_at

BATCH_TOKENS = 6144  # prompt and answer tokens of one batch on CPU


def greedy_batches(model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, stop: set[int],
                   ends: Callable[[list[int]], bool] | None = None) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield (row indices, generated ids without the stop token) batch by batch, short prompts first.

    Args:
        rows: non-empty prompt ids.
        stop: token ids that end an answer.
        ends: told the answer's ids so far, returns True when it is complete.
    """
    budget = BATCH_TOKENS if next(model.parameters()).device.type == "cpu" else 16 * BATCH_TOKENS
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        n = 1
        while n < len(order) and (n + 1) * (len(rows[order[n]]) + max_new_tokens) <= budget:
            n += 1
        batch, order = order[:n], order[n:]
        yield batch, _greedy(model, [rows[i] for i in batch], max_new_tokens, stop, ends)


@torch.inference_mode()
def _greedy(model: Any, rows: list[Sequence[int]], max_new_tokens: int, stop: set[int],
            ends: Callable[[list[int]], bool] | None) -> list[list[int]]:
    from transformers import DynamicCache

    device = next(model.parameters()).device
    cache = DynamicCache()
    shared = min(common_prefix(rows), min(map(len, rows)) - 1)
    if shared >= SHARED_MIN and len(rows) > 1:
        prefix = torch.tensor([list(rows[0][:shared])], device=device)
        logits_at(model, 1, input_ids=prefix, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(rows))
    else:
        shared = 0
    width = max(map(len, rows)) - shared
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.ones(len(rows), shared + width, dtype=torch.long)
    for k, row in enumerate(rows):  # padding stands between the shared prefix and the row's own tokens
        pad = width - (len(row) - shared)
        ids[k, pad:] = torch.tensor(list(row[shared:]))
        mask[k, shared:shared + pad] = 0
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, shared:]
    answers: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))  # the row behind each line of the batch
    live = [True] * len(rows)       # lines still growing
    for step in range(max_new_tokens):
        logits = logits_at(model, 1, input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                           use_cache=True)[:, -1]
        chosen = logits.argmax(-1)
        for line, token in enumerate(chosen.tolist()):
            if live[line]:
                answer = answers[alive[line]]
                if token in stop:
                    live[line] = False
                else:
                    answer.append(token)
                    live[line] = not (ends and ends(answer))
        if not any(live) or step + 1 == max_new_tokens:
            break
        positions = positions[:, -1:] + 1
        if sum(live) <= 0.8 * len(live):  # finished lines cost as much as living ones
            keep = torch.tensor([line for line, on in enumerate(live) if on], device=device)
            cache.batch_select_indices(keep)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
            alive = [alive[line] for line in keep.tolist()]
            live = [True] * len(alive)
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
    return answers
