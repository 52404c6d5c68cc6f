"""What signals do to a command from its first instruction on, until a run takes them over.

Light, because nothing is handled while it is being imported.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_USERS = (signal.SIGUSR1, signal.SIGUSR2)  # what they ask for is in the recipe, which has not been read
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_AGAIN = 1.0  # seconds in which the end that was asked for is on its way: a burst of signals asks for one


class Interrupts:
    """The handler of a command's signals.

    Until `arm` a signal is noted only, because an interrupt does not get through each import: a class that is being
    made turns it into a RuntimeError. From `arm` on the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt.
    What becomes of that does not matter: `first` and `code` say what the command has to end with.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.users: list[signal.Signals] = []
        self._stopped = _TERMINATED
        self._armed = False
        self._noted_at = 0.0

    @property
    def pending(self) -> bool:
        """Whether a signal asks for the end of the command, and no run has taken it over."""
        return self._armed and self.first is not None

    @property
    def code(self) -> int:
        """The exit code that the signal asks for."""
        return _INTERRUPTED if self.first == signal.SIGINT else self._stopped

    def arm(self, stopped: int = _TERMINATED) -> None:
        """Raise KeyboardInterrupt for the signal that was noted, or for the next. stopped: the exit code of SIGTERM."""
        self._stopped, self._armed = stopped, True
        if self.first is not None:
            raise KeyboardInterrupt

    def take(self) -> list[signal.Signals]:
        """Return the signals that were noted, and forget them: a run acts upon them, and gives the exit code."""
        taken = [*self.users, *([self.first] if self.first is not None else [])]
        self.first, self.users, self._armed = None, [], False
        return taken

    def __call__(self, value: int, _: FrameType | None) -> None:
        number = signal.Signals(value)
        if number in _USERS:
            self.users.append(number)
        elif self.first is None:
            self.first, self._noted_at = number, time.monotonic()
            if self._armed:
                raise KeyboardInterrupt
        elif time.monotonic() - self._noted_at > _AGAIN and (number == signal.SIGINT or not self._armed):
            os._exit(self.code)  # whatever holds up the end, such as an import from a disk that does not respond


def install() -> Interrupts:
    """Handle the signals of this process, and return the handler. A signal that is ignored, as by nohup, stays so."""
    handler = Interrupts()
    for number in (*_STOPPING, *_USERS):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    return handler


def current() -> Interrupts | None:
    """Return the handler that `install` has put in place; None if the command line does not run in this process."""
    handlers = (signal.getsignal(number) for number in (*_STOPPING, *_USERS))
    return next((handler for handler in handlers if isinstance(handler, Interrupts)), None)


def ignore() -> None:
    """Let no signal change how the command ends: what is left to do takes no time."""
    for number in (*_STOPPING, *_USERS):
        if isinstance(signal.getsignal(number), Interrupts):
            signal.signal(number, signal.SIG_IGN)
