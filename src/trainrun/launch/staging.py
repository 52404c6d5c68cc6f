"""What every launch does before its first attempt and around all of them, for a new or a resumed run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from trainrun.errors import ExitCode
from trainrun.launch import preflight
from trainrun.launch.client import Client
from trainrun.launch.handle import Launch
from trainrun.launch.hooks import require_no_veto
from trainrun.launch.nodes.hub import Hub
from trainrun.launch.nodes.place import Place
from trainrun.launch.preflight import Placement
from trainrun.launch.signals import Signals
from trainrun.launch.terminal import Echo, Say, shown_ranks
from trainrun.plugin.resolve import Resolved
from trainrun.recipe.model import Recipe
from trainrun.rundir.lease import Lease
from trainrun.rundir.records import Outcome


class Staged(NamedTuple):
    """A launch about which nothing is left to be found wrong before something is created."""

    recipe: Recipe
    client: Client
    placement: Placement

    @property
    def world(self) -> int:
        """Return the number of workers on all nodes."""
        return self.placement.workers * self.recipe.launch.nodes


def stage(resolved: Resolved, write: Say, ranks: Echo, *, quiet: bool = False) -> Staged:
    """Check everything that can be checked beforehand. Raises a TrainrunError; nothing is created."""
    resolved.require()
    typed = Recipe.from_data(resolved.data)
    announce(resolved, write)
    client = Client(write)
    hooks = client.load(resolved)
    require_no_veto(hooks, typed, quiet=quiet)
    placement = preflight.place(typed)
    shown_ranks(ranks, placement.workers * typed.launch.nodes)  # raises if there is no such rank
    return Staged(typed, client, placement)


@contextmanager
def door(place: Place | None, write: Say) -> Iterator[Hub | None]:
    """Open the connections to the other nodes, if there are others."""
    if place is None:
        yield None
        return
    with Hub(place.where, place.nodes, write) as hub:
        yield hub


def conduct(client: Client, prepared: Launch, signals: Signals, ranks: Echo, lease: Lease | None = None) -> Outcome:
    """Run, and in every case send the other nodes the outcome."""
    outcome = Outcome("failed", int(ExitCode.BUG), "node 0 ended without an outcome", run=str(prepared.paths.root))
    try:
        outcome = client.run(prepared, signals, ranks, lease)
    finally:
        if prepared.hub is not None:
            prepared.hub.farewell(outcome)
    return outcome


def announce(resolved: Resolved, write: Say) -> None:
    """Print the active plugins besides the built-in ones.

    `trainrun plugins` and `trainrun hooks` show the others.
    """
    for note in resolved.notes:
        write(f"note: {note}")
    active = [_shown(one.name, one.plugin, one.version) for one in resolved.instances if one.role == "plugin"]
    if active:
        write(f"plugins: {', '.join(active)}")


def _shown(name: str, plugin: str | None, version: str | None) -> str:
    detail = " ".join(part for part in (plugin if plugin != name else None, version) if part)
    return f"{name} ({detail})" if detail else name
