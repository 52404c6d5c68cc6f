"""Ending what a launch left behind that was itself killed: only processes that are certainly its own."""

from __future__ import annotations

from pathlib import Path

from trainrun.launch.ends import read_records
from trainrun.rundir import process, scratch
from trainrun.rundir.create import run_ids
from trainrun.rundir.files import read_json
from trainrun.rundir.lease import recorded
from trainrun.rundir.ownership import strangers
from trainrun.rundir.paths import RunPaths

_WORKERS = 4096


def clear(base: Path) -> list[str]:
    """End the processes of every run in `base` whose client died.

    Returns the ids of runs that had some. What any killed launch has left in the temporary folder and in shared memory
    is removed with them.
    """
    found = [run_id for run_id in run_ids(base) if _clear_run(RunPaths((base / run_id).resolve()))]
    scratch.sweep()
    return found


def _clear_run(paths: RunPaths) -> bool:
    if strangers(paths.root):  # its records could name any process
        return False
    owner = recorded(paths)
    if owner is None or not owner.is_local or owner.is_alive:
        return False
    left = process.members(paths.root)
    if not left:
        return False
    for attempt in paths.attempts.iterdir():
        if attempt.name.isdigit():
            _kill_recorded(paths, int(attempt.name))
    process.clear(paths.root)
    return True


def _kill_recorded(paths: RunPaths, attempt: int) -> None:
    manifest = read_json(paths.manifest) or {}
    for record in read_records(paths, attempt, range(min(_WORKERS, int(manifest.get("workers", 1))))).values():
        process.kill_group(record)
