"""The rates that a scheduler's settings give at its step, with any rates of its optimizer.

Most of torch's schedulers compute a rate from the one before. New settings would count from the next step on only, and
from the wrong rate. Their closed forms are private to torch: what is used of them stands here alone.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)

from trainrun.worker.built import copied, put, schedulers

Rates = Sequence[Any]  # numbers, or tensors with one


def curve(scheduler: Any) -> Rates | None:
    """Return the rate of each group, or None.

    None if rates depend on more than settings and step, as on a plateau.
    """
    if isinstance(scheduler, SequentialLR):
        return _sequential(scheduler)
    if isinstance(scheduler, ChainedScheduler):
        return _chained(scheduler)
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        scheduler.step(scheduler.last_epoch)  # its place within the cycle follows from the step
        return [group["lr"] for group in scheduler.optimizer.param_groups]
    if isinstance(scheduler, ReduceLROnPlateau):
        return None
    if isinstance(scheduler, LRScheduler):
        return _single(scheduler)
    held = schedulers(scheduler)[1:]
    return curve(held[0]) if len(held) == 1 else None


def _single(scheduler: LRScheduler) -> Rates | None:
    owner = next(one for one in type(scheduler).__mro__ if "get_lr" in vars(one))
    if "_get_closed_form_lr" in vars(owner):
        closed: Rates = scheduler._get_closed_form_lr()  # type: ignore[attr-defined]
        return closed
    groups = scheduler.optimizer.param_groups
    before = [copied(group["lr"]) for group in groups]
    found = _rates(scheduler)
    for group in groups:
        put(group, "lr", 2 * group["lr"] + 1)
    independent = found == _rates(scheduler)
    for group, rate in zip(groups, before, strict=True):
        put(group, "lr", rate)
    return found if independent else None


def _rates(scheduler: LRScheduler) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that get_lr is called outside of step
        return [float(rate) for rate in scheduler.get_lr()]


def _sequential(scheduler: SequentialLR) -> Rates | None:
    milestones, parts = scheduler._milestones, scheduler._schedulers
    place = bisect_right(milestones, scheduler.last_epoch)
    parts[place].last_epoch = scheduler.last_epoch - (milestones[place - 1] if place else 0)
    return curve(parts[place])


def _chained(scheduler: ChainedScheduler) -> Rates | None:
    """Return the product of the factors of the parts.

    Each part scales what the one before it has left.
    """
    base = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    parts = [curve(part) for part in scheduler._schedulers]
    if any(part is None for part in parts):
        return None
    factors = [[_ratio(rate, start) for rate, start in zip(part or (), base, strict=True)] for part in parts]
    return [start * prod(of_group) for start, *of_group in zip(base, *factors, strict=True)]


def _ratio(rate: Any, base: Any) -> float:
    return float(rate) / float(base) if float(base) else 0.0


def scaled(rate: Any, old: Any, new: Any) -> Any:
    """Return `rate` for a base rate `new`; it came of `old`."""
    return rate * (float(new) / float(old)) if float(old) else new


def same(one: Any, other: Any) -> bool:
    """Return whether two settings are equal.

    Tensors are compared by their numbers, lists and tuples alike.
    """
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        tensor, side = (one, other) if isinstance(one, torch.Tensor) else (other, one)
        if not isinstance(side, int | float | torch.Tensor):
            return False
        return torch.equal(tensor.cpu(), torch.as_tensor(side, dtype=tensor.dtype, device="cpu"))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)
