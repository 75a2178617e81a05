"""Learning rate: how high, and how it runs over the steps."""
from __future__ import annotations

import math


def auto_lr(tokens_per_step: int, supervised_fraction: float) -> float:
    """3e-4 * sqrt(supervised tokens a step / 4e6), METHODS.md §2.9 [C, OpenChat].

    Args:
        tokens_per_step: tokens of an optimiser step over all processes, prompts included.
        supervised_fraction: share of them that carry a label, in (0, 1].
    """
    return 3e-4 * math.sqrt(tokens_per_step * supervised_fraction / 4e6)


def cosine(step: int, total: int, warmup: float, final: float) -> float:
    """Factor on the peak rate for `step` (0-based) of `total`: linear warm-up, then a cosine to `final`.

    Args:
        warmup: share of the steps that warm up; the peak is reached at the first step behind them.
        final: factor at the last step.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(1, total - 1 - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
