"""What a worker knows while it trains: one mutable object, written by the loop, read through `Run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from trainrun.recipe import Recipe
from trainrun.rundir import RunPaths, Stop
from trainrun.rundir.pulse import Pulse
from trainrun.worker.world import Job, World

if TYPE_CHECKING:
    from trainrun.plugin.dispatch import Dispatcher
    from trainrun.worker.built import Built
    from trainrun.worker.decisions import Decisions
    from trainrun.worker.metrics import Metrics


def _unknown() -> None:
    """Return None: the progress of an epoch before there is data."""


@dataclass
class State:
    """The state of one worker. `step` and `epoch` are those being made; `samples_seen` counts over all ranks.

    `total_steps` is None while it cannot be known: epochs over a loader without a length.
    """

    recipe: Recipe
    paths: RunPaths
    attempt: int
    world: World
    job: Job
    device: torch.device
    metrics: Metrics
    decisions: Decisions
    pulse: Pulse
    hooks: Dispatcher = field(init=False)
    built: Built = field(init=False)  # from when optimizer and scheduler are built
    step: int = 0
    epoch: int = 0
    samples_seen: int = 0
    total_steps: int | None = None
    phase: str = "setup"
    model: torch.nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    scheduler: Any = None
    scaler: torch.amp.GradScaler | None = None
    stop: Stop | None = None  # what all ranks have agreed on
    exempt: frozenset[str] = frozenset()  # what of the model was not finite before it was trained, and may stay so
    smoke: bool = False  # this is a `trainrun smoke`
    epoch_progress: Callable[[], float | None] = _unknown  # of the training data

    @property
    def logs_now(self) -> bool:
        """Whether the metrics of the current step are logged at its end."""
        return self.step % self.recipe.train.log_every == 0 or self.step == self.total_steps

    def enter(self, phase: str) -> None:
        """Change to another phase."""
        self.phase = phase
        self.pulse.enter(phase)
