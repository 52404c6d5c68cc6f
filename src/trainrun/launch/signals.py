"""The client's signals. Handlers only take note; what follows happens in the supervising loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopNow(KeyboardInterrupt):
    """Raised in the main thread by the second Ctrl-C, or when the time for an orderly end is long over.

    It breaks into whatever a plugin is doing in the client; nothing is raised while shielded.
    """


class Signals:
    """Context manager: takes SIGINT, SIGTERM and SIGHUP, and gives them back at its end.

    The first asks for an orderly end, a Ctrl-C after any other for an end now. A repeated
    SIGTERM or SIGHUP asks for nothing more: schedulers send them in numbers. A signal that is ignored when the
    command starts, as under nohup, stays ignored.
    """

    def __init__(self, limit: float) -> None:
        self.first: signal.Signals | None = None
        self.now = False
        self.expired = False
        self._limit = limit
        self._shielded = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Within this block signals are noted and nothing is raised: for the work that must be done to its end."""
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= 1

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.first is None:
            self.first = signal.Signals(number)
            # The loop kills the workers when their time is over; the alarm is for a loop that a plugin holds up.
            signal.setitimer(signal.ITIMER_REAL, self._limit)
        elif number == signal.SIGINT:
            self._raise()

    def _expire(self, _: int, __: FrameType | None) -> None:
        self.expired = True
        self._raise()

    def _raise(self) -> None:
        self.now = True
        if not self._shielded:
            raise StopNow
