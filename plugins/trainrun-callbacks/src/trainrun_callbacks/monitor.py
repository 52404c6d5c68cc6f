"""An evaluation metric that a plugin watches: that there is one, and when it is an error that there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from trainrun import Field, PluginOptions, UsageError

if TYPE_CHECKING:
    from trainrun import Recipe

Mode = Literal["min", "max"]


class WatchOptions(PluginOptions):
    """Which evaluation metric to watch."""

    monitor: str = Field(min_length=1, metric=True, description="Evaluation metric to watch, such as `eval/accuracy`.")
    must_exist: Literal["first", "later"] = Field(
        "first",
        description="Require the metric in the `first` evaluation of its split, or `later`, by the end of training.",
    )


class MonitorOptions(WatchOptions):
    """Which evaluation metric to watch, and what is good."""

    mode: Mode = Field("min", description="Whether a smaller (`min`) or a larger (`max`) value is better.")


class Monitor:
    """Reads the metric out of each evaluation. mode: whether `"min"` or `"max"` is better, for comparisons."""

    def __init__(self, options: WatchOptions, mode: Mode = "min") -> None:
        self._options = options
        self._mode = mode
        self.name = options.monitor
        self._seen = False
        self._missed: list[str] = []  # the names that there were instead
        self._stopped = False

    def problem(self, recipe: Recipe) -> str | None:
        """Return what is wrong with the name before anything is evaluated.

        Its split may be wrong.
        """
        splits = recipe.evaluate.splits
        if self.is_of(splits):
            return None
        names = ", ".join(f"{split}/NAME" for split in splits) or "nothing, as evaluate.splits is empty"
        return f"monitor = {self.name!r} names no evaluated split; there is {names}"

    def read(self, splits: Sequence[str], metrics: Mapping[str, float]) -> float | None:
        """Return the value; None if this evaluation of `splits` has none.

        Raises UsageError if it must have one.
        """
        if self.name in metrics:
            self._seen = True
            return metrics[self.name]
        if self.is_of(splits) and not self._seen:
            self._missed = sorted(metrics)
            if self._options.must_exist == "first":
                raise UsageError(f"{self._absent()} this evaluation has: {self._known()}{self._hint()}")
        return None

    def is_of(self, splits: Sequence[str]) -> bool:
        """Return whether the metric's name begins with one of `splits`."""
        return any(self.name.startswith(f"{split}/") for split in splits)

    def stopped(self) -> None:
        """Note that training was stopped.

        That the metric never came may be because of that.
        """
        self._stopped = True

    def require_seen(self) -> None:
        """Raise UsageError if all evaluations were made and none had the metric."""
        if self._missed and not self._seen and not self._stopped:
            raise UsageError(f"{self._absent()} no evaluation had it; the last one had: {self._known()}")

    def state_dict(self) -> dict[str, Any]:
        """Return which metric this is, and whether it was there.

        An attempt may resume from behind the last evaluation.
        """
        return {"name": self.name, "mode": self._mode, "seen": self._seen, "missed": self._missed}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Load the state if it is of this metric and sense.

        The sense is whether lower or higher is good. Returns whether it is; otherwise the state is left.
        """
        same = (state["name"], state["mode"]) == (self.name, self._mode)
        if same:
            self._seen, self._missed = state["seen"], list(state["missed"])
        return same

    def gain(self, value: float, reference: float) -> float:
        """Return how much better `value` is than `reference`.

        Negative if it is worse.
        """
        return value - reference if self._mode == "max" else reference - value

    def better(self, value: float, reference: float | None, by: float = 0.0) -> bool:
        """Return whether a value is better than another by more than `by`.

        A value that is not finite never is.
        """
        return math.isfinite(value) and (reference is None or self.gain(value, reference) > by)

    def _absent(self) -> str:
        return f"monitor = {self.name!r}: there is no such metric;"

    def _known(self) -> str:
        return ", ".join(self._missed) or "none"

    def _hint(self) -> str:
        return '; if it comes later, set must_exist = "later"'
