"""The random generators of one worker, as plain values and tensors."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def state(device: torch.device) -> dict[str, Any]:
    """The state of every generator that training may draw from: Python's, torch's, the device's and NumPy's."""
    found: dict[str, Any] = {"python": _listed(random.getstate()), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    numpy = sys.modules.get("numpy")  # not imported for this: what nobody has imported nobody has drawn from
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        found["numpy"] = [kind, keys.tolist(), *rest]
    return found


def restore(saved: dict[str, Any], device: torch.device) -> None:
    """Put the generators back into a state that `state` gave; those that it does not mention stay as they are."""
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(saved["torch"])
    if "cuda" in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)
    numpy = sys.modules.get("numpy")
    if "numpy" in saved and numpy is not None:
        kind, keys, *rest = saved["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


def _listed(state: tuple[Any, ...]) -> list[Any]:
    version, numbers, gauss = state
    return [version, list(numbers), gauss]
