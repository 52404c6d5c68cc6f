"""Two ways to show a status: one line that is rewritten, or one line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from trainrun.printing import inline

Status = Mapping[str, Any]

_METRICS = 4  # how many metrics a line holds


class Display(Protocol):
    """Shows statuses until it is closed."""

    def show(self, status: Status) -> None:
        """Show the newest status."""

    def close(self) -> None:
        """Leave the last status on the screen."""


class Rate:
    """Steps a second as this process sees them, for the time that is left."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def seconds_left(self, status: Status) -> float | None:
        """Seconds to the last step at the pace since the first; None while that cannot be said."""
        step, steps, updated = status.get("step") or 0, status.get("steps"), status.get("updated") or 0.0
        if not steps or not step:
            return None
        if self._first is None:
            self._first = (updated, step)
        since, first = self._first
        if step <= first or updated <= since:
            return None
        return float((steps - step) * (updated - since) / (step - first))


def describe(status: Status, left: float | None = None) -> str:
    """One line for a status. Names of metrics are the task's, and escaped."""
    return inline("  ".join(_parts(status, left)))


def _parts(status: Status, left: float | None) -> Iterator[str]:
    if status.get("state") not in {"training", "ending", "finished"}:
        yield str(status.get("state", "starting"))
    step, steps = status.get("step") or 0, status.get("steps")
    yield f"step {step}/{steps}" if steps else f"step {step}"
    if status.get("epoch"):
        yield f"epoch {status['epoch']}"
    yield from (f"{name} {_number(value)}" for name, value in _chosen(status.get("metrics") or {}))
    if status.get("samples_per_second"):
        yield f"{status['samples_per_second']:,.0f} samples/s"
    if left is not None and step != steps:
        yield f"{_time(left)} left"


def _chosen(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The metrics that a line has room for: the training loss, then those of evaluations, then others."""
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
    """A plain line when `interval` seconds have passed, and for the last status."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._rate = Rate()
        self._shown_at: float | None = None
        self._shown = ""
        self._last = ""

    def show(self, status: Status) -> None:
        self._last = describe(status, self._rate.seconds_left(status))
        now = time.monotonic()
        if not status.get("step"):
            return
        if self._shown_at is None or now - self._shown_at >= self._interval:
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

        self._rate = Rate()
        self._live = RichLive(console=Console(stderr=True), auto_refresh=False, redirect_stdout=False)
        self._live.start()

    def show(self, status: Status) -> None:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        row = Table.grid(padding=(0, 1))
        text = Text(describe(status, self._rate.seconds_left(status)), no_wrap=True, overflow="ellipsis")
        if status.get("steps"):
            row.add_row(ProgressBar(status["steps"], status.get("step") or 0, width=20), text)
        else:
            row.add_row(text)
        self._live.update(row, refresh=True)

    def close(self) -> None:
        self._live.stop()
