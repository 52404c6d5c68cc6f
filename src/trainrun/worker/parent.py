"""Dying with one's parent: the kernel ends this process when the one that started it is gone."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent thread ends.

    It sends SIGKILL. parent: the pid that the parent had, if it is known: it may have gone before the request was made.
    In a container that may be 1, which elsewhere means that the parent has gone. Linux only; elsewhere this does
    nothing, and the client's sweep has to find what is left.
    """
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 if parent is None else os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
