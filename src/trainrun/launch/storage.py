"""The run directory's storage when it cannot be written to any more: full, read-only, or gone.

Workers and client then fail at their next write. The outcome must not depend on which write that is: it names the
directory, what is wrong with it, and the newest checkpoint.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import replace

from trainrun.errors import EnvironmentProblem, ExitCode
from trainrun.launch.committed import newest
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome

_FAILING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}
_REFUSED = {errno.EPERM, errno.EACCES}
_GONE = "it has been removed"
_PROBE = 64 * 1024  # bytes: more than a record, so that a disk counts as full before the last small file fits


def is_storage_error(error: BaseException) -> bool:
    """Return whether an error says that a disk fails or is full.

    The causes of the error count too. It may be any disk.
    """
    return any(isinstance(one, OSError) and one.errno in _FAILING for one in _chain(error))


def require(paths: RunPaths) -> None:
    """Raise EnvironmentProblem if the run directory is gone.

    Nothing in it would be seen any more.
    """
    if not paths.attempts.is_dir():
        raise EnvironmentProblem(f"{paths.root}: {_GONE}")


def problem(paths: RunPaths, error: BaseException | None = None) -> str | None:
    """Describe what is wrong with the storage of a run.

    Returns None if nothing is.

    error: what the client met, if it met one.
    """
    if not paths.attempts.is_dir():
        return _GONE
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _FAILING | _REFUSED and _is_of(paths, one):
            return os.strerror(one.errno or 0)
    return _probe(paths)


def explained(outcome: Outcome, paths: RunPaths) -> Outcome:
    """Return the outcome of an attempt.

    If storage is why it failed, returns that of a run without storage.
    """
    failure = outcome.first_failure
    if outcome.state != "failed" or failure is None:
        return outcome
    unrecorded = failure.kind in {"exit", "agent", "silent"} or failure.rank is None
    named = [text for text in map(os.strerror, _FAILING | _REFUSED) if text in failure.message]
    if not named and not unrecorded:
        return outcome
    found = problem(paths)
    if found is None and named and str(paths.root) in failure.message:  # what has failed has made room since
        found = named[0]
    return outcome if found is None else without_storage(outcome, paths, found)


def without_storage(outcome: Outcome, paths: RunPaths, found: str) -> Outcome:
    """Return the outcome of a run that ends because of its storage.

    No other attempt follows: it would meet the same.
    """
    checkpoint = newest(paths)
    saved = f"newest checkpoint: {checkpoint.path}" if checkpoint is not None else "there is no checkpoint to resume"
    code = ExitCode.RESUMABLE if checkpoint is not None else ExitCode.ENVIRONMENT
    then = "; free some space, then trainrun resume continues from there" if checkpoint is not None else ""
    reason = f"the run directory {paths.root} cannot be written any more: {found}; {saved}{then}"
    failure = outcome.first_failure and replace(outcome.first_failure, traceback=None)
    return replace(outcome, state="failed", exit_code=int(code), reason=reason, cause=None, first_failure=failure)


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_of(paths: RunPaths, error: OSError) -> bool:
    """Return whether the error concerns the run directory.

    It does if its path is in the directory. Without a path it does if the directory cannot be written to.
    """
    if error.filename is None:
        return _probe(paths) is not None
    return str(error.filename).startswith(str(paths.root))


def _probe(paths: RunPaths) -> str | None:
    """Try to write a file, and return why that fails."""
    path = paths.root / f".probe.{os.getpid()}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, bytes(_PROBE)) < _PROBE:
                return os.strerror(errno.ENOSPC)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            path.unlink()
    return None
