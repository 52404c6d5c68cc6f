"""Where a worker's output goes: into the pipe that is read beside it, or straight into its file where there is none."""

from __future__ import annotations

import os
import stat
import sys

import tomli

from trainrun.rundir import RunPaths

_MIB = 1024 * 1024
_LIMIT = 64  # MiB, where a recipe does not say


def redirect(paths: RunPaths, attempt: int, rank: int) -> None:
    """Put this rank's pipe over descriptors 1 and 2, so that also what libraries and children print is kept."""
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
    """How many bytes are kept of what a worker writes into one log, by the run's recipe."""
    table = tomli.loads(paths.recipe.read_text(encoding="utf-8")).get("launch", {})
    return int(table.get("output_limit", _LIMIT)) * _MIB


def _pipe(paths: RunPaths, attempt: int, rank: int) -> int | None:
    """The pipe, open for writing; None where there is none, or nobody who would ever read it."""
    try:
        descriptor = os.open(paths.output_pipe(attempt, rank), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    os.set_blocking(descriptor, True)
    return descriptor
