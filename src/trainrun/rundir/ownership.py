"""Whether a run directory is this user's own: only then does anything in it say what is executed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from trainrun.errors import EnvironmentProblem
from trainrun.rundir.paths import RunPaths

_KINDS = ((stat.S_IWGRP, stat.S_IXGRP, "its group"), (stat.S_IWOTH, stat.S_IXOTH, "everybody"))
_DEEP = frozenset({"attempts", "lease", "control", "trackers"})  # folders in which processes leave each other records
_LINKS = 40  # as many as the kernel follows
_SHOWN = 5


def require_own(paths: RunPaths, named: Path, doing: str) -> None:
    """Raise EnvironmentProblem if others own the run, or may write to it.

    Others are all but this user and root. Nothing is read: owners and modes are looked at.

    named: the path by which it was found.
    doing: what is refused.
    """
    reasons = strangers(paths.root, named)
    if not reasons:
        return
    user = os.geteuid()
    raise EnvironmentProblem(
        f"{paths.root}: another user may have made this run, and {doing} would do with your rights what its files say: "
        f"{'; '.join(reasons[:_SHOWN])}. If it is yours: chown -R {user} and chmod -R go-w. To train on from its "
        "weights, launch a recipe of your own with -o checkpoint.resume=CHECKPOINT --trust-checkpoint"
    )


def strangers(root: Path, named: Path | None = None) -> list[str]:
    """Return why others may have written what is in the run directory.

    Returns nothing if they cannot have. Checkpoints are left out: `trainrun.checkpoint.distrust` is for them. Something
    that others may write to does not count in a folder that they cannot enter.
    """
    try:
        top = root.lstat()
        reasons = [*_links(named or root), *_reasons("it", top, top)]
        for name, found in _entries(root, ""):
            reasons += _reasons(repr(name), found, top)
    except OSError as error:
        return [f"it cannot be listed: {error.strerror or error}"]
    return reasons


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            found = entry.stat(follow_symlinks=False)
            yield prefix + entry.name, found
            if stat.S_ISDIR(found.st_mode) and (prefix or entry.name in _DEEP):
                yield from _entries(folder / entry.name, f"{prefix}{entry.name}/")


def _reasons(what: str, found: os.stat_result, top: os.stat_result) -> Iterator[str]:
    if found.st_uid not in {os.geteuid(), 0}:
        yield f"{what} belongs to user {found.st_uid}, not to {os.geteuid()}"
    if stat.S_ISLNK(found.st_mode):  # its mode means nothing
        return
    for write, enter, who in _KINDS:
        if found.st_mode & write and top.st_mode & enter:
            yield f"{what} can be written to by {who}"


def _links(path: Path) -> Iterator[str]:
    """Yield the links on the way that another user may have made.

    They are symbolic links, as in /tmp.
    """
    place, left, followed = Path("/"), list(reversed(path.absolute().parts[1:])), 0
    while left:
        place = Path(os.path.normpath(place / left.pop()))
        found = place.lstat()
        if not stat.S_ISLNK(found.st_mode):
            continue
        if found.st_uid not in {os.geteuid(), 0}:
            yield f"the link {place} on the way to it belongs to user {found.st_uid}, not to {os.geteuid()}"
        followed += 1
        if followed > _LINKS:
            yield f"{path} leads through too many links"
            return
        target = Path(os.readlink(place))  # noqa: PTH115 - a text, to be taken apart
        left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        place = Path("/") if target.is_absolute() else place.parent
