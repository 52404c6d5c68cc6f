"""The mean over units, such as tokens, for any cut of an update into micro-batches and ranks.

A task that returns `{"loss": mean, "weight": units}` says over how many units its loss is a mean. Let each micro-batch
of each of R ranks have u units and the loss l. Then the update's loss is the sum of u * l over the sum of u. Strategies
average gradients over ranks, so that each loss is to be multiplied by u * R / U, with U as the sum over all.

With one micro-batch in the update, U is known before the backward: one all-reduce of a number. With several, it is
known after the last forward only. Losses are then multiplied by u / c with a power of two c, and the gradients once by
c * R / U. Weights on an accelerator stay there, so that the host waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist

from trainrun.errors import TaskError
from trainrun.worker.world import World

Units = float | torch.Tensor
"""How many units a loss is the mean over: a number, or a tensor without dimensions on the accelerator."""

GatherInteger = Callable[[int], list[int]]


class LossWeights:
    """Scale the losses of one rank by the weights that the task returns. All ranks call it alike.

    gather_integer: gathers one integer from all ranks; None for a single worker.
    scaled: whether gradients are kept small, as fp16 needs, while an update is not complete.
    """

    def __init__(
        self, world: World, device: torch.device, gather_integer: GatherInteger | None, *, scaled: bool
    ) -> None:
        self._world = world
        self._device = device
        self._gather_integer = gather_integer
        self._scaled = scaled
        self.incomplete = False  # whether gradients must be multiplied when the update is complete
        self._used: bool | None = None  # whether the task returns weights; None before the first loss
        self._sum: Units = 0.0
        self._reference: Units = 1.0
        self._reduction: tuple[torch.Tensor, Any] | None = None

    @property
    def used(self) -> bool:
        """Whether the task returns weights."""
        return bool(self._used)

    def take(self, weight: object, *, counts: bool) -> Units | None:
        """Return the task's weight as units; None if it gives none.

        counts: False for padding. Raises TrainingError for what is no weight, and unless the task returns a weight
        always, on all ranks, or never.
        """
        given = weight is not None
        if given is not self._used:
            self._settle(given=given)
        if weight is None:
            return None
        if isinstance(weight, torch.Tensor):
            if weight.numel() != 1 or weight.is_complex():
                raise TaskError(
                    f"training_step returned a weight of shape {tuple(weight.shape)} and type {weight.dtype};"
                    " return one real number: over how many units the loss is a mean"
                )
            if weight.device.type != "cpu":
                units = weight.detach().reshape(()).to(self._device, torch.float64)
                return units if counts else torch.zeros_like(units)
            weight = weight.item()
        if not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
            raise TaskError(
                f"training_step returned the weight {weight!r}; return a number of at least 0: over how many units the"
                " loss is a mean"
            )
        return float(weight) if counts else 0.0

    def _settle(self, *, given: bool) -> None:
        """Decide from the first loss of an attempt whether losses have weights."""
        everywhere = self._gather_integer(int(given)) if self._used is None and self._gather_integer else [int(given)]
        if self._used is not None or len(set(everywhere)) > 1:
            raise TaskError(
                "training_step returned a weight with some losses and none with others; return it always, and 0 for a"
                " micro-batch that must not count"
            )
        self._used = given

    def scaled(self, loss: torch.Tensor, units: Units, index: int, micro_batches: int) -> torch.Tensor:
        """Return the loss to run backward of, for one micro-batch.

        index: of the micro-batch, among `micro_batches`.
        """
        if index == 0:
            self._sum, self._reference, self.incomplete = units, 1.0, micro_batches > 1
            if self._scaled and micro_batches > 1:
                self._reference = _power_of_two(self._total(units), micro_batches)
        else:
            self._sum = self._sum + units
        if micro_batches == 1:
            share = _quotient(units, self._total(units)) * self._world.size
        else:
            share = units / self._reference
            if index == micro_batches - 1 and self._world.size > 1:
                total = self._as_tensor(self._sum)
                self._reduction = total, dist.all_reduce(total, async_op=True)
        if isinstance(share, torch.Tensor):
            # The mean over nothing is often nan, and nan * 0 would reach the gradients.
            return torch.where(share > 0, loss, torch.zeros_like(loss)) * share.to(loss.dtype)
        if share == 0:  # likewise
            return torch.where(torch.zeros((), dtype=torch.bool, device=loss.device), loss, torch.zeros_like(loss))
        return loss if share == 1 else loss * share

    def complete(self, parameters: Sequence[torch.Tensor]) -> None:
        """Multiply a complete update's gradients by the missing factor.

        It was not known before. Such an update has several micro-batches.
        """
        total, self.incomplete = self._sum, False
        if self._reduction is not None:
            reduced, work = self._reduction
            self._reduction = None
            work.wait()
            total = reduced if self._device.type != "cpu" else float(reduced)
        factor = _quotient(self._reference, total) * self._world.size
        gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if gradients and not (isinstance(factor, float) and factor == 1):
            kinds: dict[torch.dtype, list[torch.Tensor]] = {}
            for gradient in gradients:
                kinds.setdefault(gradient.dtype, []).append(gradient)
            for dtype, alike in kinds.items():
                torch._foreach_mul_(alike, factor.to(dtype) if isinstance(factor, torch.Tensor) else factor)

    def _total(self, units: Units) -> Units:
        """Return the sum of the units over all ranks."""
        if self._world.size == 1:
            return units
        total = self._as_tensor(units)
        dist.all_reduce(total)
        return total if self._device.type != "cpu" else float(total)

    def _as_tensor(self, units: Units) -> torch.Tensor:
        if isinstance(units, torch.Tensor):
            return units.clone()
        return torch.tensor(units, dtype=torch.float64, device=self._device)


def _quotient(part: Units, whole: Units) -> Units:
    """Divide, with 0 if the whole is 0.

    An update in which nothing counts has no gradient.
    """
    if isinstance(whole, torch.Tensor):
        return torch.where(whole > 0, part / whole, torch.zeros_like(whole))
    return part / whole if whole else 0.0


def _power_of_two(units: Units, times: int) -> Units:
    """Return a power of two near units * times.

    A division by it is exact.
    """
    if isinstance(units, torch.Tensor):
        return torch.ldexp(torch.ones_like(units), torch.frexp(units * times)[1])
    return math.ldexp(1.0, math.frexp(units * times)[1])


def _local(gradient: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a DTensor."""
    local: torch.Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local
