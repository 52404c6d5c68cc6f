"""Everything that can be seen of a run from outside, at one moment: what `trainrun watch` and `status` show."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trainrun.rundir import typed
from trainrun.rundir.files import read_json, read_lines
from trainrun.rundir.lease import held
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.pulse import Beat, read_pulse
from trainrun.rundir.records import how_it_ended
from trainrun.rundir.summary import Attempt, Summary, attempts, last_attempt, read_status, summarize

_EVENTS = 200  # how many of the last events are kept
_DIGITS = 10  # of a rank
_LEFT = {"finished", "failed"}  # the phases of a worker that has ended


class Worker(NamedTuple):
    """One worker of the newest attempt. `quiet` is seconds since it last began a step or a phase, None if unknown."""

    rank: int
    phase: str
    step: int
    doing: str
    quiet: float | None
    record: Mapping[str, Any]
    beat: Beat | None

    def to_json(self) -> dict[str, Any]:
        """Return the worker's own record, and its pulse."""
        pulse = None if self.beat is None else {**self.beat._asdict(), "quiet_seconds": self.quiet}
        return {"rank": self.rank, **self.record, "pulse": pulse}


class View(NamedTuple):
    """A run at one moment. `events` are the last ones, `status` is what rank 0 last wrote."""

    summary: Summary
    status: Mapping[str, Any]
    workers: list[Worker]
    attempts: list[Attempt]
    events: list[Mapping[str, Any]]

    @property
    def is_live(self) -> bool:
        """Return whether the client lives and no outcome is written yet."""
        return self.summary.owner is not None

    def to_json(self) -> dict[str, Any]:
        """Return the view as plain JSON values."""
        rows = {
            "workers": [one.to_json() for one in self.workers],
            "attempts": [one._asdict() for one in self.attempts],
        }
        return {**self.summary.to_json(), "status": dict(self.status), **rows}


class Viewer:
    """Looks at a run again and again; of the events only what is new is read."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._offset = 0
        self._told: list[dict[str, Any]] = []
        self._last: deque[dict[str, Any]] = deque(maxlen=_EVENTS)

    def look(self) -> View:
        """Return the current state of the run.

        What is missing or broken in it is left out.
        """
        new, self._offset = read_lines(self._paths.events, self._offset)
        self._told += [event for event in new if "attempt" in event]
        self._last += new
        summary = summarize(self._paths)
        return View(
            summary=summary,
            status=read_status(self._paths),
            workers=workers(self._paths, live=summary.owner is not None),
            attempts=attempts(self._told),
            events=list(self._last),
        )


def workers(paths: RunPaths, *, live: bool) -> list[Worker]:
    """Return the workers of the newest attempt, by rank.

    live: the run is active, so that their pulses mean something.
    """
    attempt = last_attempt(paths)
    if not attempt:
        return []
    owner = held(paths)
    local = live and owner is not None and owner.is_local
    return [_worker(paths, attempt, rank, live=live, local=local) for rank in _ranks(paths, attempt)]


def _ranks(paths: RunPaths, attempt: int) -> list[int]:
    names = [entry.stem for entry in paths.attempt(attempt).glob("rank-*.json")]
    names += [entry.name for entry in paths.attempt(attempt).glob("pulse-*")]
    numbers = {name.partition("-")[2] for name in names}
    return sorted(int(number) for number in numbers if number.isdecimal() and len(number) < _DIGITS)


def _worker(paths: RunPaths, attempt: int, rank: int, *, live: bool, local: bool) -> Worker:
    record, beat = read_json(paths.worker_record(attempt, rank)) or {}, read_pulse(paths.pulse(attempt, rank))
    phase, step = str(record.get("phase", "")), typed.whole(record.get("step")) or 0
    if beat is not None:
        step = max(beat.step, step)
        phase = phase if phase in _LEFT else beat.phase
    quiet = (time.monotonic_ns() - beat.moved_ns) / 1e9 if beat is not None and local and phase not in _LEFT else None
    return Worker(rank, phase, step, _doing(record, beat if live else None), quiet, record, beat)


def _doing(record: Mapping[str, Any], beat: Beat | None) -> str:
    error = record.get("error")
    if isinstance(error, Mapping):
        return f"{error.get('type')}: {str(error.get('message')).partition(chr(10))[0]}"
    if beat is not None and record.get("phase") not in _LEFT:
        if beat.hook:
            return f"in {beat.hook} of {beat.instance}"
        return "with the other ranks" if beat.waiting else "waiting for data" if beat.loading else ""
    return f"in {record.get('hook')} of {record['instance']}" if record.get("instance") else ""


def tell(event: Mapping[str, Any]) -> str:
    """Return an event in one line, without its time."""
    return " ".join(part.partition("\n")[0] for part in _parts(event) if part)


def _parts(event: Mapping[str, Any]) -> Iterator[str]:
    kind, reason = str(event.get("event")), str(event.get("reason", ""))
    number = event.get("attempt")
    match kind:
        case "decision":
            yield f"step {event.get('step')}: {event.get('decision')} by {event.get('plugin')}: {reason}"
        case "fault":
            yield f"plugin {event.get('plugin')} failed in {event.get('hook')} ({event.get('action')}): {reason}"
        case "attempt_start":
            yield f"attempt {number} with {event.get('workers')} workers"
        case "attempt_end":
            yield f"attempt {number} {how_it_ended(str(event.get('state')), reason)}"
        case "restart":
            yield f"starting again: {event.get('why') or reason}"
        case "straggler":
            yield reason
        case "resume" | "quarantine" | "set_aside" | "trusted":
            yield _of_checkpoint(kind, event)
        case "lease_takeover":
            yield f"taken over from {event.get('former')}: {reason}"
        case "tracker_outage" | "tracker_back":
            yield f"tracker {event.get('plugin')}: {reason}"
        case "request_refused":
            yield f"{event.get('file')} was refused: {reason}"
        case "outcome":
            yield how_it_ended(str(event.get("state")), reason)
        case _:
            rank = event.get("rank")
            yield kind.replace("_", " ")
            yield f"rank {rank}" if rank is not None else ""
            yield f"step {event.get('step')}" if event.get("step") is not None else ""
            yield f"- {reason}" if reason else ""


def _of_checkpoint(kind: str, event: Mapping[str, Any]) -> str:
    """Return what became of a checkpoint, or of an attempt through it."""
    path = str(event.get("checkpoint"))
    name, reasons = path.rpartition("/")[2], event.get("reasons")
    reason = str(reasons[0]) if isinstance(reasons, list) and reasons else "no reason is recorded"
    return {
        "resume": f"attempt {event.get('attempt')} resumes from step {event.get('step')} ({name})",
        "quarantine": f"{name} is damaged and was skipped: {reason}",
        "set_aside": f"{name} was moved aside",
        "trusted": f"{path} was trusted, though {reason}",
    }[kind]
