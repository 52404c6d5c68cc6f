"""Background hookimpls: each plugin instance has one thread, fed by a bounded queue.

A slow or stuck observer delays neither training nor another observer. It delays the end of the run only up to one
deadline that all queues share.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Job = Callable[[], None]


def snapshot(value: Any) -> Any:
    """Copy mappings, lists and tuples, also within one another.

    Changes to one copy reach no other.
    """
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list):
        return [snapshot(item) for item in value]
    if isinstance(value, tuple):
        items = [snapshot(item) for item in value]
        return type(value)._make(items) if hasattr(value, "_make") else tuple(items)
    return value


@dataclass(frozen=True)
class Lost:
    """How many calls of one plugin instance were not made or had not ended, by what kept them.

    dropped: their queue was full. late: they came after the end. unfinished: still waiting or running when the time
    for all queues was over; `running` is the hook that was running then.
    """

    dropped: int = 0
    late: int = 0
    unfinished: int = 0
    running: str | None = None

    @property
    def count(self) -> int:
        """Return how many were lost in all."""
        return self.dropped + self.late + self.unfinished

    def told(self, seconds: float) -> str:
        """Say what was lost, and why.

        seconds: the time that the queues had to end.
        """
        in_hook = f", {self.running} was running" if self.running else ""
        parts = [
            (self.dropped, "its queue was full"),
            (self.late, "they came after the end"),
            (self.unfinished, f"they had not ended after {seconds:g} s{in_hook}"),
        ]
        why = "; ".join(f"{count} because {reason}" for count, reason in parts if count)
        return f"{self.count} of its background calls were lost: {why}"


class Background:
    """The thread and queue of one plugin instance.

    `size` bounds the queue. When it is full, `"drop"` discards the oldest job and counts it, and `"block"` makes the
    caller wait for room. The thread survives every exception of a job: otherwise every later job would be lost, or its
    caller would wait forever.
    """

    def __init__(self, name: str, size: int, when_full: Literal["drop", "block"]) -> None:
        self.name = name
        self._dropped = 0
        self._late = 0
        self._size = size
        self._block = when_full == "block"
        self._jobs: deque[tuple[str, Job]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._running: str | None = None
        self._thread: threading.Thread | None = None

    def put(self, hook: str, job: Job) -> None:
        """Queue one call of `hook`, in order. Jobs put after `close` are refused and counted."""
        with self._changed:
            while self._block and len(self._jobs) >= self._size and not self._closing:
                self._changed.wait()
            if self._closing:
                self._late += 1
                return
            if len(self._jobs) >= self._size:
                self._jobs.popleft()
                self._dropped += 1
            self._jobs.append((hook, job))
            self._start()
            self._changed.notify_all()

    def close(self) -> None:
        """Take no further jobs; those in the queue still run."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def lost(self, deadline: float) -> Lost:
        """Wait until the queue is empty or `deadline` is past.

        Returns what was lost. `deadline` is a time of `time.monotonic`.
        """
        with self._changed:
            while (self._jobs or self._running) and (wait := deadline - time.monotonic()) > 0:
                self._changed.wait(wait)
            left = len(self._jobs) + (self._running is not None)
            return Lost(self._dropped, self._late, left, self._running)

    def _start(self) -> None:
        if self._thread is None:
            # A daemon, so that a hanging observer cannot hold up the end of the process.
            self._thread = threading.Thread(target=self._work, name=f"background {self.name}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.notify_all()
                while not self._jobs:
                    if self._closing:
                        return
                    self._changed.wait()
                self._running, job = self._jobs.popleft()
            try:
                job()
            except BaseException:  # jobs deal with what plugins raise; this is a failure to record that
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


def drain(queues: Sequence[Background], seconds: float) -> dict[str, Lost]:
    """Close all queues and wait for them together, at most `seconds`.

    Returns by name what was lost, if anything was.
    """
    for queue in queues:
        queue.close()
    deadline = time.monotonic() + seconds
    lost = {queue.name: queue.lost(deadline) for queue in queues}
    return {name: one for name, one in lost.items() if one.count}
