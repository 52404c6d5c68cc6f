"""The choice of the checkpoint to resume from, and putting aside those that must not be taken for one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from trainrun.checkpoint.commit import sync
from trainrun.checkpoint.finite import problems
from trainrun.checkpoint.layout import BAD, MANIFEST, SUPERSEDED, aside_name, is_aside, step_of
from trainrun.checkpoint.scan import put_aside, scan
from trainrun.errors import BadCheckpoint
from trainrun.rundir.create import is_run
from trainrun.rundir.paths import RunPaths

Rejected = tuple[Path, list[str]]


@dataclass(frozen=True)
class Choice:
    """The checkpoint to resume from, None if there is none, and the bad ones that were newer, under their new names."""

    path: Path | None
    rejected: list[Rejected]


def choose(checkpoints: Path) -> Choice:
    """Return the newest good checkpoint.

    Every file of it was read, and what it keeps is finite. Bad ones that are newer are renamed to `bad-…`.

    Raises `BadCheckpoint` with every reason if there are checkpoints and none is good. Those that were renamed earlier
    count too. Nothing is renamed then, and a run never starts over because its checkpoints were lost.
    """
    path, rejected = _newest_good(checkpoints)
    if path is not None:
        return Choice(path, [(_put_aside(bad, BAD), reasons) for bad, reasons in rejected])
    rejected += [(bad, ["it was found damaged earlier"]) for bad in put_aside(checkpoints) if is_aside(bad.name, BAD)]
    if rejected:
        raise _none_good(checkpoints, rejected)
    return Choice(None, [])


def named(path: Path) -> Path:
    """Return the checkpoint that a person means by `path`.

    It is a checkpoint, or a run's newest good one, or the newest good one in a folder. Nothing is renamed. Raises
    `BadCheckpoint` if there is none or it is not good.
    """
    folder = path.resolve()
    checkpoints = RunPaths(folder).checkpoints if is_run(folder) else folder
    if os.path.lexists(checkpoints / MANIFEST) or step_of(checkpoints.name) is not None:
        return _require_good(checkpoints)
    newest, rejected = _newest_good(checkpoints)
    if newest is not None:
        return newest
    if rejected:
        raise _none_good(checkpoints, rejected)
    what = "there is no checkpoint here" if folder.is_dir() else "there is no such folder"
    raise BadCheckpoint(f"{checkpoints}: {what}; name a checkpoint, or a run that has one")


def set_aside(checkpoints: Path, newer_than: int) -> list[Path]:
    """Rename every checkpoint of a step after `newer_than` to `superseded-…`.

    Returns the new paths.
    """
    return [_put_aside(found.path, SUPERSEDED) for found in scan(checkpoints) if found.step > newer_than]


def _newest_good(checkpoints: Path) -> tuple[Path | None, list[Rejected]]:
    rejected: list[Rejected] = []
    for found in scan(checkpoints):
        reasons = [found.problem] if found.problem else problems(found.path)
        if not reasons:
            return found.path, rejected
        rejected.append((found.path, reasons))
    return None, rejected


def _require_good(folder: Path) -> Path:
    if not folder.is_dir():
        raise BadCheckpoint(f"{folder}: there is no such checkpoint")
    if reasons := problems(folder):
        raise BadCheckpoint(f"{folder}: this checkpoint is not good: {'; '.join(reasons)}")
    return folder


def _put_aside(path: Path, kind: str) -> Path:
    numbered = (path.with_name(aside_name(kind, path.name, number)) for number in count(1))
    target = next(target for target in numbered if not os.path.lexists(target))
    try:
        path.rename(target)
        sync(target.parent)
    except OSError as error:
        raise BadCheckpoint(f"{path}: it cannot be renamed to {target.name}: {error.strerror or error}") from error
    return target


def _none_good(checkpoints: Path, rejected: Sequence[Rejected]) -> BadCheckpoint:
    lines = [f"    {path.name}: {'; '.join(reasons)}" for path, reasons in rejected]
    hint = "to start over, launch a new run or move them away"
    return BadCheckpoint("\n".join([f"{checkpoints}: none of the checkpoints is good; {hint}", *lines]))
