"""Writing to the person at the terminal, and making what workers print safe to show there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from trainrun.errors import UsageError
from trainrun.launch.follow import Follower
from trainrun.rundir.secrets import scrub

Say = Callable[[str], None]
Echo = Literal["zero", "all", "none"] | Sequence[int]

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE = 2000  # characters of a line that are shown
_LONG = 64 * 1024  # bytes of a line without an end that are waited for
_BACKLOG = 1024 * 1024  # bytes that may wait to be shown before some are left out


def say(text: str) -> None:
    """Write a line to stderr, without secrets. A reader that went away must not end a run: nothing is raised."""
    with suppress(OSError, ValueError):
        sys.stderr.write(scrub(text) + "\n")
        sys.stderr.flush()


def silent(text: str) -> None:
    """A `Say` that says nothing."""


def clean(line: str) -> str:
    """The line as a terminal may show it: no escape sequences, no control characters, not endless.

    Of a progress bar that rewrites its line, the last state is kept.
    """
    last = next((part for part in reversed(line.split("\r")) if part), "")
    shown = _CONTROLS.sub("", _ESCAPES.sub("", last.replace("\t", "    ")))
    return shown if len(shown) <= _LINE else f"{shown[:_LINE]}… ({len(shown) - _LINE} more characters)"


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
        """Show the lines that came since the last call, in bounded time and memory."""
        self._step()

    def finish(self) -> None:
        """Show all that is left, also a line without an end. `poll` may be called again when more has come."""
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
    """The ranks whose output is shown."""
    if isinstance(ranks, str):
        return {"none": [], "zero": [0], "all": range(workers)}[ranks]
    wrong = [rank for rank in ranks if not 0 <= rank < workers]
    if wrong:
        raise UsageError(f"--ranks: there is no rank {wrong[0]}; the ranks of this run are 0 to {workers - 1}")
    return sorted(set(ranks))
