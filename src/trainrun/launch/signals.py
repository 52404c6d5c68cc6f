"""The client's signals. Handlers only take note; what follows happens in the supervising loop."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Literal, NamedTuple, Self

from trainrun import interrupts
from trainrun.plugin.guard import Interrupt

SLACK = 15.0  # seconds beyond `launch.grace` after which a plugin that holds up the client is interrupted
_PACE = 0.05  # seconds until a signal is noticed while waiting
_AGAIN = 1.0  # seconds in which what was raised is on its way to who catches it, and is not raised once more
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Request = Literal["stop", "checkpoint"]
Action = Literal["checkpoint", "stop", "ignore"]


class StopNow(Interrupt):
    """Raised in the main thread by the second Ctrl-C, or long after the time to end.

    It interrupts any work of a plugin in the client. It is raised within `Signals.breakable` only.
    """


class Asked(NamedTuple):
    """What the workers are asked to do. source: the name of the signal or of the command that `origin` says."""

    request: Request
    source: str
    reason: str
    origin: Literal["signal", "command"] = "signal"


class Signals:
    """Context manager: takes SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2, and gives them back at its end.

    The first of the former three asks for an orderly end, a Ctrl-C after any other for an end now. A repeated
    SIGTERM or SIGHUP asks for nothing more: schedulers send them in numbers. A signal that is ignored when the
    command starts, as under nohup, stays ignored. Signals are noted; only within `breakable` one raises.

    limit: seconds after the first, in which an orderly end must come about. users: what SIGUSR1 and SIGUSR2 ask for.
    """

    def __init__(self, limit: float, users: Mapping[signal.Signals, Action] | None = None) -> None:
        self.first: signal.Signals | None = None
        self.now = False
        self.expired = False
        self._limit = limit
        self._users = dict(users or {})
        self._asked: deque[Asked] = deque()
        self._stop_asked = False
        self._shielded = 1
        self._raised = -_AGAIN  # when, on the monotonic clock
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        handler = interrupts.current()
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            for number in self._users:
                self._before[number] = signal.signal(number, self._handle)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._expire)
            for number in handler.take() if handler is not None else ():  # what came before this
                self._handle(number, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def stopping(self) -> bool:
        """Return whether a stop was requested, by a signal or otherwise.

        No other attempt is begun then.
        """
        return self._stop_asked

    def ask(self, asked: Asked) -> None:
        """Make a request that no signal made, as `trainrun stop` does."""
        if asked.request == "checkpoint":
            self._asked.append(asked)
        elif not self._stop_asked:
            self._stop_asked = True
            self._asked.append(asked)
            # The loop kills the workers when their time is over; the alarm is for a loop that a plugin holds up.
            if threading.current_thread() is threading.main_thread():
                signal.setitimer(signal.ITIMER_REAL, self._limit)

    def relay(self, request: Request, source: str, reason: str, *, now: bool) -> None:
        """Take up a signal that the client of another node got.

        It counts as if it had been sent to this one.
        """
        if request == "stop" and self.first is None:
            self.first = signal.Signals.__members__.get(source)
        self.ask(Asked(request, source, reason))
        self.now = self.now or now

    def asked(self) -> Asked | None:
        """Return the next request that the workers have not received."""
        return self._asked.popleft() if self._asked else None

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Let a second Ctrl-C raise `StopNow` within this block.

        It does not within `shield`. The code that catches it calls `caught`, so that the other ones of a burst do not
        interrupt what follows.
        """
        self._shielded -= 1
        try:
            yield
        finally:
            self._shielded += 1

    def caught(self) -> Literal["now", "grace"]:
        """Take note that `StopNow` was caught: nothing is raised any more.

        Returns its cause: a request, or the end of the time for an orderly end.
        """
        self._shielded += 1
        return "grace" if self.expired else "now"

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Note signals within this block and raise nothing.

        This is for the work that must be done to its end.
        """
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= 1

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the first request to stop."""
        deadline = time.monotonic() + seconds
        while not self.stopping and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _PACE))

    def _handle(self, value: int, _: FrameType | None) -> None:
        number = signal.Signals(value)
        action = self._users.get(number, "stop")
        if action == "checkpoint":
            self.ask(Asked("checkpoint", number.name, f"{number.name} received"))
        elif action == "stop" and self.first is None:
            self.first = number
            self.ask(Asked("stop", number.name, f"{number.name} received"))
        elif number == signal.SIGINT:
            self._raise()

    def _expire(self, _: int, __: FrameType | None) -> None:
        self.expired = True
        self._raise()

    def _raise(self) -> None:
        self.now = True
        moment = time.monotonic()
        if not self._shielded and moment - self._raised >= _AGAIN:
            self._raised = moment
            raise StopNow
