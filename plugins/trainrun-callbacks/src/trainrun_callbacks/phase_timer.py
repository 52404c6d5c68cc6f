"""Log the time that each phase of a step takes."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks.stopwatches import DeviceStopwatch, HostStopwatch, Stopwatch, percentile

if TYPE_CHECKING:
    from trainrun import Run

_WORK = "phase/work"


Percent = Annotated[int, Field(ge=1, le=100)]


class PhaseTimerOptions(PluginOptions):
    """What to say about the phases."""

    percentiles: list[Percent] = Field(
        [50, 95], min_length=1, description="Percentiles to log, over the steps since the last log, from 1 to 100."
    )
    slowest_rank: bool = Field(True, description="Also log which rank takes longest until its gradients are reduced.")


class PhaseTimer:
    """Log the seconds that a step spends in each of its phases, as percentiles over the steps since the last log.

    Each is that of the slowest rank. `phase/data` is waiting for the loader, and `phase/move` the copy to the device.
    `phase/forward`, `phase/backward` and `phase/optimizer` (clipping, update, and reduction outside of the backward)
    follow; `phase/step` is the whole step. `phase/evaluation/SPLIT` and `phase/checkpoint` are the time in which
    training waits for them. On a GPU, forward, backward and optimizer are timed by the GPU, and what it has not yet
    finished is in the next log. `phase/work` is the mean time until a rank's gradients can be reduced;
    `phase/slowest_rank` is the rank that took longest, as of the previous log.
    """

    Options = PhaseTimerOptions
    on_error = "disable"

    def __init__(self, options: PhaseTimerOptions) -> None:
        self._options = options
        self._host: Stopwatch = HostStopwatch()
        self._device: Stopwatch = self._host
        self._step_began = self._evaluation_began = self._fetched = self._forward_began = 0.0
        self._checkpoint_began: float | None = None
        self._last: Any = None  # the mark that the phase at hand begins with
        self._mine = 0.0  # what this rank said of its own work

    @hookimpl
    def on_train_start(self, run: Run) -> None:
        if run.device.type == "cuda":
            self._device = DeviceStopwatch()

    @hookimpl
    def on_step_start(self, run: Run) -> None:
        self._end_checkpoint(run)
        self._step_began = perf_counter()

    @hookimpl
    def on_batch_fetched(self, run: Run, seconds: float) -> None:
        self._fetched = perf_counter()
        self._host.add(run.step, "data", 0.0, seconds)
        self._host.add(run.step, "work", 0.0, seconds)

    @hookimpl
    def on_microbatch_start(self, run: Run) -> None:
        self._forward_began = perf_counter()
        self._host.add(run.step, "move", self._fetched, self._forward_began)
        self._last = self._device.mark()

    @hookimpl
    def on_forward_end(self, run: Run) -> None:
        self._host.add(run.step, "work", self._fetched, perf_counter())
        self._end_phase(run, "forward")

    @hookimpl
    def on_backward_end(self, run: Run) -> None:
        self._end_phase(run, "backward")

    @hookimpl
    def on_update_end(self, run: Run) -> None:
        self._end_phase(run, "optimizer")
        if run.logs_now:
            self._log(run)

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        self._host.add(run.step, "step", self._step_began, perf_counter())

    @hookimpl
    def on_evaluation_start(self) -> None:
        self._evaluation_began = perf_counter()

    @hookimpl
    def on_evaluation_end(self, run: Run, split: str) -> None:
        run.log(f"phase/evaluation/{split}", perf_counter() - self._evaluation_began, reduce="max")

    @hookimpl
    def on_checkpoint_start(self) -> None:
        self._checkpoint_began = perf_counter()

    @hookimpl
    def on_checkpoint_saved(self, run: Run) -> None:
        self._end_checkpoint(run)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        self._end_checkpoint(run)

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        self._end_checkpoint(run)

    @hookimpl(ranks="all")
    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        # All ranks are given the same greatest time. Whoever has measured it says so, in the next log.
        if _WORK in metrics and run.world.size > 1:
            run.log("phase/slowest_rank", run.world.rank if self._mine == metrics[_WORK] else -1, reduce="max")

    def _end_phase(self, run: Run, name: str) -> None:
        now = self._device.mark()
        self._device.add(run.step, name, self._last, now)
        self._last = now

    def _end_checkpoint(self, run: Run) -> None:
        if self._checkpoint_began is not None:
            run.log("phase/checkpoint", perf_counter() - self._checkpoint_began, reduce="max")
            self._checkpoint_began = None

    def _log(self, run: Run) -> None:
        found = self._host.take()
        if self._device is not self._host:
            found |= self._device.take()
        work = found.pop("work")
        for name, seconds in found.items():
            for share in self._options.percentiles:
                run.log(f"phase/{name}/p{share}", percentile(seconds, share / 100), reduce="max")
        if self._options.slowest_rank and run.world.size > 1:
            self._mine = sum(work) / len(work)
            run.log(_WORK, self._mine, reduce="max")
