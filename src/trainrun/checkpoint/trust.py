"""Whether another user could have written a checkpoint."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from trainrun.checkpoint.contents import tree

_KINDS = ((stat.S_IWGRP, stat.S_IXGRP, "its group"), (stat.S_IWOTH, stat.S_IXOTH, "everybody"))


def distrust(folder: Path) -> list[str]:
    """Explain why other users may have written what is in `folder`.

    Others are all but this user and root. The list is empty if they cannot have. Judged by owners and modes. A file
    that others may write to does not count in a folder that they cannot enter.
    """
    try:
        top = folder.stat()
        there = tree(folder)
    except OSError as error:
        return [f"it cannot be listed: {error.strerror or error}"]
    return [
        *_reasons("it", top, top),
        *(text for name, found in there.items() for text in _reasons(f"{name!r}", found, top)),
    ]


def _reasons(what: str, found: os.stat_result, top: os.stat_result) -> Iterator[str]:
    if found.st_uid not in {os.geteuid(), 0}:
        yield f"{what} belongs to user {found.st_uid}, not to {os.geteuid()}"
    if stat.S_ISLNK(found.st_mode):  # its mode means nothing, and `verify` refuses it
        return
    for write, enter, who in _KINDS:
        if found.st_mode & write and top.st_mode & enter:
            yield f"{what} can be written to by {who}"
