"""How long a run took: in all, in training, and for each attempt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainrun import hookimpl
from trainrun_callbacks import records

if TYPE_CHECKING:
    from trainrun import Launch, Run

_TRAINING = "run_time/training"


class RunTime:
    """Log `run_time/training`, the seconds of training over all attempts, and report all times at the end.

    A resumed run continues from the time saved in its checkpoint: lost steps do not count. At the end of a launch, the
    event `run_time` has the seconds of the launch, of each attempt, and of training.
    """

    on_error = "disable"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before = 0.0  # seconds of training before this attempt
        self._training: float | None = None
        self._launched = clock()
        self._attempts: dict[int, float] = {}
        self._attempt = clock()

    # --- in the worker ---

    @hookimpl
    def on_train_start(self) -> None:
        self._training = self._clock()

    @hookimpl(ranks="zero")
    def on_step_start(self, run: Run) -> None:
        if run.logs_now:
            run.log(_TRAINING, self._trained(), reduce="zero")

    @hookimpl(ranks="zero")
    def on_train_end(self, run: Run) -> None:
        run.logger.info("training took", seconds=round(self._trained(), 3), attempt=run.attempt)

    def state_dict(self) -> dict[str, Any]:
        return {"training": self._trained()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before = state["training"]

    def _trained(self) -> float:
        return self._before + (0.0 if self._training is None else self._clock() - self._training)

    # --- in the client ---

    @hookimpl
    def on_launch_start(self) -> None:
        self._launched = self._clock()

    @hookimpl
    def on_attempt_start(self) -> None:
        self._attempt = self._clock()

    @hookimpl
    def on_attempt_end(self, attempt: int) -> None:
        self._attempts[attempt] = self._clock() - self._attempt

    @hookimpl
    def on_launch_end(self, launch: Launch) -> None:
        total = self._clock() - self._launched
        attempts = {str(number): round(seconds, 3) for number, seconds in self._attempts.items()}
        shown = ", ".join(f"attempt {number} {seconds:.3g} s" for number, seconds in self._attempts.items())
        event = {"event": "run_time", "time": time.time(), "seconds": round(total, 3), "attempts": attempts}
        trained = [line[_TRAINING] for line in records.read(launch.paths.metrics) if _TRAINING in line]
        reason = f"{total:.3g} s in all{': ' if shown else ''}{shown}"
        event |= {"training": trained[-1] if trained else None, "reason": reason}
        records.append_event(launch.paths.events, event)
