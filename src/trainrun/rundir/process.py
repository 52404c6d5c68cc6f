"""Identify processes for certain, and end them. A pid alone is never trusted: the kernel reuses them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

RUN_DIR_VARIABLE = "TRAINRUN_RUN_DIR"
RUN_ID_VARIABLE = "TRAINRUN_RUN_ID"
NODE_VARIABLE = "TRAINRUN_NODE"  # two nodes of a run may be on one machine
PRELOAD_VARIABLE = "TRAINRUN_PRELOAD"  # what a warm agent's fork server imports beyond torch: {"modules", "path"}

# Has a worker look at its requests. A signal of its own: SIGTERM without a request means to stop, and schedulers send
# SIGUSR1 and SIGUSR2 to every process of a job.
REQUEST_SIGNAL = signal.SIGRTMIN + 8

_PROC = Path("/proc")
_GONE = 10.0  # seconds to wait for killed processes to be gone
_PACE = 0.01
_STARTING = 5  # looks at a process that shows no environment yet, or has none
_BRIEFLY = 0.001
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of the kernel's sched.h, among the flags in /proc/PID/stat

# How trainrun's own processes start Python. -P: a file of the working folder that is called as a module of the standard
# library, such as types.py, must not be imported in its place. What they start inherits it by multiprocessing.
PYTHON = (sys.executable, "-P")


class Recorded(Protocol):
    """What must have been recorded of a process to end its group later."""

    @property
    def pid(self) -> int: ...
    @property
    def pgid(self) -> int: ...
    @property
    def start_time(self) -> int: ...


def start_time(pid: int) -> int | None:
    """Return when `pid` started, in clock ticks since boot.

    Returns None if there is no such process.
    """
    stat = _stat(pid)
    return None if stat is None else int(stat[19])


def alive(pid: int, started: int) -> bool:
    """Return whether the process `pid` that started at `started` still runs.

    A zombie does not.
    """
    stat = _stat(pid)
    return stat is not None and int(stat[19]) == started and stat[0] not in {"Z", "X"}


def stopped(pid: int) -> bool:
    """Return whether the process is stopped, by SIGSTOP or by a debugger."""
    stat = _stat(pid)
    return stat is not None and stat[0] in {"T", "t"}


def running(pid: int) -> bool:
    """Return whether any process `pid` runs. A zombie does not."""
    stat = _stat(pid)
    return stat is not None and stat[0] not in {"Z", "X"}


def exit_code(pid: int, started: int) -> int | None:
    """Return how a process ended that is dead but not yet reaped.

    That is its exit code, or minus the signal's number. Returns None once its parent has reaped it.
    """
    stat = _stat(pid)
    if stat is None or int(stat[19]) != started or stat[0] not in {"Z", "X"} or len(stat) < 50:
        return None
    return os.waitstatus_to_exitcode(int(stat[49]))


def boot_id() -> str:
    """Return an id that changes with each boot of this machine.

    Start times compare only within one.
    """
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def send(record: Recorded, number: int) -> bool:
    """Send a signal to the recorded process only, not to its group.

    Returns False if it is gone.
    """
    if not alive(record.pid, record.start_time):
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(record.pid, number)
        return True
    return False


def kill_group(record: Recorded) -> None:
    """Send SIGKILL to the recorded process group.

    It is sent even if its leader is dead and children are left. The kernel does not hand out a pid that still names a
    process group, so a group whose leader is gone is the recorded one. A leader with another start time means that the
    number was reused.
    """
    now = start_time(record.pid)
    if now is not None and now != record.start_time:
        return
    if record.pgid == os.getpgrp() or record.pgid <= 1:
        return
    if now is None and not any(_group(pid) == record.pgid for pid in _pids()):
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(record.pgid, signal.SIGKILL)


def members(run_dir: Path, spared: int | None = None, node: int | None = None) -> list[int]:
    """Return every process that carries the run directory in its environment.

    Finds what no record names: a child that made a session of its own, a worker that died before its first record, the
    loader processes of either. This process is left out.

    spared: a session that is left out too.
    node: only those of this node of the run.
    """
    carried = {*map(os.fsencode, marks(run_dir, node))}
    found = [pid for pid in _pids() if pid != os.getpid() and carried <= {*_environment(pid)} and running(pid)]
    return found if spared is None else [pid for pid in found if _session(pid) != spared]


def marks(run_dir: Path, node: int | None = None) -> list[str]:
    """Return what members carry in their environment, each as NAME=VALUE."""
    run = f"{RUN_DIR_VARIABLE}={run_dir}"
    return [run] if node is None else [run, f"{NODE_VARIABLE}={node}"]


def sweep(run_dir: Path, spared: int | None = None, node: int | None = None) -> list[int]:
    """Send SIGKILL to every member of the run.

    Returns the pids that were found.

    spared, node: as for `members`.
    """
    found = members(run_dir, spared, node)
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return found


def clear(run_dir: Path, spared: int | None = None, node: int | None = None) -> None:
    """Sweep until all members of the run are gone.

    Takes ten seconds at most. A killed process still has to end.
    """
    deadline = time.monotonic() + _GONE
    while sweep(run_dir, spared, node) and time.monotonic() < deadline:
        time.sleep(_PACE)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str] | None:
    # The command's name is in parentheses and may hold anything; fields are counted from after it.
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    rest = text.rpartition(")")[2].split()
    return rest if len(rest) > 19 else None


def _group(pid: int) -> int | None:
    stat = _stat(pid)
    return None if stat is None else int(stat[2])


def _session(pid: int) -> int | None:
    stat = _stat(pid)
    return None if stat is None else int(stat[3])


def _environment(pid: int) -> list[bytes]:
    """Return what a process has been started with.

    For a moment of its start the kernel shows nothing.
    """
    for _ in range(_STARTING):
        try:
            if found := (_PROC / str(pid) / "environ").read_bytes():
                return found.split(b"\0")
        except OSError:
            return []
        stat = _stat(pid)
        if stat is None or stat[0] in {"Z", "X"} or int(stat[6]) & _KERNEL_THREAD:
            return []
        time.sleep(_BRIEFLY)
    return []
