"""Log how much memory training uses."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run

_GIB = 1024**3


class DeviceMemoryOptions(PluginOptions):
    """What the peak is a peak of."""

    reset_peak: bool = Field(
        False, description="Reset the peak of a GPU at each log instead of keeping it for the whole attempt."
    )


class DeviceMemory:
    """Log `memory/allocated`, `memory/reserved` and `memory/peak` in GiB, of the rank that uses most.

    On a GPU, these come from torch's allocator, at the end of the logged update and before gradients are freed. On the
    CPU, `memory/resident` and `memory/peak` are those of the process.
    """

    Options = DeviceMemoryOptions
    on_error = "disable"

    def __init__(self, options: DeviceMemoryOptions) -> None:
        self._options = options

    @hookimpl
    def on_update_end(self, run: Run) -> None:
        if run.logs_now:
            found = self._device(run.device) if run.device.type == "cuda" else _process()
            for name, used in found.items():
                run.log(f"memory/{name}", used / _GIB, reduce="max")

    def _device(self, device: torch.device) -> dict[str, int]:
        found = {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
        }
        if self._options.reset_peak:
            torch.cuda.reset_peak_memory_stats(device)
        return found


def _process() -> dict[str, int]:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "resident": pages * resource.getpagesize(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
