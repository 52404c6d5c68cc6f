"""Removing checkpoints that newer ones have made needless."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from trainrun.checkpoint.commit import reserve, sync
from trainrun.checkpoint.scan import scan

LEAST = 2  # good checkpoints that always stay: the newest may turn out to be damaged when it is needed


def prune(checkpoints: Path, keep: int, *, protect: Collection[Path] = ()) -> list[Path]:
    """Remove all but the newest `keep` good checkpoints, at least two, and answer with what was removed.

    Those in `protect` stay too; bad ones stay and do not count. Raises OSError, and `BadCheckpoint` where
    the folder cannot be listed.
    """
    protected = {path.resolve() for path in protect}
    good = [found for found in scan(checkpoints) if found.problem is None]
    surplus = [found for found in good[max(keep, LEAST) :] if found.path.resolve() not in protected]
    for found in reversed(surplus):
        # Renamed first, and that made durable: a half-removed folder must never have the name of a checkpoint.
        temp = reserve(checkpoints, found.step, 0)
        found.path.rename(temp)
        sync(checkpoints)
        shutil.rmtree(temp)
    return [found.path for found in reversed(surplus)]
