"""What the fork server imports once for its runner and its workers: torch, trainrun's worker, the recipe's own list.

A process can be forked safely only while it has one thread and has not touched CUDA. That is looked at after each
module; what is wrong is kept for the workers, which can report it to the client.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch._dynamo
import torch.distributed.launcher.api

import trainrun.worker.main  # noqa: F401
from trainrun.builtin import BUILTINS
from trainrun.plugin.targets import see_working_folder
from trainrun.rundir.process import PRELOAD_VARIABLE

_WAY_OUT = 'take it out of launch.preload, or set launch.start = "cold"'


def threads() -> int:
    """Return how many threads this process has, those of libraries too."""
    return len(list(Path("/proc/self/task").iterdir()))


def unsafe() -> str | None:
    """Explain why this process must not be forked; None while it may."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "used CUDA, which a forked process cannot use again"
    if (running := threads()) > 1:
        return f"left {running - 1} threads running, which a forked process would not have"
    return None


def load(modules: Iterable[str]) -> str | None:
    """Import the modules in order; describe the first that is not fit.

    Returns None if all are fit.
    """
    for name in ("", *modules):
        try:
            if name:
                importlib.import_module(name)
        except (Exception, SystemExit) as error:  # the import of any module can raise
            return f"launch.preload: {name}: {type(error).__name__}: {error}"
        if (why := unsafe()) is not None:
            return f"launch.preload: {name or 'torch itself'} {why}; {_WAY_OUT}"
    return None


def _from_environment() -> str | None:
    asked = json.loads(os.environ.get(PRELOAD_VARIABLE, "{}"))
    sys.path[:0] = [folder for folder in asked.get("path", []) if folder not in sys.path]
    if asked.get("modules"):
        see_working_folder()
    built_in = [target.partition(":")[0] for _, target in BUILTINS]
    return load([*built_in, *asked.get("modules", [])])


# The server imports this module for its effect; its workers find the result here.
PROBLEM = _from_environment()
gc.freeze()
