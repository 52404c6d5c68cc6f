"""The screen of `trainrun watch`. This module imports rich, so it is itself imported only for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainrun.cli.figures import duration, number
from trainrun.cli.status import COSTS, WORKERS, cost_rows, worker_row
from trainrun.printing import clean, inline
from trainrun.rundir.activity import seconds_left
from trainrun.rundir.records import how_it_ended
from trainrun.rundir.view import View, Worker, tell

_SLOW = 10.0  # seconds in one step after which a worker is shown in colour
_METRICS = 12
_COST_ROWS = 5
_STATES = {"failed": "red", "died": "red", "restarting": "yellow", "starting": "yellow", "finished": "green"}


class Screen:
    """Context manager: takes the whole terminal, and gives it back as it was."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, view: View) -> None:
        """Show this view, as much as the terminal has room for."""
        self._live.update(self.render(view, self._console.height), refresh=True)

    def render(self, view: View, height: int) -> RenderableType:
        """Return the view in `height` lines: the most important first.

        The last events take what is left.
        """
        top = [*_head(view), *self._progress(view), *_metrics(view)]
        room = height - len(top)
        workers = _workers(view.workers, max(3, room // 2))
        costs = _costs(view) if room >= 20 else []
        events = _events(view, room - len(workers) - len(costs))
        return Group(*top, *workers, *events, *costs)

    def _progress(self, view: View) -> Iterator[RenderableType]:
        summary, status = view.summary, view.status
        current = view.is_live and status.get("attempt", summary.attempt) == summary.attempt
        first = next((worker.beat for worker in view.workers if worker.rank == 0 and worker.quiet is not None), None)
        left = seconds_left(status, first) if current else None
        words = [f"step {summary.step}" + (f"/{summary.steps}" if summary.steps else "")]
        words += [f"epoch {status['epoch']}"] if status.get("epoch") else []
        words += [f"{status['samples_per_second']:,.0f} samples/s"] if status.get("samples_per_second") else []
        words += [f"{duration(left)} left"] if left is not None and summary.step != summary.steps else []
        row = Table.grid(padding=(0, 1), expand=True)
        text = Text(inline("  ".join(words)), no_wrap=True, overflow="ellipsis")
        if summary.steps:
            row.add_column(ratio=1)
            row.add_column()
            row.add_row(ProgressBar(summary.steps, summary.step), text)
        else:
            row.add_row(text)
        yield row


def _head(view: View) -> Iterator[RenderableType]:
    summary = view.summary
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(inline(summary.run), style="bold").append("  ")
    title.append(inline(summary.state), style=f"bold {_STATES.get(summary.state, 'cyan')}")
    title.append(f"  attempt {summary.attempt}" if summary.attempt else "")
    yield title
    words = [inline(summary.owner)] if summary.owner else []
    words += [f"for {duration(time.time() - summary.started)}"] if summary.started else []
    heard = view.status.get("updated")
    words += [f"last log {duration(max(0.0, time.time() - heard))} ago"] if heard else []
    yield _dim("  ".join(words))
    restarts = [attempt for attempt in view.attempts if attempt.restart]
    if restarts:
        last = restarts[-1]
        reason = clean((last.reason or "").partition("\n")[0])
        yield Text(
            f"attempt {last.number} {how_it_ended(inline(last.state), reason)}",
            style="yellow",
            no_wrap=True,
            overflow="ellipsis",
        )


def _metrics(view: View) -> Iterator[RenderableType]:
    metrics = view.status.get("metrics") or {}
    words = [f"{clean(name)} {clean(number(metrics[name]))}" for name in sorted(metrics)[:_METRICS]]
    for line in _wrapped(words, 2):
        yield Text(line, no_wrap=True, overflow="ellipsis")


def _wrapped(words: Sequence[str], lines: int) -> Iterator[str]:
    share = -(-len(words) // lines)
    for start in range(0, len(words), share or 1):
        yield "  ".join(words[start : start + share])


def _workers(workers: Sequence[Worker], room: int) -> list[RenderableType]:
    """Return a heading and a row for each rank.

    If there is no room for all, those that stand out come first.
    """
    if not workers:
        return []
    room = max(1, room - 2)
    shown = sorted(sorted(workers, key=_ordinary)[:room], key=lambda worker: worker.rank)
    rest = len(workers) - len(shown)
    rows = [(_style(worker), worker_row(worker)) for worker in shown]
    heading = (*WORKERS[:-1], f"and {rest} more ranks" if rest else "doing")
    return [Text(""), *_rows(heading, rows)]


def _ordinary(worker: Worker) -> tuple[bool, float, int]:
    return not worker.record.get("error"), -(worker.quiet or 0.0), worker.rank


def _style(worker: Worker) -> str:
    if worker.record.get("error"):
        return "red"
    return "yellow" if (worker.quiet or 0.0) > _SLOW else ""


def _costs(view: View) -> list[RenderableType]:
    rows = [("", row) for row in cost_rows(view.status)[:_COST_ROWS]]
    return [Text(""), *_rows(COSTS, rows)] if rows else []


def _events(view: View, room: int) -> list[RenderableType]:
    shown = view.events[-(room - 2) :] if room > 2 else []
    if not shown:
        return []
    lines = [f"{_clock(event.get('time'))}  {clean(tell(event))}" for event in shown]
    return [Text(""), _dim("last events"), *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)]


def _clock(moment: object) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment)) if isinstance(moment, int | float) else " " * 8


def _rows(heading: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> Iterator[RenderableType]:
    """Yield one line a row, each cut at the edge of the terminal.

    A table that wraps would need more lines than it has.
    """
    rows = list(rows)
    widths = [max(map(len, cells)) for cells in zip(heading, *(row for _, row in rows), strict=True)]
    yield _dim(_cells(heading, widths))
    for style, row in rows:
        yield Text(_cells(row, widths), style=style, no_wrap=True, overflow="ellipsis")


def _cells(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _dim(text: str) -> Text:
    return Text(text, style="dim", no_wrap=True, overflow="ellipsis")
