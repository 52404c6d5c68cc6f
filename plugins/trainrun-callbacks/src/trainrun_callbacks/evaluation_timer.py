"""Evaluate by the clock instead of by steps."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from trainrun import Duration, Field, PluginOptions, hookimpl


class EvaluationTimerOptions(PluginOptions):
    """The time between evaluations."""

    every: Duration = Field(gt=0, description='Time between two evaluations, such as `"30m"`.')


class EvaluationTimer:
    """Evaluate when `every` has passed since the last evaluation.

    The clock of rank 0 decides, and all ranks evaluate at the same step. Each evaluation restarts the clock, also one
    that this plugin did not request. Time between two attempts of a run does not count.
    """

    Options = EvaluationTimerOptions
    on_error = "disable"

    def __init__(self, options: EvaluationTimerOptions, clock: Callable[[], float] = monotonic) -> None:
        self._every = options.every
        self._clock = clock
        self._since = clock()

    @hookimpl(ranks="zero")
    def on_train_start(self) -> None:
        self._since = self._clock()

    @hookimpl(ranks="zero")
    def on_evaluated(self) -> None:
        self._since = self._clock()

    @hookimpl(ranks="zero")
    def should_evaluate(self) -> str | None:
        if self._clock() - self._since < self._every:
            return None
        self._since = self._clock()  # the evaluation comes some steps later: one vote is enough
        return f"{self._every:g} s have passed since the last evaluation"
