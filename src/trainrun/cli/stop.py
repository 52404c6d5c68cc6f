"""`trainrun stop`: ask a run to stop, by its directory alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import tomli

from trainrun.cli import options
from trainrun.cli.echo import echo
from trainrun.errors import UsageError
from trainrun.printing import shorten
from trainrun.recipe import duration
from trainrun.rundir.create import as_argument, find_own
from trainrun.rundir.files import read_text
from trainrun.rundir.lease import held
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome, how_it_ended
from trainrun.rundir.requests import write_stop
from trainrun.rundir.summary import is_over, read_outcome, summarize

_PACE = 0.1  # seconds between two looks
_GRACE = 30.0  # seconds, if the recipe cannot be read
_SLACK = 45.0  # seconds beyond the grace in which a client tears down and calls its last hooks


@click.command("stop")
@options.run
@click.option("--now", is_flag=True, help="Stop at once instead of at the end of the step.")
@click.option("--reason", default="", metavar="TEXT", help="Reason to record in the run's outcome.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the run has ended.")
@options.base
@options.as_json
def command(*, run: str, now: bool, reason: str, wait: bool, base: Path, as_json: bool) -> None:
    """Ask RUN to stop after its current step; all ranks stop after the same step.

    The command writes a request to the run directory and sends no signal, so it works from any machine with access to
    the directory. Exit codes: 0 the run has ended (with --no-wait: the request is written); 1 the run has not ended
    some time after the recipe's launch.grace; 2 the run was not running.

    RUN is an id, a part of one, a path, or `latest`.
    """
    paths = find_own(run, base, "stop")
    _require_running(paths)
    owner = held(paths)
    write_stop(paths, now=now, reason=reason)
    when = "now" if now else "after this step"
    echo(f"asked {owner or 'the client'} to stop {paths.run_id} {when}", err=True)
    ended = _wait(paths, _patience(paths, now=now)) if wait else False
    outcome = read_outcome(paths) if ended else None
    if as_json:
        echo(json.dumps(_answer(paths, outcome, ended=ended), indent=2))
    elif ended:
        echo("\n".join(_closing(paths, outcome)))
    if wait and not ended:
        echo(_still_running(paths, now=now), err=True)
        raise click.exceptions.Exit(1)


def _require_running(paths: RunPaths) -> None:
    if is_over(paths):
        summary = summarize(paths)
        how = how_it_ended(summary.state, summary.reason and shorten(summary.reason, paths.outcome), ", ")
        raise UsageError(f"{paths.run_id} is not running: {how}")


def _patience(paths: RunPaths, *, now: bool) -> float:
    """Return the seconds in which the client has to have ended.

    They are enough for all plugins and workers.
    """
    return _SLACK + (0.0 if now else _grace(paths))


def _grace(paths: RunPaths) -> float:
    try:
        value = tomli.loads(read_text(paths.recipe) or "")["launch"]["grace"]
        return duration.seconds(value) if isinstance(value, str) else float(value)
    except (KeyError, ValueError, TypeError, RecursionError):
        return _GRACE


def _wait(paths: RunPaths, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not is_over(paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PACE)
    return True


def _closing(paths: RunPaths, outcome: Outcome | None) -> list[str]:
    if outcome is None:
        summary = summarize(paths)
        reason = shorten(summary.reason or "the client is gone", paths.outcome)
        return [how_it_ended(summary.state, reason), f"run: {paths.root}"]
    from trainrun.launch import closing  # noqa: PLC0415 - only the end of a run needs it

    return list(closing.lines(outcome))


def _answer(paths: RunPaths, outcome: Outcome | None, *, ended: bool) -> dict[str, Any]:
    return {
        "version": options.JSON_VERSION,
        "run": paths.run_id,
        "ended": ended,
        "outcome": outcome and outcome.to_json(),
    }


def _still_running(paths: RunPaths, *, now: bool) -> str:
    named = as_argument(paths)
    hint = "the client does not respond" if now else f"`trainrun stop {named} --now` does not wait for the step"
    return f"{paths.run_id} has not ended yet; {hint}; `trainrun watch {named}` shows what it does"
