"""Say that training is alive, and how long ago it last said something of worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks.sampling import Ticker

if TYPE_CHECKING:
    from trainrun import Run


class HeartbeatOptions(PluginOptions):
    """How often."""

    seconds: float = Field(60.0, ge=0.05, description="Seconds between two lines, also during a long step.")
    steps: int | None = Field(
        None, ge=1, description="Number of steps after which to write another line; by default, none."
    )


class Heartbeat:
    """Write a line to rank 0's log at intervals, and log `heartbeat/longest_step`.

    The line shows step, epoch, phase, the last logged loss and its age, and the seconds since the last step ended. The
    metric is the longest time between the ends of two steps since the last log, on the slowest rank.
    """

    Options = HeartbeatOptions
    on_error = "disable"

    def __init__(self, options: HeartbeatOptions, clock: Callable[[], float] = monotonic) -> None:
        self._options = options
        self._clock = clock
        self._ticker: Ticker | None = None
        self._loss: tuple[float, float] | None = None  # when it was logged, and what it was
        self._step_ended: float | None = None
        self._longest = 0.0

    @hookimpl
    def on_train_start(self, run: Run) -> None:
        self._step_ended = self._clock()
        if run.world.rank == 0:
            self._ticker = Ticker("heartbeat", self._options.seconds, lambda: self._beat(run))
            self._ticker.start()

    @hookimpl(ranks="zero")
    def on_log(self, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self._loss = self._clock(), metrics["train/loss"]

    @hookimpl
    def on_update_end(self, run: Run) -> None:
        now = self._clock()
        if self._step_ended is not None:
            self._longest = max(self._longest, now - self._step_ended)
        self._step_ended = now
        if run.logs_now:
            run.log("heartbeat/longest_step", self._longest, reduce="max")
            self._longest = 0.0

    @hookimpl(ranks="zero")
    def on_step_end(self, run: Run, step: int) -> None:
        if self._ticker is not None:
            self._ticker.raise_error()
        if self._options.steps is not None and step % self._options.steps == 0:
            self._beat(run)

    @hookimpl(ranks="zero")
    def on_worker_end(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()

    def _beat(self, run: Run) -> None:
        now, loss = self._clock(), self._loss
        run.logger.info(
            "heartbeat",
            step=run.step,
            epoch=run.epoch,
            phase=run.phase,
            loss=None if loss is None else loss[1],
            loss_age=None if loss is None else round(now - loss[0], 3),
            step_age=None if self._step_ended is None else round(now - self._step_ended, 3),
        )
