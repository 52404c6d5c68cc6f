"""The schedules of the recipe's `[scheduler]` table, as one torch scheduler whose rates follow from its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

TO_ZERO = ("linear", "cosine", "polynomial")  # shapes that run from 1 to 0: min_lr takes the place of 0

_DEFAULTS = {"power": 1.0, "gamma": 0.1, "step_size": 1000.0}
_LEFT_OUT = ("optimizer", "_floors")


class Schedule(LRScheduler):
    """Follow the shape called `name` over `steps` updates, the first `warmup` of which rise in a line.

    All rates are functions of the settings and of the number of updates, so that a resume can change any of them.
    min_lr: no rate goes below it once warm. settings: what the shape itself takes (`gamma`, `step_size`, `power`).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        *,
        steps: int | None,
        warmup: int,
        min_lr: float,
        settings: Mapping[str, float],
    ) -> None:
        self.name = name
        self.steps = steps
        self.warmup = warmup
        self.min_lr = min_lr
        self.power, self.gamma, self.step_size = (float(settings.get(key, _DEFAULTS[key])) for key in _DEFAULTS)
        self._floors: list[float] = []
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each group after `last_epoch` updates."""
        self._add_floors()
        return [base * factor for base, factor in zip(self.base_lrs, self._factors(), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, the base rates and the number of updates."""
        return {key: value for key, value in vars(self).items() if key not in _LEFT_OUT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state that `state_dict` returned, settings included."""
        vars(self).update(state_dict)
        self._floors = []

    def _add_floors(self) -> None:
        """Compute the least factors of groups that have none yet.

        Reading a rate on a GPU waits for it.
        """
        for base in self.base_lrs[len(self._floors) :]:
            rate = float(base) if self.min_lr else 0.0
            self._floors.append(min(1.0, self.min_lr / rate) if rate > 0 else 0.0)

    def _factors(self) -> list[float]:
        done, floors = self.last_epoch, self._floors
        if done < self.warmup:
            return [(done + 1) / (self.warmup + 1)] * len(floors)
        factor = self._shape(done - self.warmup)
        if self.name in TO_ZERO:
            return [floor + (1 - floor) * factor for floor in floors]
        return [max(floor, factor) for floor in floors]

    def _shape(self, done: int) -> float:
        """Return the factor on the rate after `done` updates past the warm-up."""
        left = max(0.0, 1 - done / max(1, (self.steps or 1) - self.warmup))
        match self.name:
            case "linear":
                return left
            case "cosine":  # Loshchilov and Hutter, SGDR (2017), without restarts
                return 0.5 * (1 + math.cos(math.pi * (1 - left)))
            case "polynomial":
                return float(left**self.power)
            case "exponential":
                return float(self.gamma**done)
            case "step":
                return float(self.gamma ** (done // self.step_size))
        return 1.0
