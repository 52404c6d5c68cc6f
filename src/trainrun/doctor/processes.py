"""Can processes be watched and ended for certain here: what a launch needs so that nothing is left behind."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from trainrun.doctor.finding import Context, Finding, Verdict
from trainrun.rundir.process import start_time
from trainrun.worker.parent import die_with_parent

_WAIT = 5000  # milliseconds for the kernel to end a process with its parent
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


def check(context: Context) -> Iterator[Finding]:
    """Try what a launch does with processes.

    It ties one to its parent, waits for one by descriptor, and reads /proc.
    """
    verdict = Verdict("processes")
    context.doing("ending a process with its parent")
    tied, watched = dies_with_parent(), has_pidfd()
    if tied:
        verdict.say("children end with their parent")
    else:
        verdict.fail("children outlive their parent", "allow prctl(PR_SET_PDEATHSIG) in this container or sandbox")
    if watched:
        verdict.say("pidfd_open works")
    else:
        verdict.fail(
            "pidfd_open does not work", "use Linux 5.3 or newer, and allow the call in this container or sandbox"
        )
    if start_time(os.getpid()) is None:
        verdict.fail("/proc cannot be read", "mount it: mount -t proc proc /proc")
    traced = ptrace_note()
    if traced:
        verdict.say(traced)
    yield verdict.finding(dies_with_parent=tied, pidfd_open=watched)


def dies_with_parent() -> bool:
    """Return whether the kernel really kills a grandchild whose parent is killed.

    Only for a process with one thread.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_parent(reader, writer)
    os.close(writer)
    try:
        ready = os.read(reader, 1) == b"r"
        os.kill(child, signal.SIGKILL)
        # The grandchild holds the last writing end: the pipe ends when it does.
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        return ready and bool(poller.poll(_WAIT))
    finally:
        os.close(reader)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _be_the_parent(reader: int, writer: int) -> NoReturn:
    """Make the grandchild in the child, and wait to be killed."""
    os.close(reader)
    own = os.getpid()
    if os.fork() == 0:
        with suppress(BaseException):
            die_with_parent(own)
            os.write(writer, b"r")
            signal.alarm(2 * _WAIT // 1000)  # it must not stay if the kernel does not end it
            signal.pause()
        os._exit(0)
    os.close(writer)
    with suppress(BaseException):
        signal.pause()
    os._exit(0)


def has_pidfd() -> bool:
    """Return whether a process can be held by a descriptor."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return False
    return True


def ptrace_note(scope: Path = _SCOPE) -> str | None:
    """Explain whether another process can read the stacks of a hanging one.

    py-spy does so.
    """
    try:
        value = scope.read_text().strip()
    except OSError:
        return None
    return None if value == "0" else f"py-spy needs root here (ptrace_scope {value})"
