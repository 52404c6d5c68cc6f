"""What a tracker has to do, and the options that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol

import pydantic

from trainrun.plugin.options import Field, PluginOptions
from trainrun.tracking.facts import Ending, RunFacts
from trainrun.tracking.spool import Record

Mark = Mapping[str, Any]


class TrackerOptions(PluginOptions):
    """What every tracker's table may say."""

    interval: float = Field(2.0, gt=0, description="Seconds between two deliveries.")
    deadline: float = Field(
        30.0,
        gt=0,
        description="Time limit in seconds for the last delivery of a launch; `trainrun sync` sends the rest.",
    )


class ServerOptions(TrackerOptions):
    """What the tables of trackers with a server, or a store of files, may say too."""

    timeout: float = Field(20.0, gt=0, description="Seconds to wait for the server before it counts as unreachable.")
    artifacts: list[str] = Field(
        ["recipe.toml"], description="Globs of files to send at the end, relative to the run directory."
    )

    @pydantic.field_validator("artifacts")
    @classmethod
    def _within_the_run(cls, artifacts: list[str]) -> list[str]:
        for glob in artifacts:
            path = PurePath(glob)
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise ValueError(f"got {glob!r}; give globs within the run's folder, such as 'logs/*.out'")
            if any("**" in part and part != "**" for part in path.parts):
                raise ValueError(f"got {glob!r}; '**' stands alone between slashes, as in 'traces/**/*.json'")
        return artifacts


class Opened(NamedTuple):
    """What a tracker returns when it is open.

    `mark` is what it wants to find again: plain JSON values, such as its own id of the run. `has` is the last step of
    which it has everything, if it knows that better than the cursor does; otherwise None.
    """

    mark: Mark
    has: int | None = None


class Tracker(Protocol):
    """One way to send metrics. Lives in a process of its own, whose one thread makes all calls.

    Every method but `close` raises any error; the tracker is then closed, and opened again after a wait.
    """

    whole_steps: bool
    """All records of a step come in one `send`, the next step having begun, or the run having ended."""

    def open(self, facts: RunFacts, mark: Mark) -> Opened:
        """Connect.

        mark: what was last returned by `open` or `send`, in this process or an earlier; empty at first.
        """

    def send(self, records: Sequence[Record]) -> Mark:
        """Deliver `records`, in order.

        When this returns they are with the tracker, or safe on its own disk.
        """

    def finish(self, ending: Ending) -> None:
        """Report how the run ended; everything has been sent."""

    def close(self) -> None:
        """Close everything; the tracker may be in any state."""
