"""Links next to the runs: to the one that was launched last, and to the last one that went well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks.links import point

if TYPE_CHECKING:
    from trainrun import Launch, Outcome

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*(\{name\})?[A-Za-z0-9._-]*$"


class LatestLinkOptions(PluginOptions):
    """How the links are called. `{name}` stands for the recipe's `run.name`."""

    launched: str | None = Field(
        "latest-{name}",
        pattern=_NAME,
        max_length=128,
        description="Link to the run that was launched or resumed last.",
    )
    finished: str | None = Field(
        "latest-finished", pattern=_NAME, max_length=128, description="Link to the last run that ended successfully."
    )


class LatestLink:
    """Link to this run in the folder of runs: when it is launched, and when it has ended successfully.

    Each link is replaced by one rename, so that it always points to a run; of simultaneous launches the last wins.
    """

    Options = LatestLinkOptions
    on_error = "warn"

    def __init__(self, options: LatestLinkOptions) -> None:
        self._options = options

    @hookimpl
    def on_launch_start(self, launch: Launch) -> None:
        self._point(launch, self._options.launched)

    @hookimpl
    def on_launch_end(self, launch: Launch, outcome: Outcome) -> None:
        if outcome.ok:
            self._point(launch, self._options.finished)

    def _point(self, launch: Launch, link: str | None) -> None:
        if link is not None:
            name = link.replace("{name}", launch.recipe.run.name)
            point(launch.paths.root.parent / name, launch.run_id)
