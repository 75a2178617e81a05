"""Several processes (torchrun, or a cluster's tasks): the first one runs the pipeline, the others wait for jobs.

Process 0 composes, caches and evaluates; when it comes to something that all can do (training, text that a model writes
for training), it sends the job to the others, and all of them run it. So the cache has one writer.

No error leaves the others waiting. After a job every process says how it went; a process that failed waits a minute for
the others to say so, who may be waiting for it inside the job, and then ends, which ends them too.
"""
from __future__ import annotations

import os
import traceback
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

from xalign.config import XalignError
from xalign.meter import Work, work

FOREVER = timedelta(days=7)
PATIENCE = timedelta(seconds=60)  # of a process that failed
GONE = "another process has ended, its message says why; repeat the command to continue"

_control: Any = None  # the group over which jobs are sent: never the one in which a failed job's collectives may hang
_lost = False         # a process is gone, or waits for what will not come


class Job(Protocol):
    """Something that every process runs; it is sent, so it must pickle."""

    def run(self) -> Any:
        """Do this process' part; `place` says which."""


def place() -> tuple[int, int]:
    """(rank, number of processes) as the launcher says; needs no torch and no group."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise XalignError(f"RANK={rank} WORLD_SIZE={world}: must be whole numbers, RANK below WORLD_SIZE, as torchrun sets them; unset "
                          "both, or start with torchrun")
    return int(rank), int(world)


def is_helper() -> bool:
    """True in every process but the first: it must call `serve` and nothing else."""
    return place()[0] > 0


def adopt_tasks() -> bool:
    """Inside a job that submitit started: give each task its place as torchrun would. True if there are several."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    env = JobEnvironment()
    if env.num_tasks == 1:
        return False
    # a cluster gives every task all GPUs of its node, or its own: `join` picks
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if env.num_nodes == 1:
        os.environ["MASTER_ADDR"] = "127.0.0.1"  # a machine's own name need not resolve
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    return True


def join() -> tuple[int, int]:
    """Enter the process group (once) and return (rank, world size). One process needs no port and no launcher."""
    import torch
    import torch.distributed as dist

    global _control
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")  # or DeepSpeed logs its search
        # DeepSpeed insists on it; where each process sees its own GPU only, that is number 0
        local = int(os.environ.get("LOCAL_RANK", "0"))
        os.environ["LOCAL_RANK"] = str(local % torch.cuda.device_count() if cuda else local)
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # jobs go over gloo: a process that waits for hours on nccl would spin its GPU
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if place()[1] > 1:
            dist.init_process_group(backend, timeout=FOREVER)
            _control = dist.new_group(backend="gloo", timeout=FOREVER)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()


def perform(job: Job) -> Any:
    """Process 0: run `job` on every process and return what its own part returned; a single process just runs it.

    Raises:
        XalignError: another process met one; its message names the process.
        RuntimeError: another process met something else, or is gone.
    """
    if place()[1] == 1:
        return job.run()
    _share(job)
    return _run(job)


def serve() -> None:
    """Every other process: run jobs until process 0 calls `release`."""
    while (job := _share(None)) is not None:
        try:
            _run(job)
        except Exception:
            if _lost:  # else process 0 has heard of it, and reports it
                raise
    _leave()


def release() -> bool:
    """Process 0, at the end of its run: let the others go home. False if they cannot be reached."""
    if place()[1] > 1 and not _lost:
        with suppress(XalignError):
            _share(None)
            _leave()
    return not _lost


def _leave() -> None:
    """Close the connections: a process that exits while another's threads still read from it can make that one abort."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _share(job: Job | None) -> Job | None:
    """Send `job` from process 0 to all (None ends their service), or receive it; returns the job."""
    global _lost
    if _lost:
        raise XalignError(GONE)
    import torch.distributed as dist

    join()
    box = [job]
    try:
        dist.broadcast_object_list(box, src=0, group=_control)
    except RuntimeError as e:
        _lost = True
        raise XalignError(GONE) from e
    return box[0]


def _run(job: Job) -> Any:
    """This process' part of `job`, and word of how it went to and from the others; raises as `perform` says.

    What the others' models computed counts as process 0's `xalign.meter.work`.
    """
    result = error = None
    if is_helper():
        work.uncounted = ""  # in process 0 each stage begins without
    before = replace(work)
    try:
        result = job.run()
    except Exception as e:
        error = e
    reports, done = zip(*_exchange(error, work.since(before)), strict=True)
    for other in done[1:] if place()[0] == 0 else ():
        work.add(other)
    if error:
        raise error
    for rank, report in enumerate(reports):
        if report:
            expected, line, trace = report
            if expected:
                raise XalignError(f"process {rank}: {line}")
            raise RuntimeError(f"process {rank}: {line}") from RuntimeError(trace)
    return result


def _exchange(error: Exception | None, done: Work) -> list[tuple[tuple[bool, str, str] | None, Work]]:
    """What each process met in the job: None, or whether it was an XalignError, its line and its traceback; and what it computed.

    Raises:
        Exception: `error`, or an XalignError, when a process does not answer; `_lost` is then set.
    """
    global _lost
    import torch.distributed as dist

    expected = isinstance(error, XalignError)
    mine = error and (expected, str(error) if expected else f"{type(error).__name__}: {error}",
                      "".join(traceback.format_exception(error)))
    reports: list[Any] = [None] * place()[1]
    try:
        _meet(PATIENCE if error else FOREVER)
        dist.all_gather_object(reports, (mine, done), group=_control)
    except RuntimeError as e:
        _lost = True
        if error and "by peer" not in str(error):  # gloo: connection closed, or reset, by peer
            raise error from None
        raise XalignError(GONE) from e
    return reports


def _meet(timeout: timedelta) -> None:
    """Return when all processes are here; RuntimeError when one does not come in time, or never will.

    (torch's monitored_barrier keeps its time in process 0 only.)
    """
    import torch
    import torch.distributed as dist

    rank, world = place()
    others, word = range(1, world) if rank == 0 else [0], torch.zeros(1)

    def tell() -> None:
        for other in others:
            dist.isend(word, other, group=_control).wait(timeout)

    if rank:
        tell()
    for other in others:
        dist.irecv(word, other, group=_control).wait(timeout)
    if not rank:
        tell()
