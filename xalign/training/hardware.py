"""What the device can do and what a step needs: peak arithmetic, peak memory, and an allocator that keeps its pages."""
from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from functools import cache

import torch

from xalign.meter import process_peak, reset_peak

# dense bf16 TFLOP/s with fp32 accumulation, from the makers' data sheets; the first name that the device's name contains
PEAKS = (("GB200", 2500), ("B200", 2250), ("H200", 989), ("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989), ("GH200", 989),
         ("A100", 312), ("A800", 312), ("L40S", 362), ("L40", 181), ("L4", 121), ("A40", 150), ("A10G", 70), ("A10", 125),
         ("RTX 6000 Ada", 182), ("A6000", 155), ("4090", 165), ("3090", 71))
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_memory() -> bool:
    """Make glibc's malloc keep what is freed, instead of giving large blocks back and faulting them in again each step.

    Returns:
        False where the C library has no such switch (nothing changes then).
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    return False


@cache
def peak_flops(cuda: bool, bf16: bool) -> float | None:
    """Peak FLOP/s of this process's device: a data sheet's on CUDA, a timed matrix product's on the CPU.

    Returns:
        None where neither is known: another GPU, or a GPU in fp32.
    """
    if cuda:
        name = torch.cuda.get_device_name()
        return next((peak * 1e12 for part, peak in PEAKS if part in name), None) if bf16 else None
    n, best = 2048, float("inf")
    a, b = torch.ones(n, n), torch.ones(n, n)
    if bf16:
        a, b = a.bfloat16(), b.bfloat16()
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def reset_peak_memory(cuda: bool) -> None:
    """Begin a new measurement for `peak_memory`; the running stage's own (`xalign.meter`) goes on."""
    reset_peak()


def peak_memory(cuda: bool) -> float | None:
    """GiB: the most that PyTorch allocated on the GPU, or that this process held in memory; None where it cannot be read."""
    return torch.cuda.max_memory_allocated() / 2**30 if cuda else process_peak()
