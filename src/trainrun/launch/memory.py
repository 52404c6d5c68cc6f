"""Whether the kernel killed somebody for want of memory, as far as this process's cgroup can tell."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def kills(proc: Path = _PROC, root: Path = _ROOT) -> int:
    """How many processes of this cgroup the kernel has killed for memory so far; 0 where it does not say."""
    try:
        own = next(line.partition("::")[2] for line in proc.read_text().splitlines() if line.startswith("0::"))
        events = (root / own.strip().lstrip("/") / "memory.events").read_text()
    except (OSError, StopIteration):
        return 0
    counts = dict(line.split() for line in events.splitlines() if len(line.split()) == 2)
    return int(counts.get("oom_kill", 0))
