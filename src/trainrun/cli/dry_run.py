"""`trainrun launch --dry-run`: what would be started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainrun.cli import options
from trainrun.cli.hooks import plan_lines
from trainrun.rundir.secrets import scrub_all

if TYPE_CHECKING:
    from trainrun.launch.dry_run import Planned


def lines(planned: Planned) -> Iterator[str]:
    """Yield what is shown of a launch that is not made."""
    for note in planned.resolved.notes:
        yield f"note: {note}"
    launch, place = planned.staged.recipe.launch, planned.place
    workers = planned.staged.placement.workers
    count = f"{workers} worker{'s' * (workers != 1)}"
    node = f" on each of {place.nodes} nodes, this is node {place.node}" if place else ""
    device = planned.staged.recipe.train.device
    yield f"would start: {count}{node} (backend {launch.backend}, start {launch.start}, device {device})"
    yield f"run directory: {planned.folder}"
    if planned.start is not None:
        yield f"from checkpoint: {planned.start}"
    changed = " ".join(f"{name}={value}" for name, value in planned.differences.items())
    yield f"environment of the workers: {changed or 'as it is here'}"
    yield from plan_lines(planned.resolved)
    yield ""
    yield "dry run: nothing was created or started"


def document(planned: Planned) -> dict[str, Any]:
    """Return the same as plain JSON values."""
    recipe, place = planned.staged.recipe, planned.place
    found = {
        "version": options.JSON_VERSION,
        "ok": True,
        "dry_run": True,
        "run_dir": str(planned.folder),
        "workers": planned.staged.placement.workers,
        "nodes": recipe.launch.nodes,
        "node_rank": place.node if place else 0,
        "backend": recipe.launch.backend,
        "start": recipe.launch.start,
        "device": recipe.train.device,
        "environment": dict(planned.differences),
        "checkpoint": None if planned.start is None else str(planned.start),
        "instances": [instance.to_json() for instance in planned.resolved.instances],
        "hooks": [hook for hook in planned.resolved.plan.to_json() if hook["implementations"]],
        "notes": list(planned.resolved.notes),
    }
    scrubbed: dict[str, Any] = scrub_all(found)
    return scrubbed
