"""The trainer's configuration; no torch here."""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from xalign.config import ConfigError, Node, choice, within
from xalign.values import shown


def check_rate(key: str, value: Any) -> None:
    """Raise ConfigError unless `value` is ``auto`` or a learning rate in (0, 1]."""
    if not (value == "auto" or isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1):
        raise ConfigError(f"{key}={shown(value)}: must be auto or a number in (0, 1], e.g. 1e-4")


@dataclass(frozen=True)
class TrainerNode(Node):
    """How every method is trained. The defaults are SDRRL's (METHODS.md §2.9).

    Attributes:
        epochs: passes over the training rows.
        max_steps: stop after so many optimiser steps; 0 = no limit.
        lr: peak learning rate, or ``auto`` (`xalign.training.schedule.auto_lr`).
        tokens_per_step: tokens of one optimiser step over all processes, prompts included.
        micro_tokens: tokens of one forward pass on one process; 0 = the process' whole share of the step.
        max_length: rows with more tokens are dropped and counted.
        packing: rows of a micro-batch as one sequence without padding; false pads them.
        warmup: share of the steps.
        final_lr: the cosine ends at this share of the peak.
        optimizer: adamw, or sgd with `momentum`.
        betas, eps: AdamW's.
        weight_decay: of matrices; norms and biases do not decay.
        adapter: none trains every weight; lora trains low-rank updates of all linear layers, merged when the model is saved.
        lora_rank, lora_alpha, lora_dropout: the update is alpha / rank * B A x, with dropout on x.
        clip: largest gradient norm.
        precision: auto is fp32 on CPU, bf16 on CUDA.
        zero: DeepSpeed's ZeRO stage.
        offload: keep the optimizer's state (ZeRO 1-3), or all of it and the weights (ZeRO-3), in the host's memory.
        attention: of packed rows; auto takes flash on CUDA in bf16, else sdpa, and eager for models that sdpa cannot do.
        activation_checkpointing: recompute activations in the backward pass, for memory.
        compile: torch.compile for every layer; for GPUs, where it fuses what lies between the matrix products.
        valid_share: share of the rows held out (whole groups) to choose the best weights; 0 = keep the last.
        eval_every: steps between validations; 0 = a quarter of an epoch.
        patience: stop after so many validations without a new best; 0 = never.
        checkpoint_every: seconds between checkpoints; 0 = none.
        probe_prompts: prompts of each answer language that the model answers at every validation, for the off-target rate
            (`xalign.training.probe`); 0 = none. The trained weights do not depend on it.
        probe_tokens: the longest of these answers.
    """

    epochs: int = within(4, low=1)
    max_steps: int = within(0, low=0)
    lr: Any = "auto"
    tokens_per_step: int = within(65536, low=1)
    micro_tokens: int = within(0, low=0)
    max_length: int = within(512, low=8)
    packing: bool = True
    warmup: float = within(0.05, 0, 1)
    final_lr: float = within(0.1, 0, 1)
    optimizer: str = choice("adamw", "adamw", "sgd")
    momentum: float = within(0.9, 0, 0.999)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = within(1e-5, above=0)
    weight_decay: float = within(0.1, low=0)
    clip: float = within(1.0, above=0)
    precision: str = choice("auto", "auto", "fp32", "bf16")
    zero: int = within(0, 0, 3)
    offload: str = choice("none", "none", "optimizer", "all")
    attention: str = choice("auto", "auto", "sdpa", "eager", "flash")
    adapter: str = choice("none", "none", "lora")
    lora_rank: int = within(16, 1, 1024)
    lora_alpha: float = within(32, above=0)
    lora_dropout: float = within(0.0, 0, 0.9)
    activation_checkpointing: bool = False
    compile: bool = False
    valid_share: float = within(0.05, 0, 0.5)
    eval_every: int = within(0, low=0)
    patience: int = within(4, low=0)
    checkpoint_every: float = within(600, low=0)
    probe_prompts: int = within(0, low=0)
    probe_tokens: int = within(32, low=1)

    def params(self) -> dict[str, Any]:
        """What decides a trained stage's artifact: every field, the probe's where there is one."""
        return {k: v for k, v in asdict(self).items() if self.probe_prompts or not k.startswith("probe_")}

    def zero_stage(self, bf16: bool) -> int:
        """The ZeRO stage that runs: bf16 takes 1 for 0, because DeepSpeed's bf16 optimizer without ZeRO takes an empty step
        at the start, which bends the first updates."""
        return max(self.zero, int(bf16))

    def accumulation(self, world: int) -> int:
        """Forward passes of a step on each of `world` processes."""
        return math.ceil(self.tokens_per_step / (self.micro_tokens * world)) if self.micro_tokens else 1

    def check_run(self, run: Any) -> None:
        """Raise ConfigError for what only causal backbones have: adapters, a choice of attention, and text to probe."""
        for key, plain in (("adapter", "none"), ("attention", "auto"), ("probe_prompts", 0)):
            value = getattr(self, key)
            if value != plain and run.backbone.kind != "causal":
                raise ConfigError(f"trainer.{key}={value}: is for causal backbones; set trainer.{key}={plain}")

    def check(self, path: str) -> None:
        super().check(path)
        check_rate(f"{path}.lr", self.lr)
        if self.offload != "none" and self.zero < {"optimizer": 1, "all": 3}[self.offload]:
            raise ConfigError(f"{path}.offload={self.offload}: needs ZeRO {'3' if self.offload == 'all' else '1, 2 or 3'}; set "
                              f"{path}.zero={3 if self.offload == 'all' else 2}")
        if self.attention == "flash" and not self.packing:
            raise ConfigError(f"{path}.attention=flash: is for packed rows; set {path}.packing=true, or {path}.attention=sdpa")
        if self.compile and self.zero == 3:
            raise ConfigError(f"{path}.compile=true: does not go with ZeRO-3, which gathers weights between the compiled parts; "
                              f"set {path}.zero=2 or {path}.compile=false")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"{path}.betas={shown(self.betas)}: must be two numbers in [0, 1); the paper's are [0.9, 0.95]")
