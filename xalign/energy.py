"""Energy of a stage: the processors' RAPL counters and the GPUs' NVML, where this process may read them. No torch.

RAPL counts everyone on the package, other people's jobs included; NVML counts the whole GPU.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """One processor package's counter, in µJ; it starts again from 0 at `max_energy_range_uj` (minutes under full load).

    Args:
        domain: its folder, e.g. ``intel-rapl:0``.
    Raises:
        OSError, ValueError: when it cannot be read.
    """

    def __init__(self, domain: Path) -> None:
        self.file, self.joules = domain / "energy_uj", 0.0
        self.range = int((domain / "max_energy_range_uj").read_text())
        self.last = self._read()

    def _read(self) -> int:
        return int(self.file.read_text())

    def sample(self) -> None:
        """Add what was spent since the last call; twice around the counter between two calls would be lost."""
        now = self._read()
        self.joules += ((now - self.last) % self.range) / 1e6
        self.last = now


class Gpu:
    """One GPU: its energy counter, or where it has none (before Volta) its power, integrated from call to call.

    Args:
        read: ``("energy" | "power", value)`` in J or W.
    """

    def __init__(self, read: Callable[[], tuple[str, float]]) -> None:
        self.read, self.joules = read, 0.0
        self.last, self.at = read(), time.monotonic()

    def sample(self) -> None:
        """Add what was spent since the last call."""
        found, now = self.read(), time.monotonic()
        if found[0] == "energy":
            self.joules += found[1] - self.last[1]
        else:
            self.joules += (found[1] + self.last[1]) / 2 * (now - self.at)
        self.last, self.at = found, now


class EnergyMeter:
    """Counts from its making on; call `sample` at least every few minutes.

    Attributes:
        name: what is counted, e.g. ``rapl: 1 whole package``; empty where nothing is.
        reason: why nothing is counted; empty where something is.
    """

    def __init__(self, powercap: Path = POWERCAP, gpus: int = 1) -> None:
        self.packages, self.reason = packages(powercap)
        self.gpus: list[Gpu] = []
        with suppress(Exception):  # NVMLError: then the GPUs are not counted, and not named
            self.gpus = [Gpu(read) for read in gpu_readers(gpus)]
        kinds = ((f"rapl: {len(self.packages)} whole package", self.packages), (f"nvml: {len(self.gpus)} whole GPU", self.gpus))
        self.name = " + ".join(name + "s" * (len(found) > 1) for name, found in kinds if found)

    def sample(self) -> None:
        """Read every counter; one that fails ends the measurement."""
        try:
            for counter in (*self.packages, *self.gpus):
                counter.sample()
        except Exception as e:  # OSError and ValueError of files, NVMLError
            self.packages, self.gpus, self.name, self.reason = [], [], "", f"the energy meter failed: {e}"

    def joules(self) -> float | None:
        """What was spent up to the last `sample`; None where nothing is counted."""
        return sum(counter.joules for counter in (*self.packages, *self.gpus)) if self.name else None


def packages(powercap: Path = POWERCAP) -> tuple[list[Rapl], str]:
    """The counters of all processor packages, or none and the reason.

    Only domains named ``package-N``: core, uncore and dram are parts of one, ``psys`` holds them all.
    """
    found, refused = [], ""
    for domain in sorted(powercap.glob("intel-rapl:*")):
        try:
            if (domain / "name").read_text().startswith("package"):
                found.append(Rapl(domain))
        except (OSError, ValueError) as e:
            refused = f"{domain / 'energy_uj'}: {getattr(e, 'strerror', None) or e}"
    if refused:  # some of the packages would pass for all
        return [], f"no energy meter: intel-rapl is not readable here ({refused})"
    return found, "" if found else "no energy meter: there is no intel-rapl here"


def gpu_readers(count: int) -> list[Callable[[], tuple[str, float]]]:
    """How to read the first `count` GPUs that this process sees; fewer where NVML cannot."""
    return [_reader(handle) for handle in gpu_handles()[:count]]


def _reader(handle: Any) -> Callable[[], tuple[str, float]]:
    import pynvml

    def energy() -> tuple[str, float]:
        return "energy", pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    def power() -> tuple[str, float]:
        return "power", pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3

    with suppress(pynvml.NVMLError):
        energy()
        return energy
    return power


@cache
def gpu_handles() -> tuple[Any, ...]:
    """NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order and with a readable meter; () without NVML.

    NVML counts devices by their place on the bus, as CUDA does with CUDA_DEVICE_ORDER=PCI_BUS_ID or with equal devices.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        count, named = pynvml.nvmlDeviceGetCount(), os.environ.get("CUDA_VISIBLE_DEVICES")
    except Exception:  # not installed, no driver, no device
        return ()
    found = []
    for name in map(str, range(count)) if named is None else named.split(","):
        try:
            index = name.strip()
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(index)) if index.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(index.encode())
            pynvml.nvmlDeviceGetPowerUsage(handle)
        except Exception:  # as CUDA does: what follows a wrong entry is not visible
            break
        found.append(handle)
    return tuple(found)


def gpu_name() -> str:
    """The first visible GPU as NVML names it; empty without one."""
    with suppress(Exception):
        import pynvml

        name = pynvml.nvmlDeviceGetName(gpu_handles()[0])
        return name if isinstance(name, str) else name.decode()
    return ""
