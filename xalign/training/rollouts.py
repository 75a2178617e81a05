"""Sampling for a reward: which numbers decide what is drawn, answers drawn from the model, what they are worth."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from xalign.backbones.scoring import logits_at
from xalign.data.packing import Row


def uniforms(rows: Sequence[Row], n: int) -> Tensor:
    """[B, n] float64 in [0, 1): n numbers a row, decided by torch's seed and the row's id alone.

    The trainer seeds every step and process with ``step seed * world + rank``. Without the rank, a row draws the same
    whichever micro-batch and process it falls to, so a trajectory does not depend on how its steps are cut.
    """
    world = torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1
    sources = [Random(f"{torch.initial_seed() // world}:{r.id}") for r in rows]
    return torch.tensor([[source.random() for _ in range(n)] for source in sources], dtype=torch.float64).view(len(rows), n)


def choose(logits: Tensor, draws: Tensor) -> Tensor:
    """[B] indices drawn from softmax(logits) [B, K]: where the cumulated probability first exceeds `draws` [B]."""
    mass = logits.detach().double().softmax(-1).cumsum(-1)
    return torch.searchsorted(mass, draws.to(mass.device)[:, None] * mass[:, -1:], right=True)[:, 0]


@torch.no_grad()
def sample(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: set[int],
           draws: Tensor | None = None, greedy: bool = False, together: bool = False) -> list[list[int]]:
    """An answer to each prompt, drawn token by token at temperature 1; all prompts in one batch with a key-value cache.

    Args:
        model: a causal model of transformers itself, not the trainer's engine; it samples in evaluation mode.
        prompts: non-empty token ids.
        stop: token ids that end an answer.
        draws: [B, max_new_tokens] numbers in [0, 1) that decide the tokens; torch's generator gives them if absent.
        greedy: take the likeliest token and draw nothing.
        together: make `max_new_tokens` forward passes even when all answers have ended; under ZeRO-3 every process must make as many.
    Returns:
        The answers' ids, the stop token included where one was drawn: to stop is a choice too.
    """
    from transformers import DynamicCache

    if draws is None and not greedy:
        draws = torch.rand(len(prompts), max_new_tokens, dtype=torch.float64)
    weight, width = next(model.parameters()), max(map(len, prompts))
    ids, seen = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width, dtype=torch.bool)
    for line, prompt in enumerate(prompts):  # padded on the left
        ids[line, width - len(prompt):] = torch.tensor(list(prompt))
        seen[line, width - len(prompt):] = True
    ids, seen = ids.to(weight.device), seen.to(weight.device)
    positions = (seen.long().cumsum(-1) - 1).clamp_min(0)
    visible = seen[:, None] & torch.ones(width, width, dtype=torch.bool, device=weight.device).tril()
    answers: list[list[int]] = [[] for _ in prompts]
    live, cached, training = set(range(len(prompts))), DynamicCache(), model.training
    model.eval()  # besides dropout: recomputed activations exclude a cache
    try:
        for k in range(max_new_tokens):
            # additive and 4-D, because a model switched to packed attention ignores a 2-D mask
            mask = torch.zeros(visible.shape, dtype=weight.dtype, device=weight.device)
            mask = mask.masked_fill_(~visible, torch.finfo(weight.dtype).min)[:, None]
            logits = logits_at(model, 1, input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cached,
                               use_cache=True)[:, -1]
            chosen = logits.argmax(-1) if draws is None else choose(logits, draws[:, k])
            for line, token in enumerate(chosen.tolist()):
                if line in live:
                    answers[line].append(token)
                    live -= {line} if token in stop else set()
            if not live and not together:
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            seen = torch.cat([seen, seen.new_ones(len(prompts), 1)], 1)
            visible = seen[:, None]
    finally:
        model.train(training)
    return answers


def reward(kind: str, answer: str, gold: str) -> float:
    """What an answer is worth, in [0, 1].

    Args:
        kind: ``exact``: 1 for the gold answer, whatever its case and the space around it; ``chrf``: the sentence's chrF / 100.
    """
    if kind == "exact":
        return float(answer.strip().casefold() == gold.strip().casefold())
    return _chrf().sentence_score(answer.strip(), [gold.strip()]).score / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
