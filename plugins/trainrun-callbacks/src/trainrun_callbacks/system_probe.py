"""One look at a machine, with psutil and NVML."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psutil

try:
    import pynvml
except ImportError:
    pynvml = None

_MIB = 1024**2
_GIB = 1024**3


class Probe:
    """Looks at this machine. folder: whose disk counts. gpus: True if it is an error that there are none."""

    def __init__(self, folder: Path, gpus: bool | Literal["auto"]) -> None:
        self._folder = folder
        self._process = psutil.Process()
        self._sampled = False
        self._network: tuple[float, int, int] | None = None
        self._gpus = _handles(required=gpus is True) if gpus else []

    def sample(self) -> dict[str, float]:
        """Return what there is to say now.

        Rates and `cpu_percent` are since the sample before; the first has none.
        """
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        found = {
            "memory_percent": memory.percent,
            "memory_gib": (memory.total - memory.available) / _GIB,
            "process_gib": self._process.memory_info().rss / _GIB,
            "disk_percent": disk.percent,
            "disk_free_gib": disk.free / _GIB,
        }
        load = psutil.cpu_percent()  # 0 the first time, when there is nothing to compare with
        if self._sampled:
            found["cpu_percent"] = load
        self._sampled = True
        found |= dict(self._rates())
        for index, handle in enumerate(self._gpus):
            found |= {f"gpu{index}/{name}": value for name, value in _gpu(handle)}
        return found

    def _rates(self) -> Iterator[tuple[str, float]]:
        counters, now = psutil.net_io_counters(), time.monotonic()
        if counters is None:  # a machine without a network
            return
        before, self._network = self._network, (now, counters.bytes_sent, counters.bytes_recv)
        if before is not None:
            seconds = now - before[0]
            yield "sent_mib_per_second", (counters.bytes_sent - before[1]) / _MIB / seconds
            yield "received_mib_per_second", (counters.bytes_recv - before[2]) / _MIB / seconds


def _handles(*, required: bool) -> list[Any]:
    if pynvml is None:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        if required:
            raise
        return []


def _gpu(handle: Any) -> Iterator[tuple[str, float]]:
    readings: dict[str, Callable[[], float]] = {
        "percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_percent": lambda: _used(pynvml.nvmlDeviceGetMemoryInfo(handle)),
        "celsius": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    for name, read in readings.items():
        try:
            yield name, float(read())
        except pynvml.NVMLError_NotSupported:
            continue  # many GPUs do not report everything


def _used(memory: Any) -> float:
    return 100 * float(memory.used) / float(memory.total)
