"""`trainrun why`: what was decided in a run, by whom and for which reason, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click

from trainrun.cli import options
from trainrun.cli.columns import columns
from trainrun.cli.echo import echo
from trainrun.cli.figures import duration, moment
from trainrun.cli.status import ended
from trainrun.launch.closing import resume_line
from trainrun.launch.committed import newest, short
from trainrun.printing import TRACE, shorten
from trainrun.rundir import typed
from trainrun.rundir.create import find
from trainrun.rundir.files import read_lines
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome
from trainrun.rundir.summary import Attempt, Summary, attempts, read_outcome, summarize
from trainrun.rundir.view import tell

_ODD = {
    "lease_takeover",
    "request_refused",
    "straggler",
    "quarantine",
    "set_aside",
    "trusted",
    "tracker_outage",
    "tracker_back",
}


@click.command("why")
@options.run
@options.base
@options.as_json
def command(*, run: str, base: Path, as_json: bool) -> None:
    """Explain RUN: decisions by step, errors, restarts, and the outcome.

    RUN is an id, a part of one, a path, or `latest`.
    """
    paths = find(run, base)
    summary, outcome, events = summarize(paths), read_outcome(paths), read_lines(paths.events)[0]
    if as_json:
        answer = {"run": paths.run_id, "state": summary.state, "outcome": outcome and outcome.to_json()}
        echo(json.dumps({"version": options.JSON_VERSION, **answer, "events": events}, indent=2))
    else:
        parts = (
            _ending(paths, summary, outcome),
            _checkpoint(paths, summary.state),
            _attempts(events),
            _changes(events),
            _decisions(events),
            _faults(paths, events),
            _trace(paths, outcome),
        )
        echo("\n".join(chain.from_iterable(parts)))


def _ending(paths: RunPaths, summary: Summary, outcome: Outcome | None) -> Iterator[str]:
    yield ended(summary, paths.outcome)
    if outcome is None:
        yield f"step {summary.step}" + (f", owned by {summary.owner}" if summary.owner else "")
        return
    took = duration(outcome.ended - outcome.started)
    yield f"step {outcome.step}, exit code {outcome.exit_code}, ended {moment(outcome.ended)} after {took}"
    if outcome.first_failure is not None and outcome.first_failure.log:
        yield f"log: {outcome.first_failure.log}"


def _checkpoint(paths: RunPaths, state: str) -> Iterator[str]:
    if (found := newest(paths)) is not None:
        yield f"newest checkpoint: {short(paths, found.path)}"
    yield from resume_line(paths, state)


def _attempts(events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield each attempt and why another followed.

    Yields nothing if there was one only.
    """
    resumed = [event for event in events if event.get("event") == "resume"]
    starts = {typed.whole(event.get("attempt")): str(event.get("step")) for event in resumed}
    *before, last = attempts(events) or [Attempt(1)]
    # An attempt that was followed by another is over, even if its end was not recorded.
    over = [one if one.state else one._replace(state="lost", reason="its client was gone at its end") for one in before]
    rows = [
        (
            str(one.number),
            starts.get(one.number, "0"),
            _took(one),
            one.state or "",
            _first(one.restart),
            _first(one.reason),
        )
        for one in (*over, last)
    ]
    if len(rows) > 1:
        yield ""
        yield from columns([("attempt", "from step", "took", "state", "then", "reason"), *rows])


def _changes(events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what has changed since the checkpoint of an attempt was written.

    It is the checkpoint that the attempt began from.
    """
    rows = []
    for event in events:
        if event.get("event") == "resume":
            for kind, change in (event.get("differences") or {}).items():
                pairs = change.items() if isinstance(change, dict) else [("number of workers", change)]
                for name, (was, now) in pairs:
                    of = {"plugins": f"plugin {name}", "versions": f"version of {name}"}.get(kind, name)
                    rows.append((str(event.get("step")), of, _value(was), _value(now)))
    if rows:
        yield ""
        yield from columns([("from step", "changed", "was", "is"), *rows])


def _value(value: Any) -> str:
    return "not set" if value is None else _first(str(value))


def _took(attempt: Attempt) -> str:
    return duration(attempt.ended - attempt.started) if attempt.started and attempt.ended else ""


def _first(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _decisions(events: list[dict[str, Any]]) -> Iterator[str]:
    rows = [_row(event) for event in events if event.get("event") == "decision"]
    if rows:
        yield ""
        yield from columns([("step", "decision", "plugin", "what", "rank", "reason"), *rows])


def _row(event: dict[str, Any]) -> tuple[str, ...]:
    found = event.get("ranks")
    ranks = found if isinstance(found, list) and found else [event.get("rank", "")]
    texts = [str(event.get(name, "")) for name in ("step", "decision", "plugin", "hook")]
    return (*texts, ",".join(map(str, ranks)), str(event.get("reason", "")).partition("\n")[0])


def _faults(paths: RunPaths, events: list[dict[str, Any]]) -> Iterator[str]:
    for event in events:
        if event.get("event") == "warning":
            yield shorten(f"warning: {event.get('reason')}", paths.events)
        if str(event.get("event")) in _ODD:
            yield f"warning: {tell(event)}"
        if event.get("event") == "fault":
            yield ""
            yield f"plugin {event.get('plugin')} failed in {event.get('hook')} ({event.get('action')}):"
            yield shorten(str(event.get("traceback") or event.get("reason")).rstrip(), paths.events, lines=TRACE)


def _trace(paths: RunPaths, outcome: Outcome | None) -> Iterator[str]:
    failure = outcome and outcome.first_failure
    if failure and failure.traceback:
        yield ""
        yield f"rank {failure.rank}:" if failure.rank is not None else "the client's side:"
        yield shorten(failure.traceback.rstrip(), paths.outcome, lines=TRACE)
