"""The folder of multiprocessing's sockets: the path of a socket has at most 107 bytes, that of a file 4095."""

from __future__ import annotations

import tempfile
from multiprocessing import process, util
from pathlib import Path

from trainrun.rundir import scratch


def make_room() -> Path | None:
    """Give multiprocessing another folder if paths are too long for sockets.

    That is the case if the folder of temporary files has too long a path. The fork server, processes that load data,
    and those that a task starts have the folder from their parent. Call this before the first of them is started.
    Returns the folder if one was made: a process that leaves without Python's own end has to remove it. Raises
    EnvironmentProblem if there is no other folder. Python 3.14 does the same.
    """
    if _config().get("tempdir") is not None or (short := elsewhere()) is None:
        return None
    before, tempfile.tempdir = tempfile.tempdir, short
    try:
        return Path(util.get_temp_dir())  # from here on that of this process and its children
    finally:
        tempfile.tempdir = before


def elsewhere() -> str | None:
    """Return the folder in which sockets are made instead of TMPDIR.

    None if TMPDIR is short enough for them.
    """
    folder = scratch.short(len("pymp-xxxxxxxx"))  # multiprocessing makes a folder of its own in it
    return None if folder == tempfile.gettempdir() else folder


def _config() -> dict[str, str | None]:
    found: dict[str, str | None] = process.current_process()._config  # type: ignore[attr-defined]
    return found
