"""The process in which checks run, so that one that hangs or crashes does so here.

Reads a JSON line for each job on stdin: `{"target": "module:function", "settings": {…}}`. Writes JSON lines to the
descriptor that it is given: `doing` before a call that may not end, `made` for a folder to clear away. `finding` comes
for each result, and at last `done` or `error`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from trainrun.doctor.finding import Check, Context, Settings, reason
from trainrun.worker.parent import die_with_parent

Send = Callable[[dict[str, Any]], None]


def main() -> None:
    """Do the jobs that come, until stdin ends.

    The arguments are the descriptor to reply on and the parent's pid.
    """
    channel, parent = map(int, sys.argv[1:3])
    die_with_parent(parent)
    os.set_inheritable(channel, False)  # what a check starts must not keep the parent waiting
    with os.fdopen(channel, "w", encoding="utf-8") as out:

        def send(message: dict[str, Any]) -> None:
            out.write(json.dumps(message, default=str) + "\n")
            out.flush()

        for line in sys.stdin:
            examine(json.loads(line), send)


def examine(job: dict[str, Any], send: Send) -> None:
    """Run one check, and send all that it finds.

    The check's module is imported here, because that may fail too.
    """
    settings = Settings(**job["settings"])
    sys.path[:] = job.get("path") or sys.path
    context = Context(settings, lambda text: send({"doing": text}), lambda folder: send({"made": folder}))
    try:
        for finding in load(job["target"])(context):
            send({"finding": finding.to_json()})
    except (Exception, SystemExit) as error:  # the process door: a check that breaks is a finding too
        send({"error": reason(error)})
    else:
        send({"done": True})


def load(target: str) -> Check:
    """Return the function that `module:function` names."""
    module, _, name = target.partition(":")
    check: Check = getattr(importlib.import_module(module), name)
    return check
