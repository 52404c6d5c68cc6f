"""One launch from recipe to outcome. This is what `trainrun launch` and `trainrun.launch()` do."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from trainrun.launch import leftovers
from trainrun.launch.client import Client
from trainrun.launch.hooks import require_no_veto
from trainrun.launch.preflight import place
from trainrun.launch.prepare import prepare
from trainrun.launch.signals import Signals
from trainrun.launch.terminal import Echo, Say, say, shown_ranks, silent
from trainrun.plugin.resolve import Resolved, resolve
from trainrun.recipe.model import Recipe
from trainrun.rundir.records import Outcome

_SLACK = 15.0  # seconds beyond `launch.grace` after which a plugin that holds up the client is interrupted


def launch(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    dir: str | Path | None = None,  # noqa: A002 - the recipe's own word
    ranks: Echo = "zero",
    quiet: bool = False,
    refresh: bool = False,
    argv: Sequence[str] | None = None,
) -> Outcome:
    """Train by a recipe, and answer with how it ended. `Outcome.run` is the run directory.

    overrides: as `-o`: ``["optimizer.lr=1e-3"]``.
    plugins: as `-p`: ``["learning-rate-monitor", "no:early-stopping"]``.
    dir: the folder in which the run's own folder is made, in place of the recipe's `run.dir`.
    ranks: whose output is shown: "zero", "all" or "none", or a list of ranks.
    quiet: show nothing at all.
    refresh: describe all plugins anew.

    Raises a `TrainrunError` for whatever is found before anything is started; what happens after
    that is in the outcome. To be called from the main thread, so that Ctrl-C reaches the workers.
    """
    write = silent if quiet else say
    resolved = resolve(Path(recipe), overrides, plugins, refresh=refresh)
    resolved.require()
    typed = Recipe.from_data(resolved.data)
    announce(resolved, write)
    client = Client(write)
    hooks = client.load(resolved)
    require_no_veto(hooks, typed)
    placement = place(typed)
    shown_ranks(ranks, placement.workers)  # raises where there is no such rank
    base = Path(typed.run.dir if dir is None else dir)
    for run_id in leftovers.clear(base):
        write(f"note: ended processes that {run_id} had left behind")
    users = {signal.SIGUSR1: typed.launch.on_usr1, signal.SIGUSR2: typed.launch.on_usr2}
    with Signals(typed.launch.grace + _SLACK, users) as signals:
        prepared = prepare(typed, resolved, placement, base, tuple(argv or sys.argv), quiet=quiet)
        write(f"run: {prepared.paths.root}")
        return client.run(prepared, signals, "none" if quiet else ranks)


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
