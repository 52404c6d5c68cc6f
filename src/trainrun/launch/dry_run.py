"""What a launch would do, found out as `launch` does it and without its last step: nothing is created or started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from trainrun.launch.busy import Busy
from trainrun.launch.handle import GoingOn
from trainrun.launch.launch import going_on
from trainrun.launch.nodes.place import Place, find_place
from trainrun.launch.prepare import environment
from trainrun.launch.staging import Staged, stage
from trainrun.launch.terminal import Echo, silent
from trainrun.plugin.resolve import Resolved, resolve
from trainrun.rundir import secrets
from trainrun.rundir.secrets import REDACTED, SECRETS_VARIABLE


class Planned(NamedTuple):
    """A launch that is not made. `folder` is the run directory but for the words that are drawn for it.

    `differences`: what workers get that is not in this process's environment. `start`: the checkpoint that is named.
    """

    resolved: Resolved
    staged: Staged
    place: Place | None
    folder: Path
    differences: Mapping[str, str]
    start: Path | None


@secrets.session()
def plan(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    base: Path | None = None,
    wish: GoingOn,
    ranks: Echo = "zero",
    refresh: bool = False,
    nodes: tuple[int | None, str | None] = (None, None),
) -> Planned:
    """Return what `launch` would start.

    Raises what `launch` would raise before it starts something.

    nodes: --node-rank and --rdzv-endpoint.
    """
    with Busy() as busy:
        resolved = resolve(Path(recipe), overrides, plugins, refresh=refresh, tell=busy.importing)
    place = find_place(resolved.data, *nodes)
    staged = stage(resolved, silent, ranks)
    first = going_on(resolved, staged, wish).first
    run = staged.recipe.run
    folder = Path(run.dir if base is None else base) / f"{date.today().isoformat()}-{run.name}-…"
    return Planned(resolved, staged, place, folder, _differences(resolved, staged), first)


def _differences(resolved: Resolved, staged: Staged) -> dict[str, str]:
    own = environment(resolved, staged.placement)
    changed = {name: value for name, value in own.items() if os.environ.get(name) != value}
    return {name: REDACTED if name == SECRETS_VARIABLE else value for name, value in changed.items()}
