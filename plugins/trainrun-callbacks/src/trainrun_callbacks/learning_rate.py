"""Log the learning rate, and with it other values of the optimizer's parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run


class LearningRateMonitorOptions(PluginOptions):
    """What to log besides the learning rate."""

    momentum: bool = Field(
        False, description="Also log the momentum (for Adam and similar optimizers, the first beta)."
    )
    weight_decay: bool = Field(False, description="Also log the weight decay.")


class LearningRateMonitor:
    """Log the learning rate of each parameter group, as used in the logged update.

    The metrics are `lr/0`, `lr/1` and so on, or by the group's name if it has one.
    """

    Options = LearningRateMonitorOptions
    on_error = "disable"

    def __init__(self, options: LearningRateMonitorOptions) -> None:
        self._options = options

    @hookimpl(ranks="zero")
    def on_step_start(self, run: Run) -> None:
        if not run.logs_now:
            return
        # Before the update, because the scheduler sets the next rate right after it.
        groups = run.optimizer.param_groups if run.optimizer else []
        for index, group in enumerate(groups):
            for what, value in self._values(group):
                run.log(f"{what}/{group.get('name', index)}", value, reduce="zero")

    def _values(self, group: Mapping[str, Any]) -> list[tuple[str, Any]]:
        values: list[tuple[str, Any]] = [("lr", group["lr"])]
        if self._options.momentum:
            values.append(("momentum", group["betas"][0] if "betas" in group else group.get("momentum")))
        if self._options.weight_decay:
            values.append(("weight_decay", group.get("weight_decay")))
        return [(what, value) for what, value in values if value is not None]
