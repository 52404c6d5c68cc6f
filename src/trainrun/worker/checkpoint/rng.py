"""The random generators of one worker, as plain values and tensors."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def state(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator that training may draw from.

    These are Python's, torch's, the device's and NumPy's.
    """
    found: dict[str, Any] = {"python": _listed(random.getstate()), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    numpy = sys.modules.get("numpy")  # not imported for this: no code has drawn from what no code has imported
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        found["numpy"] = [kind, keys.tolist(), *rest]
    return found


def restore(saved: dict[str, Any], device: torch.device) -> None:
    """Restore the generators to a state that `state` returned.

    Generators that it does not mention stay as they are.
    """
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(saved["torch"])
    if "cuda" in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)
    numpy = sys.modules.get("numpy")
    if "numpy" in saved and numpy is not None:
        kind, keys, *rest = saved["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


@contextmanager
def apart(device: torch.device, seed: int, others: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Seed the generators for the body, and restore them afterwards.

    They are restored after an exception too. others: generators that are only restored, because they have been seeded
    already.
    """
    saved, devices = state(device), _devices()
    own = [(generator, generator.get_state()) for generator in others]
    try:
        _seed(device, seed)
        yield
    finally:
        if devices:
            torch.cuda.set_rng_state_all(devices)
        restore(saved, device)
        for generator, found in own:
            generator.set_state(found)


def seed_of(*parts: object) -> int:
    """Make a seed of 63 bits, far from those of other `parts`.

    Parts are, for example, a purpose, a step and a rank.
    """
    text = " ".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def seed_numpy(seed: int) -> None:
    """Seed NumPy's global generator, if something has imported NumPy."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def _seed(device: torch.device, seed: int) -> None:
    """Seed what `state` saves, and no more.

    `torch.manual_seed` also seeds devices that are not there to restore.
    """
    random.seed(seed)
    seed_numpy(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _devices() -> list[torch.Tensor]:
    """Return the states of all GPUs, if the process uses any.

    A task may use more of them than its own.
    """
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if used else []


def _listed(state: tuple[Any, ...]) -> list[Any]:
    version, numbers, gauss = state
    return [version, list(numbers), gauss]
