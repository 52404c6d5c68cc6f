"""Background hookimpls: each plugin instance has one thread, fed by a bounded queue.

A slow or stuck observer delays nobody: not training, not another observer, and the end of the
run only up to one deadline that all queues share.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Job = Callable[[], None]


def snapshot(value: Any) -> Any:
    """A copy that later changes by the training thread cannot reach: mappings and lists are copied."""
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value


class Background:
    """The thread and queue of one plugin instance.

    `size` bounds the queue. When it is full, `"drop"` forgets the oldest job and counts it in
    `dropped`; `"block"` makes the caller wait for room.
    """

    def __init__(self, name: str, size: int, when_full: Literal["drop", "block"]) -> None:
        self.name = name
        self.dropped = 0
        self._size = size
        self._block = when_full == "block"
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._busy = False
        self._thread: threading.Thread | None = None

    def put(self, job: Job) -> None:
        """Queue one call, in order. Jobs put after `close` are refused and counted as dropped."""
        with self._changed:
            while self._block and len(self._jobs) >= self._size and not self._closing:
                self._changed.wait()
            if self._closing:
                self.dropped += 1
                return
            if len(self._jobs) >= self._size:
                self._jobs.popleft()
                self.dropped += 1
            self._jobs.append(job)
            self._start()
            self._changed.notify_all()

    def close(self) -> None:
        """Take no further jobs; those in the queue still run."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def left(self, deadline: float) -> int:
        """Wait until the queue is empty or `deadline` (`time.monotonic`) is past; answer how many jobs did not end."""
        with self._changed:
            while (self._jobs or self._busy) and (wait := deadline - time.monotonic()) > 0:
                self._changed.wait(wait)
            return len(self._jobs) + self._busy

    def _start(self) -> None:
        if self._thread is None:
            # A daemon, so that a hanging observer cannot hold up the end of the process.
            self._thread = threading.Thread(target=self._work, name=f"background {self.name}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._jobs:
                    if self._closing:
                        return
                    self._changed.wait()
                job = self._jobs.popleft()
                self._busy = True
            job()


def drain(queues: Sequence[Background], seconds: float) -> dict[str, int]:
    """Close all queues and wait for them together, at most `seconds`; answer name → lost jobs, where any were."""
    for queue in queues:
        queue.close()
    deadline = time.monotonic() + seconds
    lost = {queue.name: queue.left(deadline) + queue.dropped for queue in queues}
    return {name: count for name, count in lost.items() if count}
