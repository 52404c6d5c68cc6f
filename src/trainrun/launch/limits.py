"""What the system must allow so that the workers of a node can be started: open files, processes, shared memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trainrun.errors import EnvironmentProblem
from trainrun.launch import cgroup

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - by that name processes find it

# Measured with 2 and 4 CPU workers: the fork server and its runner hold up to 33 and 42 files, a run has 25 and
# 43 threads, and 2 workers need 9 semaphores of a page each. There is some room in each figure.
_FILES, _FILES_OF_WORKER = 32, 8
_THREADS, _THREADS_OF_WORKER = 16, 8
_SHARED_OF_WORKER = 64 * 1024
_PROC = Path("/proc")
_ABOVE_LIMITS = 1 << 21 | 1 << 24  # CAP_SYS_ADMIN and CAP_SYS_RESOURCE: a process that has one may fork without a limit


class Shortage(NamedTuple):
    """A limit that is too low. `how` says how to raise it."""

    limit: str
    value: str
    needed: str
    how: str

    def __str__(self) -> str:
        return f"{self.limit} is {self.value}, and {self.needed} needed; {self.how}"


def shortages(workers: int, threads: int) -> list[Shortage]:
    """Return the limits that are too low for these workers.

    threads: for computing, of each worker.
    """
    return [found for check in (_files, _processes, _shared) for found in check(workers, threads)]


def require(workers: int, threads: int) -> None:
    """Raise EnvironmentProblem if a limit is too low.

    The agent would die without a word that explains it.
    """
    if found := shortages(workers, threads):
        raise EnvironmentProblem("\n".join(f"{one} (for {_workers(workers)})" for one in found))


def _files(workers: int, _: int) -> Iterator[Shortage]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES + _FILES_OF_WORKER * workers
    if soft != resource.RLIM_INFINITY and soft < needed:
        above = hard != resource.RLIM_INFINITY and hard < needed
        whose = ", which its hard limit does not allow: ask the administrator" if above else ""
        yield Shortage("ulimit -n (open files)", str(soft), f"{needed} are", f"ulimit -n {max(needed, 1024)}{whose}")


def _processes(workers: int, threads: int) -> Iterator[Shortage]:
    needed = _THREADS + (_THREADS_OF_WORKER + threads) * workers
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and not _above_limits():
        used = sum(_threads(pid) for pid in _own_processes())
        if soft - used < needed:
            value = f"{soft}, of which {used} are used"
            yield Shortage(
                "ulimit -u (processes and threads of this user)",
                value,
                f"{used + needed} are",
                f"end some, or ulimit -u {used + needed}",
            )
    allowed = cgroup.limits()
    if allowed.processes is not None and allowed.processes < needed:
        how = "give the container more, as with docker run --pids-limit"
        yield Shortage(
            "the limit of processes of the control group (pids.max)", str(allowed.processes), f"{needed} are", how
        )


def _shared(workers: int, _: int) -> Iterator[Shortage]:
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return
    free, needed = found.f_bavail * found.f_frsize, _SHARED_OF_WORKER * (workers + 1)
    if found.f_blocks and free < needed:
        value = f"{free // 1024} KiB of {found.f_blocks * found.f_frsize // 1024} KiB"
        how = "remove what is left over there, or give the container more, as with docker run --shm-size=1g"
        yield Shortage(f"free space in {SHARED_MEMORY}", value, f"{needed // 1024} KiB are", how)


def _above_limits() -> bool:
    if os.getuid() == 0:  # exempt with any capabilities
        return True
    with suppress(OSError, StopIteration):
        lines = (_PROC / "self/status").read_text().splitlines()
        return bool(int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16) & _ABOVE_LIMITS)
    return False


def _own_processes() -> Iterator[int]:
    for entry in _PROC.iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                yield int(entry.name)


def _threads(pid: int) -> int:
    try:
        return len(list((_PROC / str(pid) / "task").iterdir()))
    except OSError:
        return 0


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
