"""Writing to the person at the terminal, and making what workers print safe to show there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

Say = Callable[[str], None]

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE = 2000  # characters of a line that are shown
_READ = 64 * 1024  # bytes of a file that are read at a time
_BACKLOG = 1024 * 1024  # bytes that may wait to be shown before some are left out


def say(text: str) -> None:
    """Write a line to stderr. A reader that went away must not end a run: nothing is raised."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
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
    """Follows a worker's output and shows its whole lines with a prefix."""

    def __init__(self, path: Path, prefix: str, show: Say) -> None:
        self._path = path
        self._prefix = prefix
        self._show = show
        self._offset = 0
        self._rest = b""

    def poll(self) -> None:
        """Show the lines that came since the last call, in bounded time and memory."""
        self._skip_backlog()
        data = self._rest + self._read()
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) >= _READ:
            self._emit(self._rest)
            self._rest = b""

    def finish(self) -> None:
        """Show all that is left, also a line without an end."""
        before = -1
        while self._offset != before:
            before = self._offset
            self.poll()
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_READ)
        except OSError:
            return b""
        self._offset += len(data)
        return data

    def _skip_backlog(self) -> None:
        with suppress(OSError):
            waiting = self._path.stat().st_size - self._offset
            if waiting > _BACKLOG:
                self._offset += waiting - _READ
                self._rest = b""
                self._show(f"{self._prefix}… {waiting - _READ} bytes are not shown; all of it: {self._path}")

    def _emit(self, line: bytes) -> None:
        self._show(self._prefix + clean(line.decode(errors="replace")))
