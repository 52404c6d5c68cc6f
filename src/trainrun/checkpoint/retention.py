"""Removing checkpoints that newer ones have made needless."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from trainrun.checkpoint.commit import reserve, sync
from trainrun.checkpoint.scan import scan
from trainrun.errors import BadCheckpoint

LEAST = 2  # good checkpoints that always stay: the newest may turn out to be damaged when it is needed


def prune(checkpoints: Path, keep: int, *, protect: Collection[Path] = ()) -> list[Path]:
    """Remove all but the newest `keep` good checkpoints; return the removed ones.

    At least two are kept. Those in `protect` stay too, and those that a symbolic link in the folder leads to; bad ones
    stay and do not count. Raises OSError, and `BadCheckpoint` if the folder cannot be listed.
    """
    protected = {path.resolve() for path in protect} | linked(checkpoints).keys()
    good = [found for found in scan(checkpoints) if found.problem is None]
    removed = []
    for found in reversed(good[max(keep, LEAST) :]):
        # Links are looked at again each time, and none is forgotten: another process may be moving one meanwhile.
        protected |= linked(checkpoints).keys()
        if found.path.resolve() in protected:
            continue
        # Renamed first, and that made durable: a half-removed folder must never have the name of a checkpoint.
        temp = reserve(checkpoints, found.step, 0)
        found.path.rename(temp)
        sync(checkpoints)
        shutil.rmtree(temp)
        removed.append(found.path)
    return removed


def linked(checkpoints: Path) -> dict[Path, list[str]]:
    """Return the names of the symbolic links in the folder, by checkpoint.

    The key is the resolved path of the checkpoint in it that they lead to. A missing folder has none. Raises
    `BadCheckpoint` if it cannot be listed.
    """
    found: dict[Path, list[str]] = {}
    try:
        with os.scandir(checkpoints) as entries:
            links = sorted(entry.name for entry in entries if entry.is_symlink())
    except FileNotFoundError:
        return found
    except OSError as error:
        raise BadCheckpoint(f"{checkpoints}: it cannot be listed: {error.strerror or error}") from error
    home = checkpoints.resolve()
    for name in links:
        target = Path(os.path.realpath(checkpoints / name))  # of a link that is gone by now: that link itself
        if target.parent == home and target.name not in links and target.is_dir():
            found.setdefault(target, []).append(name)
    return found
