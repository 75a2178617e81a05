"""LoRA (Hu et al. 2021) through peft: added before training, merged into the weights afterwards."""
from __future__ import annotations

from typing import Any

from xalign.training.node import TrainerNode


def add_lora(model: Any, node: TrainerNode, seed: int) -> None:
    """Freeze `model` and add a trainable low-rank update to each of its linear layers but the output projection.

    The model keeps its class and its forward; the update starts at zero.
    """
    import torch
    from peft import LoraConfig, LoraModel

    config = LoraConfig(r=node.lora_rank, lora_alpha=node.lora_alpha, lora_dropout=node.lora_dropout, target_modules="all-linear",
                        task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.lora = _Handle(LoraModel(model, {"default": config}, "default"))


class _Handle:
    """Keeps peft's wrapper beside the model, and out of its modules."""

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner


def merge(model: Any) -> None:
    """Add the updates to the weights and put the plain layers back."""
    model.lora.tuner.merge_and_unload()
    del model.lora
