"""Several processes (torchrun): the first one runs the pipeline, the others wait for training jobs.

Only the trainer is parallel. Process 0 composes, caches, translates and evaluates; when it comes to
train, it sends the job to the others, and all of them run it. So the cache has one writer.
"""
from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xalign.training.stage import TrainJob


def is_helper() -> bool:
    """True in every torchrun process but the first: it must call `serve` and nothing else."""
    return int(os.environ.get("RANK", "0")) > 0


def join() -> tuple[int, int]:
    """Enter the process group (once) and return (rank, world size). One process needs no port and no launcher."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # jobs go over gloo: a process that waits for hours on nccl would spin its GPU
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=timedelta(days=7))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()


def share(job: TrainJob | None) -> TrainJob | None:
    """Send `job` from process 0 to all (None ends their service), or receive it; returns the job."""
    import torch
    import torch.distributed as dist

    _, world = join()
    box = [job]
    if world > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def serve() -> None:
    """Run training jobs until process 0 calls `release`."""
    from xalign.config import XalignError
    from xalign.training.stage import run_job

    while (job := share(None)) is not None:
        with suppress(XalignError):  # every process meets the same error; process 0 reports it
            run_job(job)


def release() -> None:
    """Process 0, at the end of a run under torchrun: let the others go home."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_helper():
        share(None)
