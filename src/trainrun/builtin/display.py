"""Two ways to show a status: one line that is rewritten, or one line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from trainrun.printing import inline

Status = Mapping[str, Any]

_METRICS = 4  # how many metrics a line holds
_BAR = 8  # columns
_SILENT = 1.0  # seconds after which a plain line says what is being done


class Display(Protocol):
    """Shows statuses until it is closed."""

    def show(self, status: Status, doing: str | None = None, left: float | None = None) -> None:
        """Show the newest status.

        doing: what the workers do besides training steps; left: seconds to the end.
        """

    def close(self) -> None:
        """Leave the last status on the screen."""


def describe(status: Status, doing: str | None = None, left: float | None = None) -> str:
    """Return one line for a status.

    What matters most comes first, because a terminal cuts the end off. Names of metrics are the task's, and escaped.
    """
    return inline("  ".join(_parts(status, doing, left)))


def _parts(status: Status, doing: str | None, left: float | None) -> Iterator[str]:
    step, steps, state = status.get("step") or 0, status.get("steps"), str(status.get("state", "starting"))
    if doing is not None:
        yield doing
    elif state not in {"training", "ending", "finished"}:
        yield state
    if step or doing is None:
        yield f"step {step}/{steps}" if steps else f"step {step}"
    if left is not None and (step != steps or doing is not None):
        yield f"{_time(left)} left"
    if status.get("samples_per_second"):
        yield f"{status['samples_per_second']:,.0f} samples/s"
    if status.get("epoch"):
        yield f"epoch {status['epoch']}"
    yield from (f"{name} {_number(value)}" for name, value in _chosen(status.get("metrics") or {}))


def _chosen(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the metrics that a line has room for.

    These are the training loss, then those of evaluations, then others.
    """
    told = [name for name in metrics if not name.endswith("/samples_per_second")]  # it has a place of its own
    names = sorted(told, key=lambda name: (name != "train/loss", name.startswith("train/"), name))
    return [(name, metrics[name]) for name in names[:_METRICS]]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Line:
    """Plain lines: the status when `interval` seconds have passed, what is being done if it takes a second, the end."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._shown_at: float | None = None
        self._shown = ""
        self._last = ""
        self._doing: str | None = None
        self._since = time.monotonic()

    def show(self, status: Status, doing: str | None = None, left: float | None = None) -> None:
        now, kind = time.monotonic(), doing and doing.partition(" ")[0]
        if kind != self._doing:
            self._doing, self._since = kind, now
        elif doing and self._since < now - _SILENT:
            self._since = math.inf  # reported once
            self._last = describe(status, doing, left)
            self._print()
        # A run that ended before its first step has nothing to show but how it ended, which others say.
        self._last = describe(status, None, left) if status.get("step") else ""
        if status.get("step") and not doing and (self._shown_at is None or now - self._shown_at >= self._interval):
            self._shown_at = now
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        if self._last and self._last != self._shown:
            self._shown = self._last
            # A reader that went away ends the display, never the run.
            with suppress(OSError, ValueError):
                sys.stderr.write(self._last + "\n")
                sys.stderr.flush()


class Live:
    """One line with a bar that is rewritten in place; other output to stderr appears above it."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - rich is imported only on a terminal
        from rich.live import Live as RichLive  # noqa: PLC0415
        from rich.spinner import Spinner  # noqa: PLC0415

        self._spinner = Spinner("dots")
        self._last: Status | None = None
        # A thread of rich's turns the spinner, also while the client waits for something.
        self._live = RichLive(console=Console(stderr=True), refresh_per_second=8, redirect_stdout=False)
        self._live.start()

    def show(self, status: Status, doing: str | None = None, left: float | None = None) -> None:
        self._last = status
        self._update(status, doing, left)

    def close(self) -> None:
        if self._last is not None and self._last.get("step"):  # nothing is being done any more
            self._update(self._last, None, None)
        else:
            self._live.transient = True
        self._live.stop()

    def _update(self, status: Status, doing: str | None, left: float | None) -> None:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        row = Table.grid(padding=(0, 1))
        cells: list[Any] = [Text(describe(status, doing, left), no_wrap=True, overflow="ellipsis")]
        if status.get("steps"):
            cells.insert(0, ProgressBar(status["steps"], status.get("step") or 0, width=_BAR))
        if doing:
            cells.insert(0, self._spinner)
        row.add_row(*cells)
        self._live.update(row)
