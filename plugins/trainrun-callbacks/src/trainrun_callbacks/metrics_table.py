"""Show metrics as a table that grows, on the console of the launch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from trainrun import Field, PluginOptions, hookimpl
from trainrun.printing import escape

if TYPE_CHECKING:
    from trainrun import Launch, Run

_STEP = "step"
_NARROWEST = 10

Pattern = Annotated[str, Field(min_length=1)]


class MetricsTableOptions(PluginOptions):
    """Which metrics, and when."""

    metrics: list[Pattern] = Field(["*"], min_length=1, description="Shell patterns of the metrics to show.")
    exclude: list[Pattern] = Field(
        ["phase/*", "memory/*", "system/*", "heartbeat/*", "throughput/*", "parameters/*", "gradients/*", "batches/*"],
        description="Shell patterns of metrics to omit; by default, those of monitors that log many.",
    )
    at: list[Literal["log", "evaluation", "epoch"]] = Field(
        ["log", "evaluation"],
        min_length=1,
        description="When to add a row: at each log of training metrics, after each evaluation, at the end of each"
        " epoch (with the newest value of every metric).",
    )


class MetricsTable:
    """Add rows of metrics to `metrics.txt` in the run directory, and show them on the console.

    Rank 0 writes in a thread, and the launching process shows each row once: in colour if standard error is a terminal,
    otherwise as plain text. A new metric gets a column on the right, under a new header.
    """

    Options = MetricsTableOptions
    on_error = "disable"
    poll_interval = 0.5

    def __init__(self, options: MetricsTableOptions) -> None:
        self._options = options
        self._table = Table()
        self._file: Path | None = None
        self._splits: tuple[str, ...] = ()
        self._latest: dict[str, float] = {}
        self._step = 0
        self._seen: dict[str, None] = {}  # the names that were logged, in their order
        self._run: Run | None = None
        self._offset: int | None = None

    # --- in the worker: write ---

    @hookimpl(ranks="zero")
    def on_worker_start(self, run: Run) -> None:
        self._run = run
        self._file = run.paths.root / "metrics.txt"
        self._splits = tuple(f"{split}/" for split in run.recipe.evaluate.splits)

    @hookimpl(background=True)
    def on_log(self, metrics: Mapping[str, float], step: int) -> None:
        chosen = {name: value for name, value in metrics.items() if self._is_chosen(name)}
        self._latest |= chosen
        self._seen |= dict.fromkeys(metrics)
        self._step = step
        if ("log" if "train/loss" in metrics else "evaluation") in self._options.at and self._is_whole(metrics):
            self._write(step, chosen)

    @hookimpl(ranks="zero", background=True)
    def on_epoch_end(self, epoch: int) -> None:
        del epoch
        if "epoch" in self._options.at:
            self._write(self._step, self._latest)

    @hookimpl(ranks="zero", background=True)
    def on_train_end(self) -> None:
        shown = [name for name in self._seen if self._is_chosen(name)]
        idle = [one for one in self._options.metrics if not any(fnmatchcase(name, one) for name in shown)]
        if idle and self._run is not None:
            self._run.logger.warning(
                "patterns of metrics-table fit no metric, or only what exclude leaves out",
                metrics=idle,
                exclude=self._options.exclude,
                there_are=list(self._seen),
            )

    def _is_whole(self, metrics: Iterable[str]) -> bool:
        """Return whether this is a log of training or evaluation.

        Otherwise it is what is left to say when training has ended.
        """
        return any(name == "train/loss" or name.startswith(self._splits) for name in metrics)

    def _is_chosen(self, name: str) -> bool:
        wanted, unwanted = (
            any(fnmatchcase(name, pattern) for pattern in patterns)
            for patterns in (self._options.metrics, self._options.exclude)
        )
        return wanted and not unwanted

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if metrics and self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in self._table.add(step, metrics)))

    # --- in the client: show ---

    @hookimpl
    def on_attempt_start(self, launch: Launch) -> None:
        if self._offset is None:  # what an earlier launch of this run has shown is not shown again
            self._offset = _size(launch.paths.root / "metrics.txt")

    @hookimpl
    def on_status(self, launch: Launch) -> None:
        self._show(launch)

    @hookimpl
    def on_attempt_end(self, launch: Launch) -> None:
        self._show(launch)

    @hookimpl
    def on_launch_end(self, launch: Launch) -> None:
        self._show(launch)

    def _show(self, launch: Launch) -> None:
        path = launch.paths.root / "metrics.txt"
        if launch.quiet or launch.seat.node != 0 or self._offset is None or not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._offset += len(whole) + 1
            with suppress(OSError, ValueError):  # a reader that went away ends the display, never the run
                show(whole.decode("utf-8").split("\n"))


class Table:
    """Rows of text under headers. A column keeps its place; new ones come after it, under a new header."""

    def __init__(self) -> None:
        self._columns: list[str] = []

    def add(self, step: int, metrics: Mapping[str, float]) -> Iterable[str]:
        """Yield the lines that a row adds."""
        new = [name for name in metrics if name not in self._columns]
        if new:
            if self._columns:
                yield ""
            self._columns += new
            yield self._line(_STEP, self._columns)
        yield self._line(str(step), [_number(metrics.get(name)) for name in self._columns])

    def _line(self, first: str, cells: Sequence[str]) -> str:
        widths = [max(_NARROWEST, len(name)) for name in self._columns]
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([first.rjust(8), *padded])


def show(lines: Iterable[str]) -> None:
    """Write lines of a table to standard error.

    If that is a terminal, headers are bold and lines are cut to its width. The lines go through `sys.stderr` as it is,
    so that they come above the line that shows the progress. A console of rich's own would go past what keeps that line
    in its place.
    """
    lines = map(escape, lines)
    if sys.stderr.isatty():
        lines = [_styled(line, shutil.get_terminal_size().columns) for line in lines]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()


def _styled(line: str, width: int) -> str:
    cut = line if len(line) < width else f"{line[: width - 2]}…"
    return f"\x1b[1m{cut}\x1b[0m" if line.lstrip().startswith(_STEP) else cut


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
