"""The plugin `wandb`."""

from __future__ import annotations

from typing import Literal

from trainrun import Field
from trainrun.tracking import RunPaths, Tracker, TrackerOptions, TrackerPlugin
from trainrun_wandb.tracker import WandbTracker


class WandbOptions(TrackerOptions):
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
    connect: float = Field(20.0, gt=0, description="Seconds after which a server that does not answer is an outage.")


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
    def place(cls, options: WandbOptions) -> str | None:
        if options.mode == "disabled":
            return None
        return f"the {options.mode} project {options.entity or '(default entity)'}/{options.project or '(run.name)'}"
