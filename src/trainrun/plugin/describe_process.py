"""The process that imports plugins in order to describe them: `python -m trainrun.plugin.describe_process FD`.

It reads one JSON request from stdin and writes JSON lines to FD: for each job its index when it begins, and the index
with the description when it ends. If this process dies or hangs, the last line shows its parent at which job.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from trainrun.plugin import import_errors
from trainrun.plugin.description import Description
from trainrun.plugin.inspecting import describe_object, options_of, own_files
from trainrun.plugin.targets import load, see_working_folder

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Do the jobs of the request, one after another."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = int(sys.argv[1])
    os.set_inheritable(channel, False)  # what a plugin starts must not keep the parent waiting
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    see_working_folder()
    with os.fdopen(channel, "w", encoding="utf-8") as out:
        for index, job in enumerate(request["jobs"]):
            _send(out, {"begin": index})
            _send(out, {"done": index, "answer": _JOBS[job["do"]](job)})
    os._exit(0)  # threads and exit handlers of plugins have no say here


def _send(out: TextIO, line: Mapping[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _describe(job: Mapping[str, Any]) -> dict[str, Any]:
    target = job["target"]
    try:
        return describe_object(target, load(target)).to_json()
    except BaseException as error:
        return _failed(target, error).to_json()


def _failed(target: str, error: BaseException) -> Description:
    files = {*own_files(target), *import_errors.files_of(error)}
    return Description(
        target,
        ok=False,
        error=f"importing it failed: {import_errors.summary(error)}",
        traceback=import_errors.user_traceback(error),
        files=tuple(sorted(file for file in files if os.path.isfile(file))),  # noqa: PTH113 - str in, str out
    )


def _validate(job: Mapping[str, Any]) -> list[tuple[list[str | int], str]]:
    import pydantic_core  # noqa: PLC0415 - only plugins with validators of their own get here

    options = options_of(load(job["target"]))
    if options is None:
        return []
    try:
        options.from_table(job["options"])
    except pydantic_core.ValidationError as error:
        return [(list(one["loc"]), one["msg"]) for one in error.errors(include_url=False, include_context=False)]
    return []


_JOBS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {"describe": _describe, "validate": _validate}

if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
