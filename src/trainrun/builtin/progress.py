"""The progress of the run: `status.json`, written by rank 0, and what the client shows of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trainrun import Field, PluginOptions, hookimpl
from trainrun.builtin.display import Display, Line, Live
from trainrun.rundir.activity import activity, seconds_left
from trainrun.rundir.files import write_json
from trainrun.rundir.pulse import read_pulse
from trainrun.rundir.records import Outcome

if TYPE_CHECKING:
    from trainrun.launch.handle import Launch
    from trainrun.worker.run import Run

_PACE = 0.2  # seconds between two writes of status.json, however often a recipe logs


class Progress:
    """Write `status.json` from rank 0, and show it: a live line on a terminal, otherwise a plain line per interval."""

    class Options(PluginOptions):
        """What the recipe may set in `[plugins.progress]`."""

        interval: float = Field(5.0, gt=0, description="Seconds between two plain lines if there is no terminal.")

    on_error = "disable"
    poll_interval = 0.5

    def __init__(self, options: Options) -> None:
        self._options = options
        self._display: Display | None = None
        self._metrics: dict[str, float] = {}
        self._written = 0.0
        self._clock: tuple[float, int] | None = None
        self._rate = 0.0
        self._began: tuple[float, int] | None = None  # when training began in this attempt, and after which step
        self._evaluating: float | None = None  # since when
        self._evaluations: list[float] = []  # seconds of each

    # --- in the worker: write ---

    @hookimpl(ranks="zero")
    def on_worker_start(self, run: Run) -> None:
        self._write(run, "setup")

    @hookimpl(ranks="zero")
    def on_train_start(self, run: Run) -> None:
        self._clock = (time.perf_counter(), run.samples_seen)
        self._began = (time.perf_counter(), run.step)
        self._write(run, "training")

    @hookimpl
    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._metrics.update(metrics)
        if time.monotonic() - self._written >= _PACE:
            self._write(run, run.phase)

    @hookimpl(ranks="zero")
    def on_evaluation_start(self) -> None:
        if self._evaluating is None:
            self._evaluating = time.perf_counter()

    @hookimpl(ranks="zero")
    def on_evaluated(self, run: Run) -> None:
        if self._evaluating is not None:
            self._evaluations.append(time.perf_counter() - self._evaluating)
            self._evaluating = None
            self._clock = (time.perf_counter(), run.samples_seen)  # the rate is that of training alone

    @hookimpl(ranks="zero")
    def on_train_end(self, run: Run) -> None:
        self._write(run, "ending")

    @hookimpl(ranks="zero")
    def on_worker_end(self, run: Run, outcome: Outcome) -> None:
        self._write(run, outcome.state)

    def _write(self, run: Run, state: str) -> None:
        self._measure(run)
        status = {
            "state": state,
            "attempt": run.attempt,
            "step": run.step,
            "steps": run.total_steps,
            "epoch": run.epoch,
            "metrics": self._metrics,
            "samples_per_second": round(self._rate, 1),
            "updated": time.time(),
            "cost": run.cost(),
            "clock": self._durations(run),
        }
        write_json(run.paths.status, status)
        self._written = time.monotonic()

    def _durations(self, run: Run) -> dict[str, Any] | None:
        """Return the seconds of this attempt's steps and evaluations.

        None before training began.
        """
        if self._began is None:
            return None
        now, evaluation = time.perf_counter(), sum(self._evaluations)
        under_way = 0.0 if self._evaluating is None else now - self._evaluating
        return {
            "steps": run.step - self._began[1],
            "training": round(now - self._began[0] - evaluation - under_way, 3),
            "evaluations": len(self._evaluations),
            "evaluation": round(evaluation, 3),
            "evaluate_every": run.recipe.evaluate.every,
        }

    def _measure(self, run: Run) -> None:
        now = time.perf_counter()
        if self._clock is not None and run.samples_seen > self._clock[1]:
            since, samples = self._clock
            self._rate = (run.samples_seen - samples) / (now - since)
            self._clock = (now, run.samples_seen)

    # --- in the client: show ---

    @hookimpl
    def on_status(self, launch: Launch, status: Mapping[str, Any]) -> None:
        if launch.quiet:
            return
        if self._display is None:
            self._display = Live() if sys.stderr.isatty() else Line(self._options.interval)
        workers = launch.workers * launch.recipe.launch.nodes
        beat = read_pulse(launch.paths.pulse(launch.attempt, 0))
        self._display.show(status, activity(launch.paths, launch.attempt, workers, beat), seconds_left(status, beat))

    @hookimpl
    def on_attempt_end(self) -> None:
        self._close()

    @hookimpl
    def on_launch_end(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._display is not None:
            with suppress(OSError, ValueError):
                self._display.close()
            self._display = None
