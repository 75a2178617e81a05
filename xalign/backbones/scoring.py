"""Option log-likelihoods: prompts and options of many questions as one token tree, one forward pass."""
from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Row = tuple[list[int], list[list[int]]]  # (prompt ids, ids of each option)
TREE_TOKENS = 256   # tokens of one forward pass on CPU: attention is dense, so more costs more a token
SHARED_MIN = 8      # a shorter common prefix is not worth a cache


class Tree:
    """Token sequences merged where they share a prefix; each node attends to its ancestors only."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._child: dict[tuple[int, int], int] = {}

    def add(self, tokens: Sequence[int], node: int = -1) -> int:
        """Append `tokens` below `node` (-1: the root); returns the last token's node."""
        for token in tokens:
            key = (node, token)
            if key not in self._child:
                self._child[key] = len(self.tokens)
                self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
                self.tokens.append(token)
                self.parents.append(node)
            node = self._child[key]
        return node

    def mask(self) -> np.ndarray:
        """[T, T] bool: row i is True at node i and its ancestors."""
        seen = np.zeros((len(self.tokens),) * 2, dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i] = seen[parent]
            seen[i, i] = True
        return seen


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all rows share."""
    low, high = min(rows), max(rows)  # in lexicographic order, the extremes share the least
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def logits_at(model: Any, keep: int | torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits [B, K, V] of the last `keep` positions, or of those that an index tensor names.

    The others are not computed where the model can leave them out.
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, logits_to_keep=keep).logits
    logits = model(**inputs).logits
    return logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]


@torch.inference_mode()
def score_rows(model: Any, rows: Sequence[Row]) -> list[list[float]]:
    """Sum of log p(token | what stands before it) over each option's tokens, in nats.

    Args:
        model: a causal transformers model that takes 4-D additive attention masks (SDPA or eager).
        rows: non-empty prompts, each with non-empty options.
    """
    from transformers import DynamicCache

    if not rows:
        return []
    device = next(model.parameters()).device
    budget = TREE_TOKENS if device.type == "cpu" else 8 * TREE_TOKENS
    shared = min(common_prefix([p for p, _ in rows]), min(len(p) for p, _ in rows) - 1)
    cache = None
    if shared >= SHARED_MIN and len(rows) > 1:
        cache = DynamicCache()
        ids = torch.tensor([rows[0][0][:shared]], device=device)
        logits_at(model, 1, input_ids=ids, past_key_values=cache, use_cache=True)
    else:
        shared = 0
    out: list[list[float]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: rows[i][0])  # neighbours share the most
    start = 0
    while start < len(order):
        tree, asked = Tree(), []  # asked: (row, option, node before the token, token)
        while start < len(order):
            i = order[start]
            prompt, options = rows[i]
            new = len(prompt) - shared + sum(len(o) - 1 for o in options)
            if asked and len(tree.tokens) + new > budget:
                break
            last = tree.add(prompt[shared:])
            for j, option in enumerate(options):
                node = last
                for token in option[:-1]:
                    asked.append((i, j, node, token))
                    node = tree.add([token], node)
                asked.append((i, j, node, option[-1]))  # the last token is predicted, never read
            start += 1
        for (i, j, _, _), value in zip(asked, _token_scores(model, tree, asked, cache, shared), strict=True):
            if j == len(out[i]):
                out[i].append(0.0)
            out[i][j] += value
        if cache is not None:
            cache.crop(shared - cache.get_seq_length())  # negative: how many to drop, the form all versions take
    return out


def _token_scores(model: Any, tree: Tree, asked: list[tuple[int, int, int, int]], cache: Any, shared: int) -> list[float]:
    """log p of each asked token given its node, from one forward pass over `tree`."""
    weight = next(model.parameters())
    seen = torch.from_numpy(np.pad(tree.mask(), ((0, 0), (shared, 0)), constant_values=True)).to(weight.device)
    mask = torch.zeros(seen.shape, dtype=weight.dtype, device=weight.device).masked_fill_(~seen, torch.finfo(weight.dtype).min)
    nodes = sorted({node for _, _, node, _ in asked})
    place = {node: k for k, node in enumerate(nodes)}
    logits = logits_at(model, torch.tensor(nodes, device=weight.device), attention_mask=mask[None, None],
                       input_ids=torch.tensor([tree.tokens], device=weight.device),
                       position_ids=torch.tensor([tree.depths], device=weight.device) + shared,
                       past_key_values=cache, use_cache=cache is not None)[0].float()
    at = torch.tensor([place[node] for _, _, node, _ in asked], device=weight.device)
    tokens = torch.tensor([token for *_, token in asked], device=weight.device)
    return (logits[at, tokens] - logits.logsumexp(-1)[at]).tolist()
