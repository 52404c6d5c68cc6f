"""Notice when the training loss jumps up."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    import torch

    from trainrun import Run

_SIGMAS = 1.4826  # median absolute deviations of a normal distribution to one standard deviation


class SpikeGuardOptions(PluginOptions):
    """What a spike is, and what to do about one."""

    action: Literal["warn", "checkpoint", "stop", "skip"] = Field(
        "warn", description="Warn, request a checkpoint, stop the training, or skip the update."
    )
    method: Literal["median", "mean"] = Field(
        "median", description="Compare with median and median absolute deviation, or with mean and standard deviation."
    )
    window: int = Field(100, ge=2, description="Number of previous updates to compare a loss with.")
    min_history: int = Field(20, ge=2, description="Number of losses needed before one can be a spike.")
    threshold: float = Field(6.0, gt=0, description="A loss this many deviations above the median or mean is a spike.")
    min_rise: float = Field(0.0, ge=0, description="Smallest rise above the median or mean that can be a spike.")


class SpikeGuard:
    """Compare each update's loss (the mean over ranks) with previous ones; NaN and infinity are always spikes.

    With `"median"` the deviation is 1.4826 times the median absolute deviation, so that a threshold means the same with
    both methods for losses that are normally distributed, and a spike itself hardly counts. Every finite loss goes
    into the window, so a lasting rise soon is no spike.

    Losses are checked when metrics are logged, with one wait for the device and one reduction over ranks per log. With
    `"skip"`, both happen before each update.
    """

    Options = SpikeGuardOptions

    def __init__(self, options: SpikeGuardOptions) -> None:
        self._options = options
        self._before: deque[float] = deque(maxlen=options.window)
        self._spikes = 0
        self._parts: list[tuple[torch.Tensor, int]] = []  # losses and sizes of this update's micro-batches
        # Of updates that were not looked at yet: step, sum of the losses over samples, and samples.
        self._waiting: list[tuple[int, torch.Tensor, int]] = []

    @hookimpl
    def check_recipe(self) -> str | None:
        window, least = self._options.window, self._options.min_history
        return None if least <= window else f"min_history = {least} is more than window = {window} can hold"

    @hookimpl
    def on_forward_end(self, loss: torch.Tensor, size: int) -> None:
        self._parts.append((loss.detach(), size))

    @hookimpl(mutates=True)
    def should_skip_update(self, run: Run) -> str | None:
        if self._options.action != "skip":
            return None
        self._keep(run.step)
        return next(iter(self._look()), None)

    @hookimpl(mutates=True)
    def on_update_end(self, run: Run) -> None:
        if self._parts:
            self._keep(run.step)
        if run.logs_now:
            for reason in self._look():
                self._act(run, reason)
            run.log("train/spikes", self._spikes, reduce="zero")

    def state_dict(self) -> dict[str, Any]:
        waiting = [(step, total.clone(), samples) for step, total, samples in self._waiting]
        return {"before": list(self._before), "spikes": self._spikes, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before.extend(state["before"])
        self._spikes = state["spikes"]
        self._waiting = [(step, total, samples) for step, total, samples in state["waiting"]]

    def _keep(self, step: int) -> None:
        """Keep the update's losses, summed over the samples on this rank.

        Padding has the size 0 and does not count.
        """
        counted = [(loss * size, size) for loss, size in self._parts if size]
        total, samples = counted[0] if counted else (self._parts[0][0].new_zeros(()), 0)
        for part, size in counted[1:]:
            total, samples = total + part, samples + size
        self._waiting.append((step, total, samples))
        self._parts = []

    def _look(self) -> list[str]:
        """Return what is wrong with the losses that are waiting."""
        from trainrun_callbacks.reductions import means_over_ranks  # noqa: PLC0415 - the client imports no torch

        waiting, self._waiting = self._waiting, []
        means = means_over_ranks([(total, samples) for _, total, samples in waiting])
        judged = [self._judge(step, mean) for (step, _, _), mean in zip(waiting, means, strict=True)]
        return [reason for reason in judged if reason is not None]

    def _judge(self, step: int, loss: float) -> str | None:
        reason = self._reason(loss)
        if math.isfinite(loss):
            self._before.append(loss)
        self._spikes += reason is not None
        return None if reason is None else f"the loss of step {step} {reason}"

    def _reason(self, loss: float) -> str | None:
        if not math.isfinite(loss):
            return f"is {loss}"
        if len(self._before) < self._options.min_history:
            return None
        middle, deviation = self._usual()
        if loss <= middle + max(self._options.threshold * deviation, self._options.min_rise):
            return None
        word = self._options.method
        return f"is {loss:.4g}, and the {word} of the {len(self._before)} before is {middle:.4g} ± {deviation:.2g}"

    def _usual(self) -> tuple[float, float]:
        if self._options.method == "mean":
            return statistics.fmean(self._before), statistics.pstdev(self._before)
        middle = statistics.median(self._before)
        return middle, _SIGMAS * statistics.median(abs(value - middle) for value in self._before)

    def _act(self, run: Run, reason: str) -> None:
        if run.world.rank == 0:
            run.logger.warning(f"a loss spike: {reason}")
        if self._options.action == "checkpoint":
            run.request_checkpoint(reason)
        elif self._options.action == "stop":
            run.request_stop(reason)
