"""Resume a run in its own directory. This is what `trainrun resume` and `trainrun.resume()` do."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from trainrun import interrupts
from trainrun.checkpoint import folder_name, named, read_manifest, scan
from trainrun.errors import ExitCode, UsageError
from trainrun.launch import leftovers
from trainrun.launch.busy import Busy
from trainrun.launch.committed import foreign_start, newest, short
from trainrun.launch.frozen import read_frozen, read_run, switches
from trainrun.launch.handle import GoingOn, Launch, Seat
from trainrun.launch.join import join
from trainrun.launch.nodes.match import software
from trainrun.launch.nodes.place import find_place
from trainrun.launch.prepare import environment, prepare_again
from trainrun.launch.resuming import differences, pick, put_aside, require_trust
from trainrun.launch.signals import SLACK, Signals
from trainrun.launch.staging import Staged, conduct, door, stage
from trainrun.launch.terminal import Echo, Say, say, silent
from trainrun.plugin.resolve import Resolved, resolve_document
from trainrun.rundir import secrets
from trainrun.rundir.create import find_own
from trainrun.rundir.lease import Lease
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome
from trainrun.rundir.summary import last_attempt, read_outcome

_WORDS = {"auto", "never"}  # what `checkpoint.resume` may say besides a path


class _Asked(NamedTuple):
    """The requested start of a resume. start: a checkpoint's path, or a step of this run."""

    start: str | None
    sets_mode: bool
    allow_changes: bool
    trust: bool


@secrets.session()
def resume(  # noqa: PLR0913 - all keywords, and the one call that takes them
    run: str | Path = "latest",
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    dir: str | Path = "runs",  # noqa: A002 - as in launch
    start: str | Path | int | None = None,
    allow_changes: bool = False,
    trust_checkpoint: bool = False,
    ranks: Echo = "zero",
    quiet: bool = False,
    refresh: bool = False,
    node_rank: int | None = None,
    rdzv_endpoint: str | None = None,
    argv: Sequence[str] | None = None,
) -> Outcome:
    """Resume a run from its newest good checkpoint; return the outcome.

    The run continues in its own directory.

    run: an id, a part of one, a path, or "latest".
    overrides: as `-o`, on top of the recipe that the run was made with, secrets among them.
    plugins: as `-p`, on top of what the run was launched with.
    dir: the folder that holds the runs.
    start: another checkpoint to resume from: a step of this run, or a path. Newer ones are put aside, none is removed.
    allow_changes: resume although overrides or plugins change the training.
    trust_checkpoint: resume from the checkpoint `start` although another user may have written it. It does not make the
        run directory of another user one's own: what its recipe names would be executed.

    The others are those of `trainrun.launch`.

    A run that has made all its steps is left as it is. Raises a `TrainrunError` for every problem that is found before
    anything is started, for example if the run is still active.
    """
    write = silent if quiet else say
    paths = find_own(str(run), Path(dir), "resume")
    if (handler := interrupts.current()) is not None:
        handler.arm(ExitCode.TERMINATED if newest(paths) is None else ExitCode.RESUMABLE)
    document = read_frozen(paths, overrides)
    with Busy(quiet=quiet, plain=True) as busy:
        resolved = resolve_document(document, switches(paths, plugins), refresh=refresh, tell=busy.importing)
    place = find_place(resolved.data, node_rank, rdzv_endpoint)
    if place is not None and place.node > 0:
        return join(resolved, place, write, "none" if quiet else ranks)
    staged = stage(resolved, write, ranks, quiet=quiet)
    for run_id in leftovers.clear(paths.root.parent):
        write(f"note: ended processes that {run_id} had left behind")
    table = staged.recipe.launch
    users = {signal.SIGUSR1: table.on_usr1, signal.SIGUSR2: table.on_usr2}
    sets_mode = any("resume" in layer.data.get("checkpoint", {}) for layer in document.layers[1:])
    asked = _Asked(None if start is None else str(start), sets_mode, allow_changes, trust_checkpoint)
    with Signals(table.grace + SLACK, users) as signals, door(place, write) as hub:
        launch = _again(paths, staged, resolved, tuple(argv or sys.argv))
        launch = replace(launch, quiet=quiet, switches=tuple(switches(paths, plugins)))
        lease = Lease.acquire(paths)
        try:
            with signals.breakable():  # it reads whole checkpoints
                launch = replace(launch, going_on=_where(launch, asked, write))
            done = _finished(launch)
            if done is None:
                prepare_again(launch)
        except BaseException:
            lease.release()
            raise
        if done is not None:
            lease.release()
            return done
        write(f"run: {paths.root}")
        if place is not None and hub is not None:
            hub.open(paths, software(resolved, launch.workers))
            launch = replace(launch, seat=Seat(0, place.nodes, place.where.host), hub=hub)
        return conduct(staged.client, launch, signals, "none" if quiet else ranks, lease)


def _again(paths: RunPaths, staged: Staged, resolved: Resolved, argv: tuple[str, ...]) -> Launch:
    own = environment(resolved, staged.placement)
    attempt = last_attempt(paths)
    return Launch(staged.recipe, paths, argv, resolved, staged.placement.workers, own, attempt=attempt)


def _where(launch: Launch, asked: _Asked, write: Say) -> GoingOn:
    """Return the start of the first attempt.

    Raises a TrainrunError if it cannot start there, and changes nothing then.
    """
    paths, mode = launch.paths, launch.recipe.checkpoint.resume
    wish = GoingOn(since=launch.attempt + 1, allow_changes=asked.allow_changes, trust=asked.trust)
    wish = wish._replace(fallback=_fallback(launch))
    launch = replace(launch, going_on=wish)
    if asked.start is not None or (asked.sets_mode and mode not in _WORDS):
        start = _asked_for(paths, asked.start or mode)
        own = start.parent == paths.checkpoints
        require_trust(start, trust=asked.trust)
        _require_same(launch, start)
        put_aside(paths, read_manifest(start).step if own else -1, write)
        return wish._replace(first=start, fallback=wish.fallback if own else start, reason="--from", named=True)
    if mode == "never":
        if not asked.sets_mode:
            raise UsageError(
                f'{paths.root}: its recipe says checkpoint.resume = "never"; to resume: -o checkpoint.resume=auto; '
                "to start over at step 0: -o checkpoint.resume=never"
            )
        return wish
    found = pick(paths, write)
    if found is None and wish.fallback is not None:
        found = named(wish.fallback)
    if found is not None:
        require_trust(found, trust=asked.trust)
        _require_same(launch, found)
    return wish._replace(first=found, reason="the newest good checkpoint")


def _fallback(launch: Launch) -> Path | None:
    """Return the checkpoint of another run that this one starts from.

    That is the one from which it was started, or was to be.
    """
    mode = launch.recipe.checkpoint.resume
    if (start := foreign_start(launch.paths)) is not None or mode in _WORDS:
        return start
    return Path(str(read_run(launch.paths).get("directory") or "."), os.path.expanduser(mode))  # noqa: PTH111


def _asked_for(paths: RunPaths, start: str) -> Path:
    """Return the checkpoint that `--from` means.

    Raises BadCheckpoint if it is not good, and UsageError if there is none.
    """
    if not start.isdecimal():
        return named(Path(os.path.expanduser(start)))  # noqa: PTH111 - Path raises for a home that is not known
    path = paths.checkpoints / folder_name(int(start))
    if not path.exists():
        there = ", ".join(str(found.step) for found in scan(paths.checkpoints)) or "none"
        raise UsageError(f"--from {start}: {paths.run_id} has no checkpoint of this step; there are: {there}")
    return named(path)


def _require_same(launch: Launch, start: Path) -> None:
    differences(launch, start).require(start, allow=launch.going_on.allow_changes)


def _finished(launch: Launch) -> Outcome | None:
    """Return the outcome of a run that has nothing left to do.

    Returns None for any other run.
    """
    before, steps, start = read_outcome(launch.paths), launch.recipe.train.steps, launch.going_on.first
    if before is None or before.state != "finished" or steps is None or start is None:
        return None
    made = read_manifest(start).step
    if made < steps or launch.going_on.named:
        return None
    what = f"{steps}/{steps} steps ({short(launch.paths, start)}); there is nothing to do"
    return replace(before, reason=what, step=made, started=time.time(), ended=time.time())
