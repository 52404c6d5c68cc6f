"""What a training step computes, counted once; and what devices could compute."""

from __future__ import annotations

import re

import torch
from torch.utils.flop_counter import FlopCounterMode

# Dense peaks in floating-point operations a second by the vendors' data sheets, for 16-bit matrices. The words that a
# device's name must have, those with more of them first.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "V100 PCIE": 112e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
_FULL = {
    "H100 PCIe": 51e12,
    "H100 NVL": 60e12,
    "V100 PCIE": 14e12,
    "H200": 67e12,
    "H100": 67e12,
    "A100": 19.5e12,
    "V100": 15.7e12,
    "T4": 8.1e12,
}


class FlopCounter:
    """Counts the floating-point operations from `start` to `stop`, forward and backward, by the shapes of operands."""

    def __init__(self) -> None:
        self._mode: FlopCounterMode | None = None

    @property
    def counting(self) -> bool:
        """Whether it was started and not stopped."""
        return self._mode is not None

    def start(self) -> None:
        """Count from here on."""
        self._mode = FlopCounterMode(display=False)
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> int:
        """Stop counting; return the operations since `start`.

        A multiplication and an addition count as two.
        """
        assert self._mode is not None
        mode, self._mode = self._mode, None
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return int(mode.get_total_flops())


def peak(device: torch.device, precision: str) -> float | None:
    """Return the peak of a known GPU for matrices of 16 bits.

    It is that of 32 bits if the recipe trains in them. None for other devices.
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), halves=precision in ("bf16", "fp16"))


def peak_of(name: str, *, halves: bool) -> float | None:
    """Return the peak by a device's name.

    None for other devices, among them other models of a series and parts of a GPU (MIG).
    """
    words = set(re.split(r"[\s-]+", name))
    if "MIG" in words:
        return None
    table = _PEAKS if halves else _FULL
    return next((flops for known, flops in table.items() if words.issuperset(known.split())), None)
