"""What the system allows a run: descriptors, processes, processors, memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from trainrun.doctor.filesystem import size
from trainrun.doctor.finding import Context, Finding, Verdict
from trainrun.launch import cgroup
from trainrun.launch.limits import SHARED_MEMORY, shortages

_FEW_FILES = 1024
_FEW_PROCESSES = 512
_LITTLE_MEMORY = 1024**3  # bytes; torch alone takes half of that in each worker
_SMALL_FILE = 1024**3
_INFINIBAND = Path("/sys/class/infiniband")


def limits(context: Context) -> Iterator[Finding]:
    """Check the limits of this process, which workers inherit."""
    verdict = Verdict("limits")
    files, processes = _soft(resource.RLIMIT_NOFILE), _soft(resource.RLIMIT_NPROC)
    locked, largest = _soft(resource.RLIMIT_MEMLOCK), _soft(resource.RLIMIT_FSIZE)
    verdict.say(f"{_count(files)} open files, {_count(processes)} processes, {_bytes(locked)} locked memory")
    short = [one for one in shortages(context.settings.workers, 1) if str(SHARED_MEMORY) not in one.limit]
    for one in short:
        verdict.fail(f"{one.limit} is {one.value}, and {one.needed} needed", one.how)
    if not short and files is not None and files < _FEW_FILES:
        verdict.warn("that is few open files for loader processes", f"ulimit -n {_FEW_FILES * 16}")
    allowed = cgroup.limits().processes
    if min(_or_many(processes), _or_many(allowed)) < _FEW_PROCESSES:
        where = "" if processes is not None and processes < _FEW_PROCESSES else f" (the container allows {allowed})"
        verdict.warn(f"that is few processes and threads{where}", "ulimit -u, or the container's limit of pids")
    if locked is not None and locked < _SMALL_FILE and _INFINIBAND.is_dir():
        verdict.warn("InfiniBand needs locked memory", "ulimit -l unlimited")
    if largest is not None and largest < _SMALL_FILE:
        verdict.warn(f"files cannot be larger than {size(largest)}", "ulimit -f unlimited")
    yield verdict.finding(files=files, processes=processes, locked=locked, file_size=largest, pids=allowed)


def processors(context: Context) -> Iterator[Finding]:
    """Check the processors that workers may use.

    The container's share may be smaller.
    """
    verdict = Verdict("processors")
    present, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    share = cgroup.limits().processors
    verdict.say(f"{usable} of {present} can be used" if usable != present else str(present))
    if share is not None:
        verdict.say(f"the container's share is {share:g}")
    if share is not None and share < usable:
        what = "workers would start more threads than that"
        verdict.warn(what, f"set OMP_NUM_THREADS={max(1, int(share // context.settings.workers))}")
    yield verdict.finding(present=present, usable=usable, share=share)


def memory(_: Context) -> Iterator[Finding]:
    """Check the free memory, on the machine and in the container."""
    verdict = Verdict("memory")
    total, available = meminfo()
    found = cgroup.limits()
    left = available
    verdict.say(f"{size(available)} of {size(total)} available")
    if found.memory is not None and found.memory < total:
        left = min(left, found.memory - (found.memory_used or 0))
        verdict.say(f"the container may use {size(found.memory)}, of which {size(found.memory_used or 0)} is used")
    if left < _LITTLE_MEMORY:
        verdict.warn(
            "that is little: each worker needs about half a GiB and its model",
            "stop other processes, or request more memory",
        )
    yield verdict.finding(total_bytes=total, available_bytes=available, limit_bytes=found.memory)


def meminfo(table: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Return the bytes of memory in all, and available."""
    fields = dict(line.partition(":")[::2] for line in table.read_text().splitlines())
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, available


def _soft(kind: int) -> int | None:
    """Return the limit in force; None if there is none."""
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _count(value: int | None) -> str:
    return "unlimited" if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    return "unlimited" if value is None else size(value)


def _or_many(value: int | None) -> float:
    return float("inf") if value is None else value
