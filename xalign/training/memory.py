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
BUCKET = 500_000_000  # gradients reduced at a time, if there are as many
PREFETCH = 50_000_000  # parameters that ZeRO-3 gathers ahead of their use
REUSE = 1_000_000_000  # ZeRO-3 keeps a gathered parameter that is used again within so many
SUBGROUP = 1_000_000_000  # parameters that ZeRO-3 updates at a time

CONTEXT = 1_500_000_000  # bytes of a GPU that `smallest_change` leaves to its context, to NCCL and to fragmentation


@dataclass(frozen=True)
class Memory:
    """Bytes of one process and its device at the step's worst moment.

    Attributes:
        parameters: weights, frozen ones and a teacher's included.
        gradients: as they are kept between micro-batches.
        optimizer: float32 master weights and moments.
        activations: what the backward pass needs, and the loss; of an encoder, whose padding is not known, 0.
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
    passes = node.accumulation(devices)
    return max(math.ceil(node.tokens_per_step / (passes * devices)), node.max_length), passes


def estimate(shape: Shape, node: TrainerNode, devices: int, teacher: bool = False) -> Memory:
    """The memory that one training takes.

    Args:
        devices: processes, each with a device of its own.
        teacher: the loss compares with a frozen copy of the model, on every device.
    """
    gpu, size, zero = on_gpu(node), 2 if uses_bf16(node) else 4, node.zero_stage(uses_bf16(node))
    tokens, passes = micro_batch(node, devices)
    lora = shape.adapter(node.lora_rank) if node.adapter == "lora" else 0
    held = shape.parameters + lora
    trained = lora or held - shape.frozen
    share = -(-trained // devices)  # what one process updates, from ZeRO-1 on
    offload = node.offload != "none"

    parameters = size * held
    if zero == 3:
        parameters = 0 if node.offload == "all" else size * -(-held // devices)
        if devices > 1 or offload:
            parameters += size * (shape.layers * shape.vectors + lora)  # never split: fewer than 100 000 elements each
    gradients = 0 if offload and zero > 1 else size * (trained if zero < 2 else share)
    moments = {"adamw": 8, "sgd": 4 if node.momentum else 0}[node.optimizer]
    # without ZeRO the plain optimizer; else it updates a float32 copy of the weights, even of float32 weights
    states = 0 if offload else (4 + moments) * share if zero else moments * trained
    kept = activations(shape, node, tokens) if shape.kind == "causal" else 0

    # the moments that may be a step's worst: in the backward pass, and after it, when the activations are gone
    bucket = size * min(BUCKET, trained) if zero else 0
    flat = size * min(BUCKET, trained) if devices > 1 else 0  # the bucket once more while it is reduced
    update = 0 if offload else (size + (4 if size == 2 else 0)) * share  # a flat copy of the gradients, and in float32
    if zero == 0:
        backward, after = 0, flat
    elif zero == 1:
        backward, after = bucket, max(bucket + flat, update and update - gradients) + size * share
    elif zero == 2:
        backward, after = bucket + flat + (size * share if passes > 1 and not offload else 0), update
    else:
        gathered = min(REUSE // 2 + PREFETCH + 2 * shape.largest, held) if devices > 1 or node.offload == "all" else 0
        ahead = min(PREFETCH + shape.largest, held) if devices > 1 else 0  # gathered flat, then copied apart
        backward, after = bucket + flat + size * (gathered + ahead), bucket + min(update, 6 * SUBGROUP)
    # the newest gradient, before it is added or copied; offloading keeps a place of that size
    backward += size * min(shape.largest, trained) * (2 if offload and zero < 3 else 1)
    # DeepSpeed moves the whole model to the device before ZeRO-3 splits it
    whole = size * held - parameters - gradients - states if zero == 3 else 0
    buffers = max(kept + backward, after, whole) - kept

    # every process loads float32 weights into main memory before they go to the GPU
    host = max(_offloaded(node, size, share, -(-(held - trained) // devices), passes, moments), 4 * held if gpu else 0)
    host += size * trained  # the best weights so far, of process 0
    return Memory(parameters + (size * shape.parameters if teacher else 0), gradients, states, kept, buffers, host)


def _offloaded(node: TrainerNode, size: int, share: int, frozen: int, passes: int, moments: int) -> int:
    """Bytes that one process keeps in main memory for ``trainer.offload``: of `share` trained and `frozen` parameters."""
    if node.offload == "none":
        return 0

    def locked(count: int) -> int:  # for a GPU to copy from; PyTorch rounds such blocks up to a power of two
        return 1 << (count - 1).bit_length() if on_gpu(node) else count

    # float32 gradients and weights, moments, and gradients or updated weights in the model's precision
    total = locked(4 * share) + 4 * share + moments * share + locked(size * share)
    if node.zero < 3:  # there the weights are page-locked too, and micro-batches add up in a place of their own
        total += locked(4 * share) - 4 * share + (size * share if passes > 1 else 0)
    return total + (locked(size * share) + size * frozen if node.offload == "all" else 0)


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
SAVINGS: tuple[dict[str, object], ...] = (
    {}, {"activation_checkpointing": True}, {"zero": 2}, {"zero": 3}, {"zero": 2, "offload": "optimizer"},
    {"zero": 3, "offload": "optimizer"}, {"zero": 3, "offload": "all"}, {"adapter": "lora"})


def smallest_change(shape: Shape, node: TrainerNode, devices: int, gigabytes: int, teacher: bool = False,
                    ) -> tuple[dict[str, object], Memory] | None:
    """What to change in the trainer for devices of so many GB (10^9 bytes).

    Returns:
        Changed keys (none if it fits as it is) and the memory then; None if nothing here is enough.
    """
    for saving in SAVINGS:
        if saving.get("zero", 3) < node.zero:
            continue
        changed = {**({"activation_checkpointing": True} if saving else {}), **saving}
        changed = {key: value for key, value in changed.items() if value != getattr(node, key)}
        other = replace(node, **changed)
        try:
            other.check("trainer")
        except ConfigError:
            continue
        needs = estimate(shape, other, devices, teacher)
        if needs.total <= gigabytes * 10**9 - CONTEXT:
            return changed, needs
    return None
