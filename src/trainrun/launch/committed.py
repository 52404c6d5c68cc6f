"""The resumable step of a run: its newest checkpoint, and the checkpoints from which its attempts started."""

from __future__ import annotations

import os
from pathlib import Path

from trainrun.checkpoint import Found, read_manifest, scan
from trainrun.errors import BadCheckpoint
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import last_attempt


def newest(paths: RunPaths) -> Found | None:
    """Return the run's newest checkpoint with no visible fault.

    Its files are not read.
    """
    try:
        return next((found for found in scan(paths.checkpoints) if found.problem is None), None)
    except BadCheckpoint:  # the folder cannot be listed: the code that chooses a checkpoint says so
        return None


def newest_step(paths: RunPaths) -> int:
    """Return the step of the newest checkpoint, 0 for none."""
    found = newest(paths)
    return found.step if found is not None else 0


def start_of(paths: RunPaths, attempt: int) -> Path | None:
    """Return the checkpoint that an attempt started from.

    None for step 0, or if nothing is known of it.
    """
    checkpoint = (read_json(paths.start(attempt)) or {}).get("checkpoint")
    return Path(checkpoint) if isinstance(checkpoint, str) else None


def foreign_start(paths: RunPaths) -> Path | None:
    """Return the other run's checkpoint that the run last started from.

    Returns None if it was not.
    """
    starts = (start_of(paths, attempt) for attempt in range(last_attempt(paths), 0, -1))
    return next((start for start in starts if start is not None and start.parent != paths.checkpoints), None)


def reached(paths: RunPaths, attempt: int) -> int | None:
    """Return the step from which the run can continue without losing more.

    None if it would start at step 0.
    """
    steps = [found.step] if (found := newest(paths)) is not None else []
    start = start_of(paths, attempt)
    if start is not None:
        try:
            steps.append(read_manifest(start).step)
        except BadCheckpoint:  # it has gone, or gone bad, since the attempt started from it
            return max(steps, default=None)
    return max(steps, default=None)


def short(paths: RunPaths, checkpoint: Path) -> str:
    """Return a checkpoint's path as it is shown.

    For one of the run's own it begins at the run's directory.
    """
    relative = os.path.relpath(checkpoint, paths.root)
    return str(checkpoint) if relative.startswith("..") else relative
