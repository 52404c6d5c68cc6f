"""Signals in a worker: a handler only takes note; the ranks then agree on the step at which they stop."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Whether this worker was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Handle SIGTERM and SIGINT in this process. Call it from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take_note)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
