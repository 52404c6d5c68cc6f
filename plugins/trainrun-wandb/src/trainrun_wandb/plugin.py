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
    """Where and how to log."""

    mode: Literal["online", "offline", "disabled"] = Field(
        "online", description="`offline` writes into the run's folder, for `wandb sync`; `disabled` does nothing."
    )
    project: str | None = Field(None, min_length=1, description="The project; left out, the name of the run.")
    entity: str | None = Field(None, min_length=1, description="User or team; left out, W&B's own default.")
    name: str | None = Field(None, min_length=1, description="What the run is called; left out, its id.")
    group: str | None = Field(None, min_length=1, description="Runs of one group are shown together.")
    tags: list[str] = Field([], description="Tags of the run.")
    code: bool = Field(False, description="Upload the run's snapshot of the task's code.")
    system: bool = Field(True, description="Have W&B measure the machine too: CPU, memory, GPUs.")


class Wandb(TrackerPlugin):
    """Log metrics, hyper-parameters and outcome to Weights & Biases, online or offline.

    W&B's run has the id of trainrun's, so that a resumed run goes on there as well. Its package is used in a process
    beside the client only.
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
