"""A thread that repeats a call after a number of seconds until its end is requested."""

from __future__ import annotations

import threading
from collections.abc import Callable

_ENDING = 5.0  # seconds


class Ticker:
    """Calls `tick` every `seconds` on a thread of its own. What it raises ends the thread, and is in `error`."""

    def __init__(self, name: str, seconds: float, tick: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._seconds = seconds
        self._tick = tick
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first call comes at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread.

        A call that is running is given a while; one that hangs ends with the process.
        """
        self._end.set()
        self._thread.join(timeout=_ENDING)

    def raise_error(self) -> None:
        """Raise what `tick` has raised, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        try:
            self._tick()
            while not self._end.wait(self._seconds):
                self._tick()
        except Exception as error:  # for the training thread to raise, within the plugin's policy
            self.error = error
