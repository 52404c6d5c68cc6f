"""Symbolic links that are moved on without a moment in which they are not there."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

LINK_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_RANKED = re.compile(r"-[0-9]+$")
_RESERVED = ("step-", "bad-step-", "superseded-step-")  # how checkpoints are called


def problem(name: str) -> str | None:
    """Return what is wrong with a link's name, besides its characters."""
    if name.startswith(_RESERVED):
        return f"link = {name!r} could be taken for a checkpoint; give it another name"
    if _RANKED.search(name):
        return f"link = {name!r} could be taken for a place in a ranking; let it end without a hyphen and a number"
    return None


def point(link: Path, target: str) -> bool:
    """Make `link` lead to `target`, relative to its folder.

    Returns whether it did not before. Raises OSError.
    """
    if link.is_symlink() and str(link.readlink()) == target:
        return False
    scratch = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
    scratch.symlink_to(target)
    try:
        scratch.replace(link)
    except BaseException:
        scratch.unlink()
        raise
    return True


def point_ranked(folder: Path, name: str, targets: Sequence[str], suffix: str = "") -> None:
    """Make `name`, `name-2`, `name-3` … lead to the targets.

    Those that are too many are removed. Raises OSError. From the last to the first: what moves down a place is never
    without a link, which is what keeps it.
    """
    names = [f"{name}{suffix}", *(f"{name}-{place}{suffix}" for place in range(2, len(targets) + 1))][: len(targets)]
    for one, target in reversed(list(zip(names, targets, strict=True))):
        point(folder / one, target)
    ranked = re.compile(rf"{re.escape(name)}(-[0-9]+)?{re.escape(suffix)}")
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.is_symlink() and ranked.fullmatch(path.name) and path.name not in names:
            path.unlink(missing_ok=True)
