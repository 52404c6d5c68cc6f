"""One launch from recipe to outcome. This is what `trainrun launch` and `trainrun.launch()` do."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trainrun.errors import ExitCode
from trainrun.launch import leftovers, preflight
from trainrun.launch.client import Client
from trainrun.launch.handle import Launch, Seat
from trainrun.launch.hooks import require_no_veto
from trainrun.launch.join import join
from trainrun.launch.nodes.hub import Hub
from trainrun.launch.nodes.match import software
from trainrun.launch.nodes.place import Place, find_place
from trainrun.launch.prepare import prepare
from trainrun.launch.signals import SLACK, Signals
from trainrun.launch.terminal import Echo, Say, say, shown_ranks, silent
from trainrun.plugin.resolve import Resolved, resolve
from trainrun.recipe.model import Recipe
from trainrun.rundir.records import Outcome


def launch(  # noqa: PLR0913 - all keywords, and the one call that takes them
    recipe: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    dir: str | Path | None = None,  # noqa: A002 - the recipe's own word
    ranks: Echo = "zero",
    quiet: bool = False,
    refresh: bool = False,
    node_rank: int | None = None,
    rdzv_endpoint: str | None = None,
    argv: Sequence[str] | None = None,
) -> Outcome:
    """Train by a recipe, and answer with how it ended. `Outcome.run` is the run directory.

    overrides: as `-o`: ``["optimizer.lr=1e-3"]``.
    plugins: as `-p`: ``["learning-rate-monitor", "no:early-stopping"]``.
    dir: the folder in which the run's own folder is made, in place of the recipe's `run.dir`.
    ranks: whose output is shown: "zero", "all" or "none", or a list of ranks.
    quiet: show nothing at all.
    refresh: describe all plugins anew.
    node_rank: which of `launch.nodes` machines this is; each makes the same call, with a rank of its own from 0 on.
    rdzv_endpoint: ``"HOST:PORT"`` of node 0, where the others find it.

    Raises a `TrainrunError` for whatever is found before anything is started; what happens after
    that is in the outcome. To be called from the main thread, so that Ctrl-C reaches the workers.
    """
    write = silent if quiet else say
    resolved = resolve(Path(recipe), overrides, plugins, refresh=refresh)
    place = find_place(resolved.data, node_rank, rdzv_endpoint)
    if place is not None and place.node > 0:
        return join(resolved, place, write, "none" if quiet else ranks)
    resolved.require()
    typed = Recipe.from_data(resolved.data)
    announce(resolved, write)
    client = Client(write)
    hooks = client.load(resolved)
    require_no_veto(hooks, typed)
    placement = preflight.place(typed)
    shown_ranks(ranks, placement.workers * typed.launch.nodes)  # raises where there is no such rank
    base = Path(typed.run.dir if dir is None else dir)
    for run_id in leftovers.clear(base):
        write(f"note: ended processes that {run_id} had left behind")
    users = {signal.SIGUSR1: typed.launch.on_usr1, signal.SIGUSR2: typed.launch.on_usr2}
    with Signals(typed.launch.grace + SLACK, users) as signals, _hub(place, write) as hub:
        prepared = prepare(typed, resolved, placement, base, tuple(argv or sys.argv), quiet=quiet)
        write(f"run: {prepared.paths.root}")
        if place is not None and hub is not None:
            hub.open(prepared.paths, software(resolved, prepared.workers))
            prepared = replace(prepared, seat=Seat(0, place.nodes, place.where.host), hub=hub)
        return _run(client, prepared, signals, "none" if quiet else ranks)


@contextmanager
def _hub(place: Place | None, write: Say) -> Iterator[Hub | None]:
    """The way to the other nodes, where there are others."""
    if place is None:
        yield None
        return
    with Hub(place.where, place.nodes, write) as hub:
        yield hub


def _run(client: Client, prepared: Launch, signals: Signals, ranks: Echo) -> Outcome:
    """Run, and tell the other nodes how it ended, whatever happens."""
    outcome = Outcome("failed", int(ExitCode.BUG), "node 0 ended without an outcome", run=str(prepared.paths.root))
    try:
        outcome = client.run(prepared, signals, ranks)
    finally:
        if prepared.hub is not None:
            prepared.hub.farewell(outcome.to_json())
    return outcome


def announce(resolved: Resolved, write: Say) -> None:
    """Say which plugins are active, and in one line which are installed and not."""
    for note in resolved.notes:
        write(f"note: {note}")
    active = [_shown(one.name, one.plugin, one.version) for one in resolved.instances if one.role == "plugin"]
    write(f"plugins: {', '.join(active) or 'none beside the built-in ones'}")
    if resolved.installed_not_enabled:
        write(f"installed, not enabled: {', '.join(resolved.installed_not_enabled)}")


def _shown(name: str, plugin: str | None, version: str | None) -> str:
    detail = " ".join(part for part in (plugin if plugin != name else None, version) if part)
    return f"{name} ({detail})" if detail else name
