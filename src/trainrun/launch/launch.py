"""One launch from recipe to outcome. This is what `trainrun launch` and `trainrun.launch()` do."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun.launch import leftovers
from trainrun.launch.busy import Busy
from trainrun.launch.handle import GoingOn, Seat
from trainrun.launch.join import join
from trainrun.launch.nodes.match import software
from trainrun.launch.nodes.place import find_place
from trainrun.launch.prepare import prepare
from trainrun.launch.resuming import named_start, require_same, require_trust
from trainrun.launch.signals import SLACK, Signals
from trainrun.launch.staging import Staged, conduct, door, stage
from trainrun.launch.terminal import Echo, say, silent
from trainrun.plugin.resolve import Resolved, resolve
from trainrun.plugin.targets import target_of
from trainrun.rundir import secrets
from trainrun.rundir.records import Outcome

if TYPE_CHECKING:
    from trainrun.recipe.model import Recipe


@secrets.session()
def launch(  # noqa: PLR0913 - all keywords, and the one call that takes them
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    task: object = None,
    dir: str | Path | None = None,  # noqa: A002 - the recipe's own word
    allow_changes: bool = False,
    trust_checkpoint: bool = False,
    ranks: Echo = "zero",
    quiet: bool = False,
    refresh: bool = False,
    node_rank: int | None = None,
    rdzv_endpoint: str | None = None,
    argv: Sequence[str] | None = None,
) -> Outcome:
    """Train by a recipe, and return how it ended. `Outcome.run` is the run directory.

    recipe: the path of a recipe, or the recipe itself: a mapping of its tables, or a `Recipe`.
    task: a class or a module of hookimpls, in place of the recipe's `task.use`. Workers are processes of their own, so
        it must be in a file that they can import; one that was defined in a notebook's cell cannot be.
    overrides: as `-o`: ``["optimizer.lr=1e-3"]``.
    plugins: as `-p`: ``["learning-rate-monitor", "no:early-stopping"]``.
    dir: the folder in which the run's own folder is made, in place of the recipe's `run.dir`.
    allow_changes: resume from the checkpoint that `checkpoint.resume` names, though another training wrote it.
    trust_checkpoint: resume from that checkpoint though another user may have written it.
    ranks: whose output is shown: "zero", "all" or "none", or a list of ranks.
    quiet: show nothing at all.
    refresh: describe all plugins anew.
    node_rank: the number of this machine among the `launch.nodes` ones; each makes the same call, with a rank of its
        own from 0 on.
    rdzv_endpoint: ``"HOST:PORT"`` of node 0, to which the others connect.

    Raises a `TrainrunError` for every problem that is found before anything is started. What happens after that is in
    the outcome. Call it from the main thread, so that Ctrl-C reaches the workers.
    """
    write = silent if quiet else say
    if task is not None:
        overrides = (*overrides, f"task.use={json.dumps(target_of(task))}")
    if not isinstance(recipe, str | Path | Mapping):
        recipe = recipe.model_dump(exclude_unset=True, exclude_none=True)
    with Busy(quiet=quiet, plain=True) as busy:
        resolved = resolve(recipe, overrides, plugins, refresh=refresh, tell=busy.importing)
    place = find_place(resolved.data, node_rank, rdzv_endpoint)
    if place is not None and place.node > 0:
        return join(resolved, place, write, "none" if quiet else ranks)
    staged = stage(resolved, write, ranks, quiet=quiet)
    wish = going_on(resolved, staged, GoingOn(allow_changes=allow_changes, trust=trust_checkpoint))
    typed = staged.recipe
    base = Path(typed.run.dir if dir is None else dir)
    for run_id in leftovers.clear(base):
        write(f"note: ended processes that {run_id} had left behind")
    users = {signal.SIGUSR1: typed.launch.on_usr1, signal.SIGUSR2: typed.launch.on_usr2}
    with Signals(typed.launch.grace + SLACK, users) as signals, door(place, write) as hub:
        about = (tuple(argv or sys.argv), tuple(plugins))
        prepared = prepare(typed, resolved, staged.placement, base, *about, quiet=quiet)
        prepared = replace(prepared, going_on=wish)
        write(f"run: {prepared.paths.root}")
        if place is not None and hub is not None:
            hub.open(prepared.paths, software(resolved, prepared.workers))
            prepared = replace(prepared, seat=Seat(0, place.nodes, place.where.host), hub=hub)
        return conduct(staged.client, prepared, signals, "none" if quiet else ranks)


def going_on(resolved: Resolved, staged: Staged, wish: GoingOn) -> GoingOn:
    """Return the wish with the checkpoint that the recipe names.

    Raises a TrainrunError if it cannot be used.
    """
    start = named_start(staged.recipe.checkpoint.resume)
    if start is None:
        return wish
    require_trust(start, trust=wish.trust)
    require_same(resolved, staged.world, start, allow=wish.allow_changes)
    return wish._replace(first=start, fallback=start, reason="checkpoint.resume names it")
