"""Requests of other processes to the client that owns a run: files in the folder `control` of the run directory.

A request is written under another name and renamed into place, so half of one is never read. Any other thing that lies
there under its name is removed and reported once with the event `request_refused`. It changes nothing about the run.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from trainrun.errors import EnvironmentProblem
from trainrun.rundir import untrusted
from trainrun.rundir.files import append_line, write_json
from trainrun.rundir.paths import RunPaths

REASON = 1000  # characters of a reason that are kept


class StopRequest(NamedTuple):
    """A request to end the run: after this step, or `now`.

    `by` names the user, as user@host.
    """

    now: bool
    reason: str
    by: str


def write_stop(paths: RunPaths, *, now: bool, reason: str) -> StopRequest:
    """Ask the client that owns the run to end it.

    A request that has not been taken yet is replaced.
    """
    request = StopRequest(now, reason[:REASON], f"{_user()}@{socket.gethostname()}")
    try:
        paths.control.mkdir(mode=0o700, exist_ok=True)
        write_json(paths.stop_request, {"version": 1, "time": time.time(), **request._asdict()})
    except OSError as error:
        raise EnvironmentProblem(f"{paths.stop_request}: cannot be written: {error.strerror or error}") from error
    return request


def take_stop(paths: RunPaths) -> StopRequest | None:
    """Return the request to stop, once.

    Returns None if there is none or it was refused.

    Never blocks and never raises.
    """
    path = paths.stop_request
    try:
        path.lstat()
        # Taken first and read then: what is written meanwhile waits for the next call.
        taken = path.with_name(f".taken-{time.monotonic_ns()}")
        path.rename(taken)
    except OSError:
        return None
    try:
        return _parse(untrusted.read(taken)[0])
    except (untrusted.Refused, OSError) as refused:
        _answer(paths, str(refused))
        return None
    finally:
        _remove(taken)


def _parse(data: bytes) -> StopRequest:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise untrusted.Refused("it is no JSON") from error
    if not isinstance(value, dict):
        raise untrusted.Refused("it is no JSON object")
    return StopRequest(_get(value, "now", False), *(_line(_get(value, name, "")) for name in ("reason", "by")))


def _get(value: dict[str, Any], name: str, default: Any) -> Any:
    found = value.get(name, default)
    if not isinstance(found, type(default)):
        raise untrusted.Refused(f"{name!r} must be {type(default).__name__}, got {type(found).__name__}")
    return found


def _line(text: str) -> str:
    """Return one line that can be shown anywhere."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text[:REASON]).split())


def _answer(paths: RunPaths, reason: str) -> None:
    event = {"event": "request_refused", "time": time.time(), "file": str(paths.stop_request), "reason": reason}
    with suppress(OSError):
        append_line(paths.events, event)


def _remove(taken: Path) -> None:
    # A folder that is not empty stays, under a name that is never looked at.
    with suppress(OSError):
        taken.rmdir() if taken.is_dir() and not taken.is_symlink() else taken.unlink()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user that the machine has no name for, as in containers
        return str(os.geteuid())
