"""What a command waits for, shown while it waits: a spinner on a terminal, otherwise one line."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from trainrun.printing import inline

_PATIENCE = 0.3  # seconds without a sign of life, on a terminal
_PLAIN = 1.0  # elsewhere
_FRAME = 0.1
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

_Item = TypeVar("_Item")


class Busy:
    """Context manager: call it with what is being done, such as "importing tasks/mine.py", or None when it is done.

    Without rich, whose import would itself be felt. Nothing is shown of what takes less than 0.3 s. quiet: show
    nothing at all. plain: write a line if there is no terminal, after a second; for what takes its time anyway.
    """

    def __init__(self, *, quiet: bool = False, plain: bool = False) -> None:
        self._live = sys.stderr.isatty()
        self._quiet = quiet or not (plain or self._live)
        self._text: str | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._over, self._text = True, None
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __call__(self, text: str | None) -> None:
        """Show `text` from now on; nothing if it is None."""
        if self._quiet:
            return
        with self._changed:
            self._text = text and inline(text)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._show, name="busy", daemon=True)
            self._thread.start()

    def importing(self, target: str | None) -> None:
        """Show that a plugin or task is imported.

        It is shown by the path that its user wrote.
        """
        path = target and target.partition(":")[0]
        if path and Path(path).is_absolute() and not os.path.relpath(path).startswith(".."):
            path = os.path.relpath(path)
        self(path and f"importing {path}")

    def _show(self) -> None:
        with self._changed:
            while not self._over:
                text = self._text
                changed = self._until_not(text, _PATIENCE if self._live else _PLAIN)
                if not changed and text is not None:
                    self._draw(text)

    def _until_not(self, text: str | None, seconds: float | None = None) -> bool:
        """Wait until another text than `text` is to be shown.

        Returns False if that has not come in `seconds`.
        """
        return self._changed.wait_for(lambda: self._over or self._text is not text, seconds)

    def _draw(self, text: str) -> None:
        """Show `text` until another is given."""
        if not self._live:
            _write(f"{text}\n")
            self._until_not(text)
            return
        for frame in itertools.cycle(_FRAMES):
            _write(f"\r\x1b[K{frame} {text}"[: shutil.get_terminal_size().columns + 4])
            if self._until_not(text, _FRAME):
                break
        _write("\r\x1b[K")


def during(text: str, items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the items, and show `text` while each is waited for.

    Nothing is shown while one is looked at.
    """
    coming = iter(items)
    while True:
        with Busy() as busy:
            busy(text)
            try:
                item = next(coming)
            except StopIteration:
                return
        yield item


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # a reader that went away
        sys.stderr.write(text)
        sys.stderr.flush()
