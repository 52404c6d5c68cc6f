"""`trainrun status`: the state of a run, and what its plugins cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from trainrun.cli import options
from trainrun.cli.columns import columns
from trainrun.cli.echo import echo
from trainrun.cli.figures import duration, moment, number
from trainrun.launch.closing import resume_line
from trainrun.launch.committed import newest, short
from trainrun.printing import clean, inline, shorten
from trainrun.rundir.create import find
from trainrun.rundir.records import how_it_ended
from trainrun.rundir.summary import Summary
from trainrun.rundir.view import View, Viewer, Worker

_COSTS = 10


@click.command("status")
@options.run
@options.base
@options.as_json
def command(*, run: str, base: Path, as_json: bool) -> None:
    """Show the state of RUN: attempt, step, metrics, workers, and the time that plugins take.

    RUN is an id, a part of one, a path, or `latest`.
    """
    paths = find(run, base)
    view, found = Viewer(paths).look(), newest(paths)
    checkpoint = None if found is None else short(paths, found.path)
    if as_json:
        answer = {"version": options.JSON_VERSION, **view.to_json(), "checkpoint": checkpoint}
        echo(json.dumps(answer, indent=2))
    else:
        echo("\n".join(lines(view, checkpoint, resume_line(paths, view.summary.state))))


def lines(view: View, checkpoint: str | None = None, advice: Iterable[str] = ()) -> Iterator[str]:
    """Yield the view as plain text.

    checkpoint: the newest one.
    advice: how to resume the run.
    """
    summary, status = view.summary, view.status
    yield ended(summary)
    step = f"step {summary.step}" + (f" of {summary.steps}" if summary.steps else "")
    rate = status.get("samples_per_second")
    epoch = f", epoch {status['epoch']}" if status.get("epoch") else ""
    yield step + epoch + (f", {rate:,.0f} samples/s" if rate else "")
    yield from _attempts(view)
    if checkpoint is not None:
        yield f"newest checkpoint: {checkpoint}"
    yield from advice
    if updated := status.get("updated"):
        yield f"last update {moment(updated)} ({duration(max(0.0, time.time() - updated))} ago)"
    metrics = status.get("metrics") or {}
    if rate:  # there is one rate, and it stands above
        metrics = {name: value for name, value in metrics.items() if not name.endswith("/samples_per_second")}
    if metrics:
        yield ""
        yield from columns([("metric", "value"), *((name, number(metrics[name])) for name in sorted(metrics))])
    if view.workers:
        yield ""
        rows = [WORKERS, *map(worker_row, view.workers)]
        known = any(worker.quiet is not None for worker in view.workers)
        yield from columns(rows if known else [(*row[:3], row[4]) for row in rows])
    costs = cost_rows(status)
    if costs:
        yield ""
        yield from columns([COSTS, *costs[:_COSTS]])
    if len(costs) > _COSTS:
        yield f"… and {len(costs) - _COSTS} more; --json has all"


def ended(summary: Summary, whole: Path | None = None) -> str:
    """Return the run, its state and the reason.

    The reason is cut if it is long.

    whole: the file that has all of it.
    """
    how = how_it_ended(inline(summary.state), summary.reason and shorten(summary.reason, whole))
    return f"{inline(summary.run)}: {how}"


WORKERS = ("rank", "phase", "step", "since", "")
COSTS = ("plugin", "hook", "calls", "total", "longest")


def worker_row(worker: Worker) -> tuple[str, ...]:
    """Return a worker as the cells under `WORKERS`.

    `since` is how long ago it began its step or phase.
    """
    quiet = "" if worker.quiet is None else duration(max(0.0, worker.quiet))
    return str(worker.rank), inline(worker.phase), str(worker.step), quiet, clean(worker.doing)


def cost_rows(status: Mapping[str, Any]) -> list[Sequence[str]]:
    """Return what hookimpls took, the dearest first, as the cells under `COSTS`."""
    dearest = sorted(status.get("cost") or [], key=lambda row: -float(row["total_seconds"]))
    return [
        (
            inline(row["instance"]),
            inline(row["hook"]),
            inline(row["calls"]),
            f"{row['total_seconds']:.3f} s",
            f"{row['max_seconds'] * 1000:.2f} ms",
        )
        for row in dearest
    ]


def _attempts(view: View) -> Iterator[str]:
    restarts = [attempt for attempt in view.attempts if attempt.restart]
    if view.summary.attempt > 1:
        yield f"attempt {view.summary.attempt}"
    if restarts:
        last = restarts[-1]
        reason = clean((last.reason or "").partition("\n")[0])
        yield f"attempt {last.number} {how_it_ended(last.state or 'ended', reason)} ({clean(last.restart or '')})"
