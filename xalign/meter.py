"""What a stage costs, measured while it runs: wall time, energy, peak memory, and what models computed. No torch.

A device is a GPU that a process holds, whether it computes or waits for the others; without GPUs it is a whole machine.
"""
from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xalign.digests import digest_of
from xalign.energy import EnergyMeter, gpu_name

TICK = 2.0     # seconds between two looks at the energy meter
WRITTEN = 10   # ticks between two notes of what was spent; a killed stage loses no more
TIMED = 20     # seconds of computing from which on the share of the device's peak is worth measuring


@dataclass
class Work:
    """What the models of this process have computed since it began.

    Attributes:
        tokens: positions read by any model: padding, teachers, beams and what is read twice included.
        flops: of matrix products with weights, see `xalign.backbones.counting`.
        half: whether the last model computed in 16 bits.
        uncounted: what computes without being counted; set back when a stage begins.
    """

    tokens: int = 0
    flops: int = 0
    half: bool = False
    uncounted: str = ""

    def since(self, before: Work) -> Work:
        """What was done after `before` was copied."""
        return Work(self.tokens - before.tokens, self.flops - before.flops, self.half, self.uncounted)

    def add(self, other: Work) -> None:
        """Count what another process did."""
        self.tokens, self.flops, self.uncounted = self.tokens + other.tokens, self.flops + other.flops, self.uncounted or other.uncounted


work = Work()
_highest: dict[str, float] = {}  # since the stage began, before the last `reset_peak`; as in `peaks`


class Meter:
    """Measures what runs inside ``with``; `cost` afterwards.

    Args:
        spent: where a stage that can be continued notes what it has spent; what stands there is added.
        powercap: as of `EnergyMeter`.
    """

    def __init__(self, spent: Path | None = None, **energy: Any) -> None:
        self.spent, self._energy = spent, energy
        self.before = _read(spent)
        self.seconds = 0.0

    def __enter__(self) -> Meter:
        self.energy = EnergyMeter(**{"gpus": places()[1], **self._energy})
        self.start, work.uncounted = (work.tokens, work.flops), ""
        self.exact = reset_peak()
        _highest.clear()
        self.began, self.over = time.perf_counter(), threading.Event()
        self._note(running=True)
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.over.set()
        self.thread.join()
        self.energy.sample()
        self.seconds = time.perf_counter() - self.began
        self.device, self.sums = device(), self.total()
        if kind:
            self._note(running=False)
        elif self.spent:
            for path in (self.spent, self._partial):
                path.unlink(missing_ok=True)

    @property
    def _partial(self) -> Path:
        return self.spent.with_name(self.spent.name + ".partial") if self.spent else Path()

    def _look(self) -> None:
        ticks = 0
        while not self.over.wait(TICK):
            self.energy.sample()
            ticks += 1
            if ticks % WRITTEN == 0:
                self._note(running=True)

    def _note(self, running: bool) -> None:
        if self.spent:
            with suppress(OSError):
                note = {**self.total(), "running": running}
                self._partial.write_text(json.dumps({**note, "digest": digest_of(note)}))
                os.replace(self._partial, self.spent)  # a kill in the middle of writing leaves the last note

    def total(self) -> dict[str, Any]:
        """Everything spent so far, in all attempts."""
        old, joules = self.before, self.energy.joules()
        held = {k: v for k, v in peaks().items() if self.exact or k != "peak_gib"}
        known = joules is not None and ("joules" not in old or old["joules"] is not None)
        return {"seconds": old.get("seconds", 0.0) + (self.seconds or time.perf_counter() - self.began),
                "tokens": old.get("tokens", 0) + work.tokens - self.start[0], "flops": old.get("flops", 0) + work.flops - self.start[1],
                "joules": old.get("joules", 0.0) + joules if known and joules is not None else None,
                "peaks": {k: max(old.get("peaks", {}).get(k, 0.0), v) for k, v in held.items()}, "attempts": old.get("attempts", 0) + 1,
                "incomplete": bool(old.get("incomplete") or old.get("running")), "uncounted": old.get("uncounted") or work.uncounted}

    def cost(self) -> dict[str, Any]:
        """What the receipt says, for all attempts together.

        Returns:
            seconds, devices, device, processes, tokens, flops, mfu, peak_gib (main memory of process 0), peak_gpu_gib (on a GPU),
            energy_kwh, energy_meter; what is not known is missing, and ``<name>_reason`` says why. With several attempts their
            number; ``incomplete`` if one of them was killed, so that its last seconds are not in the sums.
        """
        total, (count, name, gpu) = self.sums, self.device
        world, nodes = places()[0], places()[2]
        cost: dict[str, Any] = {"seconds": round(total["seconds"], 3), "devices": count, "device": name, "processes": world,
                                "tokens": total["tokens"], "flops": total["flops"]}
        for absent in ("flops", *(() if total["tokens"] else ("tokens",))) if total["uncounted"] else ():
            del cost[absent]
            cost[f"{absent}_reason"] = total["uncounted"]
        cost |= {k: round(v, 3) for k, v in total["peaks"].items()}
        if "peak_gib" not in cost:
            cost["peak_gib_reason"] = "the peak of this process' memory cannot be measured here"
        if total["joules"] is None or nodes > 1:
            cost["energy_kwh_reason"] = (f"measured on one of {nodes} machines only" if nodes > 1 and self.energy.name else
                                         self.energy.reason or "the energy of an earlier attempt is not known")
        else:
            cost |= {"energy_kwh": round(total["joules"] / 3.6e6, 9), "energy_meter": self.energy.name}
        cost |= share_of_peak(cost, total["seconds"], world, gpu)
        more = {"attempts": total["attempts"]} if total["attempts"] > 1 else {}
        return cost | more | ({"incomplete": True} if total["incomplete"] else {})


def _read(spent: Path | None) -> dict[str, Any]:
    """What earlier attempts noted; ``running`` where the last one never ended."""
    if not spent or not spent.is_file():
        return {}
    try:
        found = json.loads(spent.read_text())
        if found.pop("digest") == digest_of(found):
            return dict(found)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        pass
    return {"attempts": 1, "incomplete": True, "joules": None}  # damaged, or an older version's


def share_of_peak(cost: dict[str, Any], seconds: float, processes: int, gpu: bool) -> dict[str, Any]:
    """``mfu``: the FLOPs of a second and process as a share of what its device can do; or the reason why there is none."""
    if not cost.get("flops"):
        return {"mfu_reason": cost.get("flops_reason", "no model computed")}
    if seconds < TIMED:
        return {"mfu_reason": f"too short to measure: under {TIMED} s"}
    from xalign.training.hardware import peak_flops

    peak = peak_flops(gpu, work.half)
    return {"mfu": round(cost["flops"] / seconds / processes / peak, 4)} if peak else {"mfu_reason": "the device's peak is not known"}


def places() -> tuple[int, int, int]:
    """(processes of the run, those on this machine, machines), as the launcher says."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = min(int(os.environ.get("LOCAL_WORLD_SIZE", str(world))), world)
    return world, local, -(-world // local)


def device() -> tuple[int, str, bool]:
    """(how many devices this run holds, what one is, whether it is a GPU)."""
    world, _, nodes = places()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    else:
        name = gpu_name()
    return (world, name, True) if name else (nodes, cpu_name(), False)


def cpu_name() -> str:
    """``Intel(R) Xeon(R) Processor, 2 cores``: the cores that this process may use."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name}, {cores} core{'s' * (cores > 1)}"


def reset_peak() -> bool:
    """Begin a new measurement; what the running stage reached before is kept. False where main memory's peak cannot be set back."""
    for name, value in _now().items():
        _highest[name] = max(_highest.get(name, 0.0), value)
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the resident set's high-water mark
    except OSError:
        return False
    return True


def peaks() -> dict[str, float]:
    """GiB since the stage began: peak_gib of this process in main memory, peak_gpu_gib allocated by PyTorch on its GPU."""
    return {name: max(value, _highest.get(name, 0.0)) for name, value in _now().items()}


def process_peak() -> float | None:
    """GiB: the most that this process held in memory since the last `reset_peak`; None where it cannot be read."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20
    return None


def _now() -> dict[str, float]:
    cuda, host = _cuda(), process_peak()
    return {**({} if host is None else {"peak_gib": host}),
            **({"peak_gpu_gib": cuda.max_memory_allocated() / 2**30} if cuda else {})}


def _cuda() -> Any:
    """torch.cuda, if it is in use."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and cuda.is_available() and cuda.is_initialized() else None
