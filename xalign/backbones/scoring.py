"""Option log-likelihoods: prompts and options of several questions are one token tree, read in one forward pass.

What prompts share (few shots, a passage) is a trunk of the tree; where the tree would be too large, the trunk is read once into a
key-value cache. A model that does not give the same values that way (recurrent, ALiBi, a sliding window shorter than the text) is
found out by a probe and reads option by option.
"""
from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

Row = tuple[list[int], list[list[int]]]  # (prompt ids, ids of each option)
TREE_TOKENS = 384   # tokens of one forward pass on CPU: fewer make small matrix products, more a large dense mask
SHARED_MIN = 8      # a shorter common prefix is not worth a cache
PLAIN_ROWS = 8      # options read together without a tree
_takes_trees: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


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

    def path(self, node: int) -> list[int]:
        """The nodes from the root down to `node`."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

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


def passes(rows: Sequence[Row], budget: int, members: Sequence[int] | None = None, depth: int = 0) -> Iterator[tuple[int, list[int]]]:
    """Yield (depth, rows to read together): behind their first `depth` tokens, which they share, their tree has about `budget` tokens.

    Rows that share more than that are neighbours, so no shared prefix is read twice; families come in the order of their first rows.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(rows)) if members is None else members:
        families.setdefault(tuple(rows[i][0][depth:depth + SHARED_MIN]), []).append(i)
    chosen: list[int] = []
    filled = 0
    for family in families.values():
        size, units = _size(rows, family, depth), [family]
        if size > budget and len(family) > 1:
            prompts = [rows[i][0] for i in family]
            shared = min(common_prefix(prompts), min(map(len, prompts)) - 1)
            if shared - depth >= SHARED_MIN and size - (shared - depth) > budget:
                if chosen:
                    yield depth, chosen
                chosen, filled = [], 0
                yield from passes(rows, budget, family, shared)
                continue
            if shared - depth < SHARED_MIN:
                units = [[i] for i in family]
        for unit in units:
            size = _size(rows, unit, depth)
            if chosen and filled + size > budget:
                yield depth, chosen
                chosen, filled = [], 0
            chosen, filled = chosen + unit, filled + size
    if chosen:
        yield depth, chosen


def _size(rows: Sequence[Row], members: Sequence[int], depth: int) -> int:
    """Tokens of the members' tree behind their first `depth` tokens."""
    tree = Tree()
    for i in members:
        last = tree.add(rows[i][0][depth:])
        for option in rows[i][1]:
            tree.add(option[:-1], last)
    return len(tree.tokens)


@torch.inference_mode()
def score_rows(model: Any, rows: Sequence[Row]) -> list[list[float]]:
    """Sum of log p(token | what stands before it) over each option's tokens, in nats.

    Args:
        model: a causal transformers model.
        rows: non-empty prompts, each with non-empty options.
    """
    if not rows:
        return []
    if not takes_trees(model, max(len(p) + max(map(len, o), default=0) for p, o in rows)):
        return [_plain_scores(model, *row) for row in rows]
    return _tree_scores(model, rows)


def _tree_scores(model: Any, rows: Sequence[Row]) -> list[list[float]]:
    """See `score_rows`; prompts that belong together in one pass."""
    out = [[0.0] * len(options) for _, options in rows]
    reader = Reader(model)
    for depth, members in passes(rows, reader.budget):
        tree, asked = Tree(), []  # asked: (row, option, node before the token, token)
        for i in members:
            prompt, options = rows[i]
            last = tree.add(prompt[depth:])
            for j, option in enumerate(options):
                node = last
                for token in option[:-1]:
                    asked.append((i, j, node, token))
                    node = tree.add([token], node)
                asked.append((i, j, node, option[-1]))  # the last token is predicted, never read
        values = reader.token_scores(rows[members[0]][0][:depth], tree, [(node, token) for _, _, node, token in asked])
        for (i, j, _, _), value in zip(asked, values, strict=True):
            out[i][j] += value
    return out


class Reader:
    """Reads token trees behind a prefix that stays in a key-value cache; the model takes 4-D additive masks (SDPA or eager).

    Attributes:
        cache: keys and values of the prefix and, until the next call of `hold`, of the tree read last.
        budget: tokens of a tree worth reading at once.
    """

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self.model, self.weight, self.cache = model, next(model.parameters()), DynamicCache()
        self.budget = TREE_TOKENS if self.weight.device.type == "cpu" else 8 * TREE_TOKENS
        self._prefix: list[int] = []
        self._length = 0

    def hold(self, prefix: list[int]) -> None:
        """Make the cache hold `prefix` and nothing else; what it shares with the last prefix is not read again."""
        kept = common_prefix([prefix, self._prefix])
        if kept < self._length:
            self.cache.crop(kept - self._length)  # negative: how many to drop, the form all versions take
        if kept < len(prefix):
            ids = torch.tensor([prefix[kept:]], device=self.weight.device)
            logits_at(self.model, 1, input_ids=ids, past_key_values=self.cache, use_cache=True)
        self._prefix, self._length = prefix, len(prefix)

    def logits(self, prefix: list[int], tree: Tree, nodes: Sequence[int], keep: bool = False) -> torch.Tensor:
        """[nodes, V] float32 logits at `nodes` of `tree` behind `prefix`; with `keep`, an empty prefix is a cache too."""
        weight, past = self.weight, len(prefix)
        if past or keep:
            self.hold(prefix)
        seen = torch.from_numpy(np.pad(tree.mask(), ((0, 0), (past, 0)), constant_values=True)).to(weight.device)
        mask = torch.zeros(seen.shape, dtype=weight.dtype, device=weight.device).masked_fill_(~seen, torch.finfo(weight.dtype).min)
        more = {"past_key_values": self.cache, "use_cache": True} if past or keep else {"use_cache": False}
        self._length += len(tree.tokens) if past or keep else 0
        return logits_at(self.model, torch.tensor(nodes, device=weight.device), attention_mask=mask[None, None],
                         input_ids=torch.tensor([tree.tokens], device=weight.device),
                         position_ids=torch.tensor([tree.depths], device=weight.device) + past, **more)[0].float()

    def token_scores(self, prefix: list[int], tree: Tree, asked: Sequence[tuple[int, int]]) -> list[float]:
        """log p of the token of each asked (node, token), in nats."""
        nodes = sorted({node for node, _ in asked})
        place = {node: k for k, node in enumerate(nodes)}
        logits = self.logits(prefix, tree, nodes)
        at = torch.tensor([place[node] for node, _ in asked], device=logits.device)
        tokens = torch.tensor([token for _, token in asked], device=logits.device)
        return (logits[at, tokens] - logits.logsumexp(-1)[at]).tolist()


def takes_trees(model: Any, length: int) -> bool:
    """True if `model` reads a token tree of depth `length` behind a cached prefix as it reads its branches one by one."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(w and length > w for w in windows):
        return False
    if model not in _takes_trees:
        _takes_trees[model] = _probe(model)
    return _takes_trees[model]


def _probe(model: Any) -> bool:
    """Compare a small tree behind a cached prefix with plain passes over its branches."""
    first = min(1000, model.config.get_text_config().vocab_size // 2)
    prefix, *branches = ([first + k for k in ids] for ids in ((0, 1, 2), (3, 4, 5), (3, 6, 7)))
    tokens, tree = range(first, first + 8), Tree()
    asked = [(node, token) for node in [tree.add(branch) for branch in branches] for token in tokens]
    try:
        got = Reader(model).token_scores(prefix, tree, asked)
    except Exception:  # whatever it is that this model cannot take
        return False
    plain = [s for branch in branches for s in _plain_scores(model, prefix + branch, [[token] for token in tokens])]
    close = 1e-3 if next(model.parameters()).dtype == torch.float32 else 5e-2
    return max(abs(a - b) for a, b in zip(got, plain, strict=True)) <= close * max(map(abs, plain))


def _plain_scores(model: Any, prompt: list[int], options: list[list[int]]) -> list[float]:
    """`score_rows` of one row, as a batch of options padded on the right."""
    device, out = next(model.parameters()).device, []
    for start in range(0, len(options), PLAIN_ROWS):
        part = options[start:start + PLAIN_ROWS]
        width = max(map(len, part)) - 1
        ids = torch.tensor([prompt + o[:-1] + [prompt[0]] * (width - len(o) + 1) for o in part], device=device)
        mask = torch.tensor([[1] * (len(prompt) + len(o) - 1) + [0] * (width - len(o) + 1) for o in part], device=device)
        logp = logits_at(model, width + 1, input_ids=ids, attention_mask=mask).float().log_softmax(-1)
        out += [logp[k, range(len(o)), o].sum().item() for k, o in enumerate(part)]
    return out
