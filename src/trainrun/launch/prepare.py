"""Making the run directory of a launch, with everything that is known before the first worker starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from trainrun.launch import snapshot
from trainrun.launch.handle import Launch
from trainrun.launch.hooks import waiting
from trainrun.launch.manifest import write_command, write_manifest
from trainrun.launch.preflight import Placement
from trainrun.plugin.dispatch import Dispatcher
from trainrun.plugin.resolve import Resolved
from trainrun.recipe import Recipe
from trainrun.rundir.create import create
from trainrun.rundir.files import write_atomic
from trainrun.rundir.paths import former


def prepare(
    recipe: Recipe,
    resolved: Resolved,
    placement: Placement,
    base: Path,
    argv: tuple[str, ...],
    switches: tuple[str, ...] = (),
    *,
    quiet: bool,
) -> Launch:
    """Create the run directory and write recipe and manifest into it. switches: those of `-p`."""
    own = environment(resolved, placement)
    paths = create(base, recipe.run.name)
    launch = Launch(recipe, paths, argv, resolved, placement.workers, own, quiet=quiet, switches=switches)
    write_command(launch)
    write_manifest(launch)
    return launch


def prepare_again(launch: Launch) -> None:
    """Replace recipe and manifest of a run that is resumed.

    The former ones are kept. The outcome is moved aside last: from then on the run has not ended.
    """
    paths = launch.paths
    for path in (paths.recipe, paths.manifest):
        kept = former(path, launch.attempt)
        if not kept.exists():
            write_atomic(kept, path.read_bytes())
    write_manifest(launch)
    for path in (paths.source, paths.outcome):
        _move_aside(path, launch.attempt)


def _move_aside(path: Path, attempt: int) -> None:
    kept = former(path, attempt)
    if not path.exists():
        return
    if path.is_dir():
        shutil.rmtree(kept, ignore_errors=True)  # of a launch that ended before it made an attempt
    path.replace(kept)


def environment(resolved: Resolved, placement: Placement) -> dict[str, str]:
    """Return what workers get beyond the environment of the launching process."""
    return {**placement.environment, **resolved.secrets}


def package(launch: Launch, hooks: Dispatcher) -> None:
    """Take the snapshot of the task's code, between its two hooks."""
    if hooks.on_package_start:
        with waiting(hooks, "on_package_start", quiet=launch.quiet):
            hooks.on_package_start(launch)
    launch.paths.source.mkdir(mode=0o700)
    snapshot.take(launch.resolved, launch.paths.source)
    if hooks.on_package_end:
        with waiting(hooks, "on_package_end", quiet=launch.quiet):
            hooks.on_package_end(launch, str(launch.paths.source))
