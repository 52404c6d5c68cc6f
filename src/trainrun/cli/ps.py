"""`trainrun ps`: the runs in a folder."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import click

from trainrun.cli import options
from trainrun.cli.columns import columns, terminal_width
from trainrun.cli.echo import echo
from trainrun.cli.figures import duration, minute
from trainrun.rundir.create import run_ids
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import Summary, damage, summarize

_HEADER = ("run", "state", "step", "attempt", "started", "took", "why")


@click.command("ps")
@options.base
@options.as_json
def command(*, base: Path, as_json: bool) -> None:
    """List the runs in a folder, newest first: running, ended, or died without an outcome.

    A run has died if its launcher is gone and left no outcome, because it was killed or its machine failed.
    """
    runs = [_summary(RunPaths((base / run_id).resolve())) for run_id in reversed(run_ids(base))]
    if as_json:
        echo(json.dumps({"version": options.JSON_VERSION, "runs": [run.to_json() for run in runs]}, indent=2))
    elif runs:
        echo("\n".join(columns([_HEADER, *map(_row, runs)], width=terminal_width())))
    else:
        echo(f"no runs in {base}", err=True)


def _summary(paths: RunPaths) -> Summary:
    """Return what there is of the run.

    If a file of it is damaged, that is what is said of it.
    """
    found, problem = summarize(paths), damage(paths)
    return found if problem is None else replace(found, reason=f"damaged: {problem}")


def _row(run: Summary) -> tuple[str, ...]:
    step = f"{run.step}/{run.steps}" if run.steps else str(run.step)
    end = run.ended or (time.time() if run.owner else None)
    took = duration(end - run.started) if end and run.started else ""
    reason = (run.reason or "").partition("\n")[0] or (f"by {run.owner}" if run.owner else "")
    return run.run, run.state, step, str(run.attempt or ""), minute(run.started), took, reason
