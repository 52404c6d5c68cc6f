"""Log how long epochs and evaluations take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trainrun import hookimpl

if TYPE_CHECKING:
    from trainrun import Run


class EpochTimer:
    """Log `seconds/epoch`, and `seconds/SPLIT` for the evaluation of each split: those of the slowest rank.

    The time of an epoch includes its evaluations. An epoch that is interrupted and resumed counts
    the time of both parts, not the time between them. If training ends within an epoch, that epoch is not logged.
    """

    on_error = "disable"

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._epoch_started: float | None = None
        self._evaluation_started = 0.0
        self._before = 0.0  # spent on this epoch before the run was resumed
        self._stopped = False

    @hookimpl
    def on_epoch_start(self, resumed: bool) -> None:
        if not resumed:
            self._before = 0.0
        self._epoch_started = self._clock()

    @hookimpl
    def on_stop_requested(self) -> None:
        self._stopped = True

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Log the epoch if it is over. After a stop its time stays, because a resumed run ends the epoch again."""
        ends = self._stopped or run.step == run.total_steps
        complete = not ends or run.epoch_progress == 1.0
        if complete:
            run.log("seconds/epoch", self._elapsed(), reduce="max")
        if complete and not self._stopped:
            self._epoch_started, self._before = None, 0.0

    @hookimpl
    def on_evaluation_start(self) -> None:
        self._evaluation_started = self._clock()

    @hookimpl
    def on_evaluation_end(self, run: Run, split: str) -> None:
        run.log(f"seconds/{split}", self._clock() - self._evaluation_started, reduce="max")

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self._elapsed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before = state["elapsed"]

    def _elapsed(self) -> float:
        return self._before + (0.0 if self._epoch_started is None else self._clock() - self._epoch_started)
