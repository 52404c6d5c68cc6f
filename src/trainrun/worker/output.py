"""The destination of a worker's output: its pipe if there is one, otherwise its file.

Another process reads the pipe.
"""

from __future__ import annotations

import os
import stat
import sys

import tomli

from trainrun.rundir import RunPaths

_MIB = 1024 * 1024
_LIMIT = 64  # MiB, if a recipe does not say


def redirect(paths: RunPaths, attempt: int, rank: int) -> None:
    """Put this rank's pipe over descriptors 1 and 2.

    So the output of libraries and children is kept too.
    """
    descriptor = _pipe(paths, attempt, rank)
    if descriptor is None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(paths.rank_output(rank), flags, 0o600)
    # Text that is no text (a lone surrogate from a file's name) is printed escaped: it must not end a run. To be set
    # before the pipe is there: a stream that began as a file asks for its position here, which a pipe does not have.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def limit(paths: RunPaths) -> int:
    """Return how many bytes of a worker's output a log keeps.

    The run's recipe sets it.
    """
    table = tomli.loads(paths.recipe.read_text(encoding="utf-8")).get("launch", {})
    return int(table.get("output_limit", _LIMIT)) * _MIB


def _pipe(paths: RunPaths, attempt: int, rank: int) -> int | None:
    """Return the pipe, open for writing.

    None if it is missing or has no reader.
    """
    try:
        descriptor = os.open(paths.output_pipe(attempt, rank), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    os.set_blocking(descriptor, True)
    return descriptor
