"""Whether the same command gives the same bytes again, and which settings stand against it. No torch.

On a CPU it does, for one number of threads and processes (tests/faults/test_determinism.py). What is said of GPUs was read, not measured:
PyTorch's notes on reproducibility, its list of operations under `torch.use_deterministic_algorithms`, vLLM's notes, and this package's
own use of them. Where nothing is listed, nothing is known that breaks it: another GPU model, driver or version of a library always may.
"""
from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from xalign.training.memory import has_gpu, on_gpu, uses_bf16

if TYPE_CHECKING:
    from xalign.config import Run

WORKSPACES = (":4096:8", ":16:8")  # of cuBLAS: the two with which it keeps to one order


def breaks(run: Run, world: int = 1, gpu: bool = True) -> list[str]:
    """``setting: why`` for each setting of `run` with which `world` processes need not give the same bytes twice.

    Args:
        gpu: on GPUs; False on CPUs, where only what others answer changes.
    """
    found, node = [], run.trainer
    if gpu and run.mode == "train":
        name = node.attention
        if run.backbone.kind == "causal" and name == "auto":
            name = "flash" if node.packing and uses_bf16(node) else "sdpa"
        if run.backbone.kind == "encoder" or name != "eager":
            kernels = "flash" if name == "flash" else "SDPA"
            more = "; eager does not" if run.backbone.kind == "causal" else ""
            found.append(f"trainer.attention={node.attention}: the backward pass of {kernels}'s kernels adds in no fixed order{more}")
        if node.compile:
            found.append("trainer.compile=true: the compiler picks kernels by their speed")
        if run.choices.get("method") == "rl_ia":
            found.append("method=rl_ia: draws by running sums, which are added in no fixed order")
        if world > 1:
            found.append(f"{world} processes: NCCL picks the order in which their gradients are added")
    if gpu and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in WORKSPACES:
        found.append(f"CUBLAS_WORKSPACE_CONFIG is not set to {WORKSPACES[0]}: cuBLAS may pick another order")
    if gpu and getattr(run.backbone, "engine", "native") == "vllm":
        found.append("backbone.engine=vllm: batches what is asked as it comes, unless VLLM_BATCH_INVARIANT=1")
    elif gpu and run.backbone.kind == "causal":
        found.append("generation: a batch has as many answers as the GPU's free memory holds")
    if run.metric.judge.url:
        found.append("metric.judge: a service need not say the same twice")
    return found


def repeatable(run: Run, world: int = 1) -> str:
    """What the run's record and the model's card say: ``yes, on CPU with 1 thread``, or ``not bit for bit: ...`` with the reasons."""
    gpu = has_gpu()
    found = breaks(run, world, gpu)
    if found:
        return f"not bit for bit: {'; '.join(found)}"
    n, each = threads(), f" in each of {world} processes" * (world > 1)
    return "nothing known against it" if gpu else f"yes, on CPU with {n} thread{'s' * (n > 1)}{each}"


def planned(run: Run, world: int = 1) -> str:
    """The plan's line: what a GPU, if the run is for one, or a service changes from run to run; empty on a CPU where nothing does."""
    gpu = has_gpu() or run.mode == "train" and on_gpu(run.trainer) or getattr(run.backbone, "engine", "native") == "vllm"
    found = breaks(run, world, gpu)
    return f"not repeatable bit for bit{' on a GPU' * gpu}: {'; '.join(found)}" if found else ""


def threads() -> int:
    """Threads of this process's matrix products; sums differ in their last bits with another number."""
    torch: Any = sys.modules.get("torch")
    if torch:
        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else os.cpu_count() or 1
