"""The plugin `wandb`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from trainrun import Field
from trainrun.tracking import RunPaths, ServerOptions, Tracker, TrackerPlugin
from trainrun_wandb.tracker import WandbTracker

if TYPE_CHECKING:
    from trainrun import Recipe

_ENTITY = "WANDB_ENTITY"


class WandbOptions(ServerOptions):
    """The destination and the content of the log."""

    mode: Literal["online", "offline", "disabled"] = Field(
        "online", description="`offline` writes into the run's folder, for `wandb sync`; `disabled` does nothing."
    )
    project: str | None = Field(None, min_length=1, description="Name of the project; by default, the name of the run.")
    entity: str | None = Field(None, min_length=1, description="User or team; by default, that of your W&B account.")
    name: str | None = Field(None, min_length=1, description="Name of the run in W&B; by default, its id.")
    group: str | None = Field(None, min_length=1, description="Group under which W&B shows the run.")
    tags: list[str] = Field([], description="Tags of the run.")
    code: bool = Field(False, description="Upload the run's snapshot of the task's code.")
    system: bool = Field(True, description="Let W&B also measure the machine: CPU, memory, GPUs.")


class Wandb(TrackerPlugin):
    """Log metrics, hyper-parameters and outcome to Weights & Biases, online or offline.

    The W&B run has the id of the trainrun run, so that a resumed run continues it. Only a separate process next to the
    client imports the package.
    """

    Options = WandbOptions
    plugin = "wandb"
    needs = {"wandb": "wandb"}  # noqa: RUF012 - read only

    @property
    def is_on(self) -> bool:
        return bool(self.options.mode != "disabled")

    def make_tracker(self, name: str, paths: RunPaths) -> Tracker:
        del name, paths
        return WandbTracker(self.options)

    @classmethod
    def place(cls, options: WandbOptions, recipe: Recipe) -> str | None:
        if options.mode == "disabled":
            return None
        entity = options.entity or os.environ.get(_ENTITY) or "(default entity)"
        return f"the {options.mode} project {entity}/{options.project or recipe.run.name}"
