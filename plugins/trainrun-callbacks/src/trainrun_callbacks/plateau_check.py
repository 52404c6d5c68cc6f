"""Step a `ReduceLROnPlateau` with an evaluation metric."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainrun import Field, UsageError, hookimpl
from trainrun_callbacks.monitor import Monitor, WatchOptions

if TYPE_CHECKING:
    from trainrun import Recipe


class PlateauCheckOptions(WatchOptions):
    """Which metric the scheduler is stepped with."""

    monitor: str = Field(
        min_length=1, metric=True, description="Evaluation metric to step the scheduler with, such as `eval/loss`."
    )


class PlateauCheck:
    """Step the task's `torch.optim.lr_scheduler.ReduceLROnPlateau` with a metric.

    Such a scheduler needs a metric, but trainrun steps schedulers once per update, without one. This plugin steps it
    with `monitor` at the end of each evaluation that has the metric, on all ranks alike, and not after updates. The
    launch is refused if the metric's split is not evaluated. The run fails if a required metric is missing, or if the
    task's scheduler takes no metric.
    """

    Options = PlateauCheckOptions

    def __init__(self, options: PlateauCheckOptions) -> None:
        self._monitor = Monitor(options)
        self._scheduler: MetricStepped | None = None

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> str | None:
        return self._monitor.problem(recipe)

    @hookimpl(wrapper=True)
    def build_scheduler(self) -> Generator[None, Any, Any]:
        found = yield
        if not _wants_metric(found):
            kind = "none" if found is None else type(found).__name__
            raise UsageError(
                f"the learning-rate scheduler is {kind}, which needs no metric; return a"
                " torch.optim.lr_scheduler.ReduceLROnPlateau from build_scheduler, or disable this plugin"
            )
        self._scheduler = MetricStepped(found)
        return self._scheduler

    @hookimpl(mutates=True)
    def on_evaluated(self, splits: Sequence[str], metrics: Mapping[str, float]) -> None:
        assert self._scheduler is not None
        value = self._monitor.read(splits, metrics)
        if value is not None:
            self._scheduler.step_with(value)

    @hookimpl
    def on_stop_requested(self) -> None:
        self._monitor.stopped()

    @hookimpl
    def on_train_end(self) -> None:
        self._monitor.require_seen()

    def state_dict(self) -> dict[str, Any]:
        return self._monitor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._monitor.load_state_dict(state)


class MetricStepped:
    """A scheduler that is stepped with a metric, and not once an update."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def step(self) -> None:
        """Do nothing: this is called after each update."""

    def step_with(self, metric: float) -> None:
        """Pass a metric to the scheduler; it may lower the rate."""
        self.scheduler.step(metric)

    def get_last_lr(self) -> list[float]:
        """Return the current rates."""
        rates: list[float] = self.scheduler.get_last_lr()
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's own state."""
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with what `state_dict` returned."""
        self.scheduler.load_state_dict(state)


def _wants_metric(scheduler: object) -> bool:
    from torch.optim.lr_scheduler import ReduceLROnPlateau  # noqa: PLC0415 - the client imports this without torch

    return isinstance(scheduler, ReduceLROnPlateau)
