"""Greedy decoding with continuous batching: finished answers leave, waiting prompts are read in and take their places.

Prompts are read without padding, as token trees (`xalign.backbones.scoring`): what several share is read once. Short ones come first,
so that answers of similar length stand in one batch. Beam search, and models that cannot do that, go through transformers' `generate`.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from xalign.backbones.scoring import Reader, Tree, logits_at, passes, takes_trees

BATCH_TOKENS = 8192  # prompt and answer tokens of one batch on CPU
BATCH_ROWS = 8       # rows of one batch of `generate`
ROOM = 32            # columns that a cache has to grow into
COMPACT = 0.8        # share of living lines below which the finished ones, which cost as much, are dropped
Ends = Callable[[list[int]], bool]


def decode(model: Any, rows: Sequence[list[int]], max_new_tokens: int, stop: set[int], ends: Ends | None = None,
           beams: int = 1) -> Iterator[tuple[int, list[int]]]:
    """Yield (row index, generated ids without the stop token) as soon as an answer is finished.

    Args:
        rows: non-empty prompt ids.
        stop: token ids that end an answer.
        ends: told the answer's ids so far, returns True when it is complete.
        beams: 1 decodes greedily.
    """
    if not rows:
        return
    if beams == 1 and takes_trees(model, max(map(len, rows)) + max_new_tokens):
        yield from _continuous(model, rows, max_new_tokens, stop, ends)
    else:
        yield from _batches(model, rows, max_new_tokens, stop, ends, beams)


@torch.inference_mode()
def _continuous(model: Any, rows: Sequence[list[int]], max_new_tokens: int, stop: set[int],
                ends: Ends | None) -> Iterator[tuple[int, list[int]]]:
    lines, reader = Lines(model), Reader(model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    waiting = deque(passes([(row, []) for row in rows], reader.budget, order))
    answers: list[list[int]] = [[] for _ in rows]
    while waiting or lines.rows:
        fresh: list[int] = []
        if waiting:
            depth, members = waiting[0]
            fresh = members[:lines.room(max(len(rows[i]) for i in members) + max_new_tokens, len(members))]
        if fresh:
            waiting.popleft()
            if len(fresh) < len(members):
                waiting.appendleft((depth, members[len(fresh):]))
            chosen = lines.join(reader, [rows[i] for i in fresh], fresh, depth)
        else:
            fresh, chosen = lines.rows, lines.step()
        for i, token in zip(fresh, chosen, strict=True):
            if i in lines.finished:
                continue
            if token not in stop:
                answers[i].append(token)
            if token in stop or len(answers[i]) == max_new_tokens or ends and ends(answers[i]):
                lines.finished.add(i)
                yield i, answers[i]
        if len(lines.rows) - len(lines.finished) <= COMPACT * len(lines.rows):
            lines.compact()


class Lines:
    """Answers that grow together: one line each, their keys and values right-aligned in one cache.

    Attributes:
        rows: the prompt behind each line.
        finished: those of `rows` whose answer is complete.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, Cache(layer_class_to_replicate=GrowingLayer)
        self.rows: list[int] = []
        self.finished: set[int] = set()
        self.device = next(model.parameters()).device
        self.tokens = self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)  # to be read next; in the cache
        self.budget = BATCH_TOKENS if self.device.type == "cpu" else 16 * BATCH_TOKENS
        self.longest, self.measured = 0, self.device.type == "cpu"

    def room(self, length: int, wanted: int) -> int:
        """How many of `wanted` prompts that may grow to `length` tokens can join now; few at a time are not worth a pass."""
        self.longest = max(self.longest, length)
        lines, live = max(self.budget // self.longest, 1), len(self.rows) - len(self.finished)
        free = lines - live
        return min(free, wanted) if free >= min(wanted, max(lines // 4, 1)) else 0

    def join(self, reader: Reader, prompts: list[list[int]], rows: list[int], depth: int) -> list[int]:
        """Read `prompts`, which share `depth` tokens, in one pass; they become the last lines. Returns their first tokens."""
        tree = Tree()
        last = [tree.add(prompt[depth:]) for prompt in prompts]
        chosen = reader.logits(prompts[0][:depth], tree, last, keep=True).argmax(-1)
        self.compact()
        width = max([len(p) for p in prompts] + self.lengths.tolist())
        columns = torch.tensor([[0] * (width - len(p)) + list(range(depth)) + [depth + k for k in tree.path(node)]
                                for p, node in zip(prompts, last, strict=True)], device=self.device)
        for k, layer in enumerate(reader.cache.layers):
            keys, values = (x[0][:, columns].transpose(0, 1) for x in (layer.keys, layer.values))
            if not self.rows:
                self.cache.update(keys, values, k)
                continue
            own = self.cache.layers[k]
            own.fill(torch.cat([_aligned(own.keys, width), keys]), torch.cat([_aligned(own.values, width), values]))
        if not self.measured:  # a large model on a small GPU: half of what is free
            self.measured = True
            size = sum(x.nbytes for layer in self.cache.layers for x in (layer.keys, layer.values)) // (len(rows) * width)
            self.budget = min(self.budget, torch.cuda.mem_get_info(self.device)[0] // 2 // size)
        self.rows = self.rows + rows
        self.lengths = torch.cat([self.lengths, torch.tensor([len(p) for p in prompts], device=self.device)])
        self.tokens = torch.cat([self.tokens, chosen])
        return chosen.tolist()

    def step(self) -> list[int]:
        """Read every line's last token; returns the next ones."""
        width = self.cache.get_seq_length() + 1
        mask = torch.arange(width, device=self.device) >= width - 1 - self.lengths[:, None]
        logits = logits_at(self.model, 1, input_ids=self.tokens[:, None], attention_mask=mask.long(), position_ids=self.lengths[:, None],
                           past_key_values=self.cache, use_cache=True)
        self.lengths, self.tokens = self.lengths + 1, logits[:, -1].argmax(-1)
        return self.tokens.tolist()

    def compact(self) -> None:
        """Drop the finished lines."""
        if not self.finished:
            return
        live = [k for k, i in enumerate(self.rows) if i not in self.finished]
        keep = torch.tensor(live, dtype=torch.long, device=self.device)
        self.lengths, self.tokens = self.lengths[keep], self.tokens[keep]
        self.rows, self.finished = [self.rows[k] for k in live], set()
        if live:
            self.cache.batch_select_indices(keep)
        else:
            self.cache = Cache(layer_class_to_replicate=GrowingLayer)


class GrowingLayer(DynamicLayer):
    """A cache layer with room behind its tokens: a step writes one column, where its parent copies all of them."""

    def fill(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold `keys` and `values` [B, H, L, D]."""
        self.buffers = [torch.nn.functional.pad(x, (0, 0, 0, ROOM)) for x in (keys, values)]
        self.keys, self.values = (x[:, :, :keys.shape[2]] for x in self.buffers)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DynamicLayer.update`."""
        if not self.is_initialized:
            self.fill(*super().update(key_states, value_states, *args, **kwargs))
            return self.keys, self.values
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self.buffers[0].shape[2]:
            self.fill(self.keys, self.values)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (x[:, :, :end] for x in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """See `DynamicLayer.batch_select_indices`."""
        self.fill(self.keys[indices], self.values[indices])


def _aligned(x: torch.Tensor, width: int) -> torch.Tensor:
    """The last `width` columns of x [B, H, L, D], with zeros before them where there are fewer."""
    return torch.nn.functional.pad(x, (0, 0, width - x.shape[2], 0))


@torch.inference_mode()
def _batches(model: Any, rows: Sequence[list[int]], max_new_tokens: int, stop: set[int], ends: Ends | None,
             beams: int) -> Iterator[tuple[int, list[int]]]:
    """Prompts of similar length together in `generate`, padded on the left."""
    from transformers import GenerationConfig, StoppingCriteriaList

    device = next(model.parameters()).device
    config = GenerationConfig(do_sample=False, num_beams=beams, max_new_tokens=max_new_tokens, eos_token_id=sorted(stop) or None,
                              pad_token_id=min(stop, default=0))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start:start + BATCH_ROWS]
        width = len(rows[batch[-1]])
        ids = torch.tensor([[config.pad_token_id] * (width - len(rows[i])) + list(rows[i]) for i in batch], device=device)
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in batch], device=device)

        def criterion(ids: torch.Tensor, scores: Any, width: int = width, **kwargs: Any) -> torch.Tensor:
            return torch.tensor([bool(ends and ends(line[width:])) for line in ids.tolist()], device=ids.device)

        own, model.generation_config = model.generation_config, GenerationConfig()  # no repetition penalty, unless asked for
        try:
            out = model.generate(ids, attention_mask=mask, generation_config=config, stopping_criteria=StoppingCriteriaList([criterion]))
        finally:
            model.generation_config = own
        for i, answer in zip(batch, out[:, width:].tolist(), strict=True):
            end = next((k for k, token in enumerate(answer) if token in stop or ends and ends(answer[:k + 1])), None)
            yield i, answer if end is None else answer[:end + (answer[end] not in stop)]
