"""What training needs in memory, by arithmetic: bytes on each device and in the host. No torch.

The parts are those of the ZeRO paper (Rajbhandari et al. 2020, arXiv 1910.02054, sections 3 and 5), counted as DeepSpeed
0.19 keeps them with the settings of `xalign.training.engine`; activations are counted tensor by tensor in the manner of
Korthikanti et al. 2022 (arXiv 2205.05198, section 4), for a layer of Llama's kind as transformers computes it. The GPU's
context, the libraries' workspaces and fragmentation come on top.
"""
from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xalign.config import ConfigError

if TYPE_CHECKING:
    from xalign.backbones.shapes import Shape
    from xalign.training.node import TrainerNode

# elements; DeepSpeed's defaults
BUCKET = 500_000_000  # gradients reduced at a time
PREFETCH = 50_000_000  # parameters that ZeRO-3 gathers ahead of their use
REUSE = 1_000_000_000  # ZeRO-3 keeps a gathered parameter that is used again within so many
SUBGROUP = 1_000_000_000  # parameters that ZeRO-3 updates at a time


@dataclass(frozen=True)
class Memory:
    """Bytes of one process and its device at the step's worst moment.

    Attributes:
        parameters: weights, frozen ones and a teacher's included.
        gradients: as they are kept between micro-batches.
        optimizer: float32 master weights and moments.
        activations: what the backward pass needs, and the loss; 0 for encoders, which see `unknown`.
        buffers: what the worst moment takes besides: reduction buckets, gathered parameters, copies of gradients, or all
            weights before ZeRO-3 has split them.
        host: main memory of process 0: the best weights, what is offloaded, and the weights while they are loaded. On a CPU
            what the other parts take is main memory too.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    host: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers


def has_gpu() -> bool:
    """Whether ``precision=auto`` will mean bf16: an NVIDIA device or its tool is there. Decided without torch, for the plan only."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None)


def on_gpu(node: TrainerNode) -> bool:
    """Whether the plan is for a GPU: this machine's, or the one that ``trainer.precision=bf16`` asks for."""
    return node.precision == "bf16" or has_gpu()


def uses_bf16(node: TrainerNode) -> bool:
    return node.precision == "bf16" or node.precision == "auto" and has_gpu()


def micro_batch(node: TrainerNode, devices: int) -> tuple[int, int]:
    """(tokens of one forward pass, forward passes of a step) on each device; no pass is shorter than the longest row."""
    passes = math.ceil(node.tokens_per_step / (node.micro_tokens * devices)) if node.micro_tokens else 1
    return max(math.ceil(node.tokens_per_step / (passes * devices)), node.max_length), passes


def estimate(shape: Shape, node: TrainerNode, devices: int, teacher: bool = False) -> Memory:
    """The memory that one training takes.

    Args:
        devices: processes, each with a device of its own.
        teacher: the loss compares with a frozen copy of the model, on every device.
    """
    gpu, size = on_gpu(node), 2 if uses_bf16(node) else 4
    tokens, passes = micro_batch(node, devices)
    lora = shape.adapter(node.lora_rank) if node.adapter == "lora" else 0
    held = shape.parameters + lora
    trained = lora or held - shape.frozen
    offload = node.offload != "none"
    share = -(-trained // devices)  # what one process updates, from ZeRO-1 on

    # ZeRO-0 in float32 is the plain optimizer; everything else updates a float32 copy of the weights
    moments = {"adamw": 8, "sgd": 4 if node.momentum else 0}[node.optimizer]
    master = 4 if size == 2 or node.zero else 0
    states = (master + moments) * (share if node.zero else trained)
    gradients = size * (trained if node.zero < 2 else share)
    if node.zero == 3:
        small = shape.layers * shape.vectors + lora  # never split: fewer than 100 000 elements each
        parameters = (0 if node.offload == "all" else size * -(-held // devices)) + (size * small if devices > 1 or offload else 0)
    else:
        parameters = size * held
    kept = activations(shape, node, tokens) if shape.kind == "causal" else 0

    # moments of a step that may be its worst, beyond parameters, gradients, optimizer and activations
    bucket = size * (BUCKET if gpu else min(BUCKET, trained)) if node.zero else 0  # untouched pages of a CPU do not count
    flat = size * min(BUCKET, trained) if devices > 1 else 0  # the bucket once more while it is reduced
    widen = 4 if size == 2 else 0  # float32 gradients for the update
    on_device = (0 if offload and node.zero > 1 else gradients) + (0 if offload else states)
    if node.zero == 0:
        backward, after = 0, max(flat, widen * trained)
    elif node.zero == 1:
        backward = bucket
        after = max(bucket + flat + size * share, 0 if offload else (2 * size + widen) * share - gradients)
    elif node.zero == 2:
        backward = bucket + flat + (size * share if passes > 1 and not offload else 0)
        after = 0 if offload else (size + widen) * share
    else:
        gathered = min(REUSE // 2 + PREFETCH + 2 * shape.largest, held) if devices > 1 or node.offload == "all" else 0
        ahead = min(PREFETCH + shape.largest, held) if devices > 1 else 0  # gathered flat, then copied apart
        backward = bucket + flat + size * (gathered + ahead)
        after = bucket + (0 if offload else (size + widen) * min(share, SUBGROUP))
    if offload and node.zero < 3:
        backward += size * shape.largest
    # DeepSpeed moves the whole model to the device before ZeRO-3 splits it
    whole = size * held - parameters - on_device if node.zero == 3 else 0
    buffers = max(kept + backward, after, whole) - kept

    best = size * trained  # of process 0
    if gpu:  # every process loads float32 weights into main memory first
        host = best + max(4 * held, _offloaded(node, size, share, held - trained, devices, passes, moments))
    else:
        host = best + (_offloaded(node, size, share, held - trained, devices, passes, moments) if offload else 0)
    return Memory(parameters + (size * shape.parameters if teacher else 0), 0 if offload and node.zero > 1 else gradients,
                  0 if offload else states, kept, buffers, host)


def _offloaded(node: TrainerNode, size: int, share: int, frozen: int, devices: int, passes: int, moments: int) -> int:
    """Bytes that one process keeps in main memory for ``trainer.offload``."""
    if node.offload == "none":
        return 0
    # float32 weights and gradients, moments, and the update in the model's precision or the gradients that accumulate
    total = pinned(4 * share) + moments * share + pinned(size * share)
    total += 4 * share if node.zero == 3 else pinned(4 * share) + (size * share if passes > 1 else 0)
    return total + (pinned(size * share) + size * -(-frozen // devices) if node.offload == "all" else 0)


def pinned(size: int) -> int:
    """Bytes that PyTorch takes for a page-locked block: the next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def activations(shape: Shape, node: TrainerNode, tokens: int) -> int:
    """Bytes of activations of a causal model at the worst moment of one forward and backward pass over `tokens`.

    An upper bound where a prompt's tokens have no logits: the loss is counted as if all tokens were supervised.
    """
    size, h, f = 2 if uses_bf16(node) else 4, shape.hidden, shape.intermediate
    q, k = shape.queries, shape.keys
    trained_norms = node.adapter == "none"
    # RMS norms keep a float32 input, their output, and for the gradient of their weight the normalised input
    layer = shape.norms * (4 + size * (1 + trained_norms))
    layer += size * 4 * f  # gate, its activation, up, their product
    flash = node.packing and uses_bf16(node) and node.attention in ("auto", "flash")
    if node.attention == "eager" or node.packing and not flash and on_gpu(node):
        k = q  # repeated for every head
    layer += size * 2 * (q + k) + 4 * shape.heads  # queries, keys, values, output; the softmax's normaliser
    if node.packing and not flash:
        layer += size * (q + 2 * k)  # the rows' outputs put together, the prefix put before each row's keys
    if node.attention == "eager":
        layer += shape.heads * node.max_length * (4 if size == 4 else 6)
    if node.adapter == "lora":
        layer += size * node.lora_rank * len(shape.linears)
        if node.lora_dropout:
            layer += (size + 1) * sum(i for i, _ in shape.linears)
    last = h * (4 + size * (1 + trained_norms))
    loss = last + 12 * shape.vocab  # float32 log-probabilities and two gradients of their size
    if node.activation_checkpointing:  # one layer at a time, and the gradients inside its MLP
        return tokens * (shape.layers * size * h + max(layer + size * (2 * f + h), loss))
    return tokens * (shape.layers * layer + loss)


# ways to need less, from the one that costs least; the last trains something else
SAVINGS = ({}, {"activation_checkpointing": True}, {"zero": 2}, {"zero": 3}, {"zero": 2, "offload": "optimizer"},
           {"zero": 3, "offload": "optimizer"}, {"zero": 3, "offload": "all"}, {"adapter": "lora"})


def smallest_change(shape: Shape, node: TrainerNode, devices: int, gigabytes: int, teacher: bool = False) -> dict[str, object] | None:
    """What to change in the trainer for devices of so many GB (10^9 bytes, so that about 5 % of a card stay free).

    Returns:
        Changed keys; empty if nothing need change, None if nothing here is enough.
    """
    for saving in SAVINGS:
        changed = {**({"activation_checkpointing": True} if saving else {}), **saving}
        changed = {key: value for key, value in changed.items() if value != getattr(node, key)}
        other = replace(node, **changed)
        try:
            other.check("trainer")
        except ConfigError:
            continue
        if estimate(shape, other, devices, teacher).total <= gigabytes * 10**9:
            return changed
    return None
