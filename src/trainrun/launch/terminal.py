"""Writing to the person at the terminal, and showing there what workers print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from trainrun.errors import UsageError
from trainrun.launch.follow import Follower
from trainrun.printing import clean, escape
from trainrun.rundir.secrets import scrub

Say = Callable[[str], None]
Echo = Literal["zero", "all", "none"] | Sequence[int]

_LONG = 64 * 1024  # bytes of a line without an end that are waited for
_BACKLOG = 1024 * 1024  # bytes that may wait to be shown before some are left out


def say(text: str) -> None:
    """Write a text to stderr, escaped and without secrets.

    A reader that went away must not end a run.
    """
    with suppress(OSError, ValueError):
        sys.stderr.write(escape(scrub(text)) + "\n")
        sys.stderr.flush()


def silent(text: str) -> None:
    """Say nothing, as a `Say`."""


class Tail:
    """Follows a worker's output, over all attempts, and shows its whole lines with a prefix.

    from_end: leave out what is there already.
    """

    def __init__(self, path: Path, prefix: str, show: Say, *, from_end: bool = False) -> None:
        self._path = path
        self._prefix = prefix
        self._show = show
        self._follower = Follower(path, from_end=from_end)
        self._rest = b""

    def poll(self) -> None:
        """Show the lines that came since the last call.

        Takes bounded time and memory.
        """
        self._step()

    def finish(self) -> None:
        """Show all that is left, also a line without an end.

        `poll` may be called again when more has come.
        """
        while self._step():
            pass
        self._emit_rest()
        self._follower.close()

    def _step(self) -> bool:
        """Show some; whether there was something to show."""
        self._skip_backlog()
        data = self._follower.read()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) >= _LONG:
            self._emit_rest()
        return bool(data)

    def _skip_backlog(self) -> None:
        waiting = self._follower.waiting
        if waiting > _BACKLOG:
            self._emit_rest()
            self._follower.skip(waiting - _LONG)
            self._show(f"{self._prefix}… {waiting - _LONG} bytes are not shown; what is kept of them: {self._path}")

    def _emit_rest(self) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def _emit(self, line: bytes) -> None:
        self._show(self._prefix + clean(line.decode(errors="replace")))


def shown_ranks(ranks: Echo, workers: int) -> Sequence[int]:
    """Return the ranks whose output is shown."""
    if isinstance(ranks, str):
        return {"none": [], "zero": [0], "all": range(workers)}[ranks]
    wrong = [rank for rank in ranks if not 0 <= rank < workers]
    if wrong:
        raise UsageError(f"--ranks: there is no rank {wrong[0]}; the ranks of this run are 0 to {workers - 1}")
    return sorted(set(ranks))
