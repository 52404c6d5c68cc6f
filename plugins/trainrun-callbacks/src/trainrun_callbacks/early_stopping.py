"""Stop when an evaluation metric no longer gets better, or has become good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainrun import Field, hookimpl
from trainrun_callbacks.monitor import Monitor, MonitorOptions

if TYPE_CHECKING:
    from trainrun import Recipe, Run


class EarlyStoppingOptions(MonitorOptions):
    """What to watch, and how long to wait for it."""

    patience: int = Field(
        3, ge=1, live=True, description="Stop after this many evaluations in a row without a better value."
    )
    min_delta: float = Field(0.0, ge=0, description="Smallest change that counts as an improvement.")
    threshold: float | None = Field(None, description="Stop as soon as the metric is at least this good.")
    min_lr: float | None = Field(None, ge=0, description="Stop when no learning rate is above this or has risen.")
    skip_first: int = Field(0, ge=0, description="Number of evaluations to ignore at the beginning.")


class EarlyStopping:
    """Stop when a metric has not improved for `patience` evaluations, or has reached `threshold`.

    It also stops when all learning rates are at most `min_lr` and none has risen since the last evaluation, as
    they do in a warm-up.
    """

    Options = EarlyStoppingOptions

    def __init__(self, options: EarlyStoppingOptions) -> None:
        self._options = options
        self._monitor = Monitor(options, options.mode)
        self._rates: list[float] | None = None
        self._best: float | None = None
        self._seen = 0
        self._waited = 0
        self._reason: str | None = None

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        return self._monitor.problem(recipe)

    @hookimpl
    def on_evaluated(self, run: Run, splits: Sequence[str], metrics: Mapping[str, float]) -> None:
        value = self._monitor.read(splits, metrics)
        if value is not None:
            self._judge(value, run)

    @hookimpl
    def on_stop_requested(self) -> None:
        self._monitor.stopped()

    @hookimpl
    def on_train_end(self) -> None:
        self._monitor.require_seen()

    @hookimpl
    def should_stop(self) -> str | None:
        return self._reason

    def state_dict(self) -> dict[str, Any]:
        # Without the reason: what once stopped a run must not stop the run that is resumed from it.
        judged = {"best": self._best, "seen": self._seen, "waited": self._waited, "rates": self._rates}
        return {"monitor": self._monitor.state_dict(), **judged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._monitor.load_state_dict(state["monitor"]):  # numbers of another metric say nothing about this one
            self._best, self._seen, self._waited = state["best"], state["seen"], state["waited"]
            self._rates = state["rates"]

    def _judge(self, value: float, run: Run) -> None:
        self._seen += 1
        if self._seen <= self._options.skip_first:
            return
        if self._monitor.better(value, self._best, self._options.min_delta):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        self._reason = self._good_enough(value) or self._patience_lost() or self._too_slow(run)

    def _good_enough(self, value: float) -> str | None:
        threshold = self._options.threshold
        if threshold is None or not math.isfinite(value) or self._monitor.gain(value, threshold) < 0:
            return None
        return f"{self._options.monitor} is {value:g}, as good as the threshold {threshold:g}"

    def _too_slow(self, run: Run) -> str | None:
        limit, before = self._options.min_lr, self._rates
        if limit is None or run.optimizer is None:
            return None
        self._rates = rates = [float(group["lr"]) for group in run.optimizer.param_groups]
        if before is None or max(rates) > limit or any(now > old for now, old in zip(rates, before, strict=False)):
            return None
        return f"no learning rate is above min_lr = {limit:g} any more: the largest is {max(rates):g}"

    def _patience_lost(self) -> str | None:
        if self._waited < self._options.patience:
            return None
        best = "was never finite" if self._best is None else f"no better than {self._best:g}"
        evaluations = "evaluation" if self._waited == 1 else "evaluations"
        return f"{self._options.monitor} {best} for {self._waited} {evaluations}"
