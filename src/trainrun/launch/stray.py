"""Keep standard output for a command's result: what plugins and their children print goes to stderr and into the run.

A plugin may print at its import and in its client hooks, by `print`, through descriptor 1, or by a child that inherits
it. A pipe takes the place of descriptor 1 meanwhile, and a thread copies what comes.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from contextlib import suppress
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from trainrun.printing import clean
from trainrun.rundir.secrets import scrub

_STDOUT = 1
_PAUSE = 100  # milliseconds for the rest of a line; after that it is shown as it is, as the prompt of a debugger
_IDLE = 250  # milliseconds between two looks at whether the command is over, while a child holds the pipe
_LATE = 0.5  # seconds in which a child that holds the pipe may still write when the command is over
_CHUNK = 64 * 1024
_WAITING = 1024 * 1024  # characters that are kept until there is a run to keep them in

_CURRENT: ContextVar[Stray | None] = ContextVar("stray", default=None)


class Stray:
    """Context manager: only `answers` leads to standard output, all other writes go to stderr.

    `keep` has it written into a file too, with what came before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = ""
        self._file: Path | None = None
        self._room = _WAITING
        self._over = threading.Event()

    def __enter__(self) -> Self:
        sys.stdout.flush()
        self._before, self._errors = sys.stdout, sys.stderr
        self._saved = os.dup(_STDOUT)
        self.answers: TextIO = self._before if _number(self._before) != _STDOUT else _like(self._before, self._saved)
        self._reader, writer = os.pipe()
        os.dup2(writer, _STDOUT)
        os.close(writer)
        sys.stdout = _like(self._before, _STDOUT, errors="backslashreplace", buffering=1)
        self._thread = threading.Thread(target=self._copy, name="stray output", daemon=True)
        self._thread.start()
        self._token: Token[Stray | None] = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._token)
        with suppress(OSError, ValueError):  # a plugin may have closed it
            sys.stdout.flush()
        sys.stdout = self._before
        if self.answers is not self._before:
            with suppress(OSError):  # each result was flushed, and what could not be written was raised there
                self.answers.close()
        os.dup2(self._saved, _STDOUT)
        os.close(self._saved)
        self._over.set()
        self._thread.join()
        os.close(self._reader)

    def keep(self, file: Path, limit: int) -> None:
        """Write into `file` too from now on, what came before included. limit: the characters that are kept of it."""
        with self._lock:
            self._file, self._room = file, limit
            waiting, self._waiting = self._waiting, ""
            if waiting:
                self._append(waiting)

    def _copy(self) -> None:
        """Copy whole lines until no writer is left.

        After a pause, parts of lines are copied too.
        """
        poller, rest, until = select.poll(), b"", 0.0
        poller.register(self._reader, select.POLLIN)
        while True:
            ready = poller.poll(_PAUSE if rest else _IDLE)
            data = os.read(self._reader, _CHUNK) if ready else b""
            whole, end, rest = (rest + data).rpartition(b"\n") if data and len(rest) < _CHUNK else (rest, b"", data)
            if whole or end:
                self._pass_on((whole + end).decode(errors="replace"))
            if ready and not data:
                break
            if self._over.is_set():
                until = until or time.monotonic() + _LATE
                if not ready or time.monotonic() > until:
                    break
        if rest:
            self._pass_on(rest.decode(errors="replace"))

    def _pass_on(self, text: str) -> None:
        text = scrub(text)
        with suppress(OSError, ValueError):  # a reader that went away must not end a run
            self._errors.write("\n".join(map(clean, text.split("\n"))))
            self._errors.flush()
        with self._lock:
            if self._file is None:
                self._waiting = (self._waiting + text)[:_WAITING]
            else:
                self._append(text)

    def _append(self, text: str) -> None:
        kept, self._room = text[: self._room], max(0, self._room - len(text))
        if kept and self._file is not None:
            # Storage that is full or gone is found and reported by what the run itself writes.
            with suppress(OSError), self._file.open("a", encoding="utf-8", errors="backslashreplace") as out:
                out.write(kept)


def current() -> Stray | None:
    """Return the one that is in force.

    Returns None if standard output is as the process got it.
    """
    return _CURRENT.get()


def _number(stream: Any) -> int | None:
    try:
        number: int = stream.fileno()
    except (OSError, ValueError, AttributeError):  # a stream in memory, as tests put there
        return None
    return number


def _like(stream: Any, descriptor: int, *, errors: str | None = None, buffering: int = -1) -> TextIO:
    encoding, errors = getattr(stream, "encoding", None) or "utf-8", errors or getattr(stream, "errors", None)
    return open(descriptor, "w", encoding=encoding, errors=errors, buffering=buffering, closefd=False)
