"""What a training was: how large the model, what it cost, where the logged numbers began and ended."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LOG = "log.jsonl"


def count_parameters(model: Any) -> tuple[int, int, int, int]:
    """How large `model` is and what it costs.

    Returns:
        All parameters; the trainable ones; FLOPs that a computed token costs in forward and backward pass, and those
        that a position with logits costs besides. A weight takes 6 FLOPs, a frozen one 4; embeddings are only looked
        up. What attention scores cost is left out, as usual (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
    """
    sizes = {id(p): (p.numel(), p.requires_grad) for p in model.parameters()}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    head = {id(p) for p in output.parameters()} if output is not None else set()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} - head

    def flops(chosen: set[int]) -> int:
        return sum((6 if trained else 4) * n for key, (n, trained) in sizes.items() if key in chosen)

    total, trainable = sum(n for n, _ in sizes.values()), sum(n for n, trained in sizes.values() if trained)
    return total, trainable, flops(set(sizes) - tables - head), flops(head)


def course(log: Path, best_step: int) -> dict[str, list[float]]:
    """name → [at the start, at the end] of everything logged: validation before the first step and at the best one; in
    training, the mean over the first and over the last tenth of the steps."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [r for r in records if "grad_norm" in r]
    found = {}
    tenth = max(1, len(steps) // 10)
    for name in steps[0] if steps else ():
        if name not in ("step", "epoch", "lr", "tokens", "tokens_per_second", "grad_norm"):
            ends = [[r[name] for r in part if name in r] for part in (steps[:tenth], steps[-tenth:])]
            found[name] = [sum(e) / len(e) for e in ends]
    checks = {r["step"]: r for r in records if "valid_loss" in r}
    if 0 in checks and best_step in checks:
        found |= {name: [value, checks[best_step][name]] for name, value in checks[0].items() if name.startswith("valid_")}
    return {name: [round(v, 6) for v in ends] for name, ends in found.items()}
