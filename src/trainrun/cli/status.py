"""`trainrun status`: where a run is, and what its plugins cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from trainrun.cli import options
from trainrun.cli.columns import columns
from trainrun.cli.figures import moment, number
from trainrun.rundir.create import find
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import Summary, summarize

_COSTS = 10


@click.command("status")
@options.run
@options.base
@options.as_json
def command(*, run: str, base: Path, as_json: bool) -> None:
    """Show where RUN is: step, metrics, each worker, and the time that plugins take.

    RUN is an id, the beginning of one, a path, or `latest`.
    """
    paths = find(run, base)
    summary, status = summarize(paths), read_json(paths.status) or {}
    workers = worker_records(paths)
    if as_json:
        answer = {**summary.to_json(), "status": status, "workers": workers}
        click.echo(json.dumps({"version": options.JSON_VERSION, **answer}, indent=2))
    else:
        click.echo("\n".join(_lines(summary, status, workers)))


def worker_records(paths: RunPaths) -> list[dict[str, Any]]:
    """The records of the newest attempt's workers, by rank."""
    try:
        attempts = [int(entry.name) for entry in paths.attempts.iterdir() if entry.name.isdigit()]
    except OSError:
        return []
    if not attempts:
        return []
    records = (read_json(path) for path in paths.attempt(max(attempts)).glob("rank-*.json"))
    return sorted((record for record in records if record), key=lambda record: int(record.get("rank", 0)))


def _lines(summary: Summary, status: dict[str, Any], workers: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{summary.run}: {summary.state}" + (f", {summary.reason}" if summary.reason else "")
    step = f"step {summary.step}" + (f" of {summary.steps}" if summary.steps else "")
    rate = status.get("samples_per_second")
    yield step + (f", epoch {status['epoch']}" if status.get("epoch") else "") + (f", {rate} samples/s" if rate else "")
    if status.get("updated"):
        yield f"last heard of {moment(status['updated'])}"
    metrics = status.get("metrics") or {}
    if metrics:
        yield ""
        yield from columns([("metric", "value"), *((name, number(metrics[name])) for name in sorted(metrics))])
    if workers:
        yield ""
        rows = [(str(one.get("rank")), str(one.get("phase")), str(one.get("step")), _doing(one)) for one in workers]
        yield from columns([("rank", "phase", "step", ""), *rows])
    yield from _costs(status.get("cost") or [])


def _doing(record: dict[str, Any]) -> str:
    error = record.get("error")
    if error:
        return f"{error.get('type')}: {str(error.get('message')).partition(chr(10))[0]}"
    return f"in {record['hook']} of {record['instance']}" if record.get("instance") else ""


def _costs(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    dearest = sorted(rows, key=lambda row: -float(row["total_seconds"]))[:_COSTS]
    cells = [
        (
            str(row["instance"]),
            str(row["hook"]),
            str(row["calls"]),
            f"{row['total_seconds']:.3f} s",
            f"{row['max_seconds'] * 1000:.2f} ms",
        )
        for row in dearest
    ]
    yield from columns([("plugin", "hook", "calls", "total", "longest"), *cells])
    if len(rows) > _COSTS:
        yield f"… and {len(rows) - _COSTS} more; --json has all"
