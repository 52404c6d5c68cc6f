"""Stop when an evaluation metric no longer gets better, or has become good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from trainrun import Field, PluginOptions, TrainingError, hookimpl

if TYPE_CHECKING:
    from trainrun import Recipe


class EarlyStoppingOptions(PluginOptions):
    """What to watch, and how long to wait for it."""

    monitor: str = Field(min_length=1, description="The evaluation metric to watch, such as `eval/accuracy`.")
    mode: Literal["min", "max"] = Field("min", description="Whether smaller or larger is better.")
    patience: int = Field(
        3, ge=1, live=True, description="Stop after this many evaluations in a row without a better value."
    )
    min_delta: float = Field(0.0, ge=0, description="How much better than the best so far counts as better.")
    threshold: float | None = Field(None, description="Stop as soon as the metric is at least this good.")
    skip_first: int = Field(0, ge=0, description="Evaluations at the beginning that are passed over.")


class EarlyStopping:
    """Stop when a metric has not improved for `patience` evaluations, or has reached `threshold`."""

    Options = EarlyStoppingOptions

    def __init__(self, options: EarlyStoppingOptions) -> None:
        self._options = options
        self._best: float | None = None
        self._seen = 0
        self._waited = 0
        self._reason: str | None = None

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        splits = recipe.evaluate.splits
        if any(self._options.monitor.startswith(f"{split}/") for split in splits):
            return None
        names = ", ".join(f"{split}/NAME" for split in splits) or "nothing, as evaluate.splits is empty"
        return f"monitor = {self._options.monitor!r} names no evaluated split; there is {names}"

    @hookimpl
    def on_evaluation_end(self, split: str, metrics: Mapping[str, float]) -> None:
        name = self._options.monitor
        if name in metrics:
            self._judge(metrics[name])
        elif name.startswith(f"{split}/"):
            known = ", ".join(sorted(metrics)) or "none"
            raise TrainingError(f"monitor = {name!r}: there is no such metric; this evaluation has: {known}")

    @hookimpl
    def should_stop(self) -> str | None:
        return self._reason

    def state_dict(self) -> dict[str, Any]:
        # Without the reason: what once stopped a run must not stop the run that is resumed from it.
        return {"best": self._best, "seen": self._seen, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._seen, self._waited = state["best"], state["seen"], state["waited"]

    def _judge(self, value: float) -> None:
        self._seen += 1
        if self._seen <= self._options.skip_first:
            return
        if self._better(value):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        self._reason = self._good_enough(value) or self._patience_lost()

    def _better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        return self._best is None or self._gain(value, self._best) > self._options.min_delta

    def _gain(self, value: float, reference: float) -> float:
        return value - reference if self._options.mode == "max" else reference - value

    def _good_enough(self, value: float) -> str | None:
        threshold = self._options.threshold
        if threshold is None or not self._gain(value, threshold) >= 0:
            return None
        return f"{self._options.monitor} is {value:g}, as good as the threshold {threshold:g}"

    def _patience_lost(self) -> str | None:
        if self._waited < self._options.patience:
            return None
        best = "was never a number" if self._best is None else f"no better than {self._best:g}"
        evaluations = "evaluation" if self._waited == 1 else "evaluations"
        return f"{self._options.monitor} {best} for {self._waited} {evaluations}"
