"""Signals in a worker: a handler only takes note; the ranks then agree on the step at which they stop.

What a signal asks for may stand in a file: the client adds a line to the attempt's requests before it signals. SIGTERM
and SIGINT always ask for a stop; a line gives the origin of the request. `REQUEST_SIGNAL` means no more than its line.
"""

from __future__ import annotations

import os
import signal
import threading
from _signal import getsignal  # type: ignore[import-not-found]
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple

from trainrun.errors import ExitCode, TrainingError
from trainrun.recipe.model import LaunchTable, OnSignal
from trainrun.rundir.files import read_lines
from trainrun.rundir.process import REQUEST_SIGNAL

# `signal.getsignal` looks for a handler among the members of an enum first, which takes 5 µs; the function beneath it
# takes 20 ns, and all handlers are looked at in each step.

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_HANDLED = (*_STOPPING, signal.SIGUSR1, signal.SIGUSR2, REQUEST_SIGNAL)
_BEHIND = 1.0  # seconds after launch.grace: if there is a client, its own deadline comes first

UserSignals = Mapping[int, OnSignal]


class Terminated(TrainingError):
    """The worker was asked to stop, and could not come to the end of its step in time. Recorded, never raised."""

    exit_code = ExitCode.TERMINATED

    def __init__(self, message: str, instance: str | None, hook: str | None) -> None:
        super().__init__(message)
        self.instance = instance
        self.hook = hook


class Request(NamedTuple):
    """What is asked of the worker from outside. hook: how it came, as `trainrun why` shows it."""

    kind: Literal["stop", "checkpoint"]
    source: str
    hook: Literal["signal", "request"]
    reason: str
    origin: Literal["signal", "command"] = "signal"


def user_signals(table: LaunchTable) -> UserSignals:
    """Return what the recipe sets for SIGUSR1 and SIGUSR2."""
    return {signal.SIGUSR1: table.on_usr1, signal.SIGUSR2: table.on_usr2}


def stopping_signals(users: UserSignals) -> set[int]:
    """Return the signals that ask for a stop."""
    return {*_STOPPING, *(number for number, action in users.items() if action == "stop")}


class Inbox:
    """What this worker was asked from outside. `pending` is whether there may be something to `take`.

    requests: the attempt's requests; the file need not exist. users: what SIGUSR1 and SIGUSR2 ask for.
    """

    def __init__(self, requests: Path | None = None, users: UserSignals | None = None) -> None:
        self.pending = False
        self._requests = requests
        self._users = users or {}
        self._offset = 0
        self._stopped = False
        self._numbers: deque[int] = deque()
        self._handler = self._take_note  # one object, to be recognized again
        self._installed: tuple[int, ...] = ()
        self._replaced: set[int] = set()

    def install(self) -> None:
        """Handle in this process every signal that could ask for something.

        Call it from the main thread.
        """
        for number in _HANDLED:
            signal.signal(number, self._handler)
        self._installed = _HANDLED

    def take(self) -> list[Request]:
        """Return the requests since the last call. For the training thread."""
        self.pending = False
        numbers = [self._numbers.popleft() for _ in range(len(self._numbers))]
        found = [*self._lines()]
        self._stopped = self._stopped or any(request.kind == "stop" for request in found)
        for number in dict.fromkeys(numbers):
            action = "stop" if number in _STOPPING else self._users.get(number, "ignore")
            if action == "checkpoint" or (action == "stop" and not self._stopped):
                name = _name(number)
                found.append(Request(action, name, "signal", f"{name} received"))
        return found

    def put_back(self) -> Sequence[str]:
        """Install the handlers again that were replaced; return their signals' names.

        Each name is returned only once.
        """
        handler = self._handler
        for number in self._installed:
            if getsignal(number) is not handler:
                return self._install_again()
        return ()

    def _install_again(self) -> list[str]:
        lost = [number for number in self._installed if getsignal(number) is not self._handler]
        for number in lost:
            signal.signal(number, self._handler)
        new = [number for number in lost if number not in self._replaced]
        self._replaced.update(new)
        return [_name(number) for number in new]

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._numbers.append(number)
        self.pending = True

    def _lines(self) -> Iterator[Request]:
        if self._requests is None:
            return
        lines, self._offset = read_lines(self._requests, self._offset)
        for line in lines:
            kind, source, reason = line.get("request"), line.get("source"), line.get("reason", "")
            if kind in ("stop", "checkpoint") and isinstance(source, str) and isinstance(reason, str):
                origin: Literal["signal", "command"] = "command" if line.get("origin") == "command" else "signal"
                yield Request(kind, source, "request", reason, origin)


class Deadline:
    """Ends a worker that was asked to stop and does not, at any point of its main thread.

    A handler in Python runs only when the main thread is back in the interpreter, so never while it waits for a rank
    that is gone. But the byte that the interpreter writes for each signal is written at once, and a thread reads it.

    grace: seconds from the first of the signals `stopping` on. end: called when they are over; must end the process.
    """

    def __init__(self, grace: float, stopping: set[int], end: Callable[[], None]) -> None:
        self._grace = grace + _BEHIND
        self._stopping = stopping
        self._end = end
        self._over = threading.Event()
        self._reader, self._writer = os.pipe()

    def start(self) -> None:
        """Begin to watch.

        Call it from the main thread, and never before a fork that makes workers.
        """
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # A signal to a child, such as a process that loads data, must not count as one to this process.
        os.register_at_fork(after_in_child=_sleep_on)
        threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def cancel(self) -> None:
        """Stop watching: the worker is about to end by itself."""
        self._over.set()

    def _watch(self) -> None:
        while not self._stopping & set(os.read(self._reader, 4096)):
            pass
        if not self._over.wait(self._grace):
            self._end()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _sleep_on() -> None:
    with suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(-1)
