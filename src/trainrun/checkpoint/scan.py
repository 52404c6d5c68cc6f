"""What checkpoints there are. The folder is the truth: no file that points to one is kept or trusted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trainrun.checkpoint.layout import is_aside, step_of
from trainrun.checkpoint.manifest import Manifest, read_manifest
from trainrun.checkpoint.verify import sizes_and_names
from trainrun.errors import BadCheckpoint


@dataclass(frozen=True)
class Found:
    """A published checkpoint. `problem` says why it is not good, as far as is known without reading its files."""

    path: Path
    step: int
    manifest: Manifest | None
    problem: str | None


def scan(checkpoints: Path) -> list[Found]:
    """Return the published checkpoints, the newest step first.

    Links, files and folders of other names are none. Cheap: manifests, names and sizes are compared, contents are not.
    A missing folder has none; raises `BadCheckpoint` if the folder cannot be listed.
    """
    steps = {step: checkpoints / name for name in _folders(checkpoints) if (step := step_of(name)) is not None}
    looks = [_look(steps[step], step) for step in sorted(steps, reverse=True)]
    # One that retention removed meanwhile is no bad one.
    return [found for found in looks if found.problem is None or os.path.lexists(found.path)]


def _folders(checkpoints: Path) -> list[str]:
    try:
        with os.scandir(checkpoints) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:  # not the same as none: a run must not start over because of it
        raise BadCheckpoint(f"{checkpoints}: it cannot be listed: {error.strerror or error}") from error


def _look(path: Path, step: int) -> Found:
    try:
        manifest = read_manifest(path)
    except BadCheckpoint as error:
        return Found(path, step, None, str(error).removeprefix(f"{path}: "))
    reasons = sizes_and_names(path, manifest)
    return Found(path, step, manifest, "; ".join(reasons) or None)


def put_aside(checkpoints: Path) -> list[Path]:
    """Return the checkpoints that were found damaged or are superseded, by name.

    Raises `BadCheckpoint` as `scan` does.
    """
    return sorted(checkpoints / name for name in _folders(checkpoints) if is_aside(name))
