"""What client plugins are given: the run being launched, and the handle that a backend returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from trainrun.rundir.paths import RunPaths

if TYPE_CHECKING:
    from trainrun.launch.nodes.hub import Hub
    from trainrun.plugin.resolve import Resolved
    from trainrun.recipe import Recipe


class Seat(NamedTuple):
    """This node among those of a launch.

    `host` and `port` are the address at which the workers of all nodes find each other in one attempt. On node 0, port
    0 asks for any free one.
    """

    node: int = 0
    nodes: int = 1
    host: str = ""
    port: int = 0


ALONE = Seat()


class GoingOn(NamedTuple):
    """The start of a launch's attempts, as far as a person has set it.

    `since` is the number of the launch's first attempt. That one starts from `first`, a checkpoint that is known to be
    good, for the `reason`. If `first` is None it starts from the run's newest, as all later attempts do. `fallback` is
    the start while the run has no checkpoint of its own. `named`: a person has named one, which counts more than the
    recipe. `allow_changes` and `trust` are the options of that name.
    """

    since: int = 1
    first: Path | None = None
    reason: str = ""
    fallback: Path | None = None
    named: bool = False
    allow_changes: bool = False
    trust: bool = False


_NEW = GoingOn()


@dataclass(frozen=True)
class Launch:
    """One run, as the client sees it.

    `workers` is the number of workers that are started on each node. `environment` is what they get beyond the client's
    own environment. `attempt` is the attempt that is being made (0 before the first). `quiet` asks plugins to print
    nothing. `switches` are the plugins of `-p`. `going_on` is the start of its attempts. `seat` is this node's place
    among several. `hub` is the connection to the others, on node 0 of more than one.
    """

    recipe: Recipe = field(repr=False)
    paths: RunPaths
    argv: tuple[str, ...] = field(repr=False)
    resolved: Resolved = field(repr=False)
    workers: int
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempt: int = 0
    quiet: bool = False
    switches: tuple[str, ...] = ()
    going_on: GoingOn = _NEW
    seat: Seat = ALONE
    hub: Hub | None = field(default=None, repr=False, compare=False)

    @property
    def ranks(self) -> range:
        """Return the ranks of the workers on this node."""
        return range(self.seat.node * self.workers, (self.seat.node + 1) * self.workers)

    @property
    def run_id(self) -> str:
        """Return the run's id: the name of its folder."""
        return self.paths.run_id


class WorkersHandle(Protocol):
    """The workers of one attempt. What it learns of their ends goes into the attempt's folder (`launch.ends`)."""

    def poll(self) -> int | None:
        """Return None while workers run, then an exit code.

        May take some milliseconds, never more.
        """

    def stop(self, reason: str) -> None:
        """Ask for an orderly end; return at once. The reason stands in the attempt's requests too."""

    def nudge(self) -> None:
        """Have the workers look at the attempt's requests; return at once."""

    def kill(self) -> None:
        """End everything now; return when nothing is left."""
