"""A run in a few words, from its directory alone: running, dead or long over."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from trainrun.rundir import typed, untrusted
from trainrun.rundir.files import decode, read_json
from trainrun.rundir.lease import LeaseInfo, held, recorded
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome

DIED = "died"

_ENDED = {"finished", "stopped", "failed", "interrupted", "terminated"}
_YOUNG = 10.0  # seconds from the making of a run directory in which its client may not have claimed it yet
_DIGITS = 10  # of the number of an attempt
_TAIL = 8192  # bytes at the end of a file in which its last line is looked for


@dataclass(frozen=True)
class Summary:
    """What `trainrun ps` shows of a run.

    `state` is ``died`` if the client is gone without an outcome. `attempt` is the newest attempt, 0 before the first.
    `reason` is why the run ended, or how the client was lost.
    """

    run: str
    state: str
    step: int
    steps: int | None
    started: float | None
    ended: float | None
    exit_code: int | None
    reason: str | None
    owner: str | None
    attempt: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return asdict(self)


def summarize(paths: RunPaths) -> Summary:
    """Read a run directory.

    What is missing or broken in it is left out.
    """
    status = read_status(paths)
    owner = recorded(paths)
    gone = owner.gone(time.time()) if owner else None
    outcome = read_outcome(paths)  # after the owner: one that ends meanwhile has written it before
    created = typed.moment((read_json(paths.manifest) or {}).get("created"))
    attempt = last_attempt(paths)
    alive = owner is not None and gone is None
    return Summary(
        run=paths.run_id,
        state=outcome.state if outcome else _running(paths, status, attempt) if alive else DIED,
        step=max(_whole(status.get("step")), outcome.step if outcome else 0),
        steps=_whole(status.get("steps")) or None,
        started=outcome.started if outcome else created,
        ended=outcome.ended if outcome else None,
        exit_code=outcome.exit_code if outcome else None,
        reason=outcome.reason if outcome else _loss(owner, gone),
        owner=str(owner) if alive and not outcome else None,
        attempt=attempt,
    )


def damage(paths: RunPaths) -> str | None:
    """Return the first of a run's own files that is damaged.

    A damaged file is there and cannot be what it should be. Returns None if all can.
    """
    for path in (paths.manifest, paths.status, paths.outcome):
        if os.path.lexists(path) and read_json(path) is None:
            return f"{path.name} cannot be read"
    if os.path.lexists(paths.outcome) and read_outcome(paths) is None:
        return f"{paths.outcome.name} is no outcome"
    for path in (paths.events, paths.metrics):
        if os.path.lexists(path) and not path.is_file():
            return f"{path.name} is not a plain file"
    return None


def read_status(paths: RunPaths) -> dict[str, Any]:
    """Return what rank 0 last wrote.

    Values of a wrong type are left out.
    """
    found = read_json(paths.status) or {}
    checks = {
        **dict.fromkeys(("step", "steps", "epoch", "attempt"), typed.whole),
        **dict.fromkeys(("samples_per_second",), typed.number),
        **dict.fromkeys(("updated",), typed.moment),
        **dict.fromkeys(("state",), typed.text),
        **dict.fromkeys(("metrics",), typed.metrics),
        **dict.fromkeys(("cost",), _costs),
        **dict.fromkeys(("clock",), _clock),
    }
    kept = {name: check(found[name]) for name, check in checks.items() if name in found}
    return {**found, **{name: kept.get(name) for name in checks if name in found}}


def _costs(value: Any) -> list[dict[str, Any]]:
    kinds = {
        **dict.fromkeys(("total_seconds", "max_seconds"), typed.number),
        **dict.fromkeys(("calls",), typed.whole),
        **dict.fromkeys(("instance", "hook"), typed.text),
    }
    return [row for row in typed.rows(value) if all(kind(row.get(name)) is not None for name, kind in kinds.items())]


def _clock(value: Any) -> dict[str, Any] | None:
    """Return seconds and counts of an attempt's steps and evaluations.

    Returns None if one of them is no number.
    """
    found = value if isinstance(value, dict) else {}
    every = found.get("evaluate_every")
    kept = {
        **{name: typed.whole(found.get(name)) for name in ("steps", "evaluations")},
        **{name: typed.number(found.get(name)) for name in ("training", "evaluation")},
    }
    return (
        None if None in kept.values() else {**kept, "evaluate_every": every if every == "epoch" else typed.whole(every)}
    )


def is_over(paths: RunPaths) -> bool:
    """Return whether nothing more is to be expected of the run.

    Its client has ended, or is gone.
    """
    if held(paths) is not None:
        return False
    with suppress(OSError):
        unclaimed = not paths.lease.exists() and read_outcome(paths) is None
        return not (unclaimed and time.time() - paths.root.stat().st_mtime < _YOUNG)
    return True


def read_outcome(paths: RunPaths) -> Outcome | None:
    """Return how the run ended.

    Returns None if it has not, or if no outcome was written.
    """
    data = read_json(paths.outcome)
    try:
        return None if data is None else Outcome.from_json(data)
    except (TypeError, AttributeError):
        return None


def last_attempt(paths: RunPaths) -> int:
    """Return the number of the newest attempt; 0 before the first."""
    try:
        names = [entry.name for entry in paths.attempts.iterdir()]
        return max((int(name) for name in names if name.isdecimal() and len(name) < _DIGITS), default=0)
    except OSError:
        return 0


class Attempt(NamedTuple):
    """One attempt, according to the events. `restart` is why another followed.

    Times are in seconds since the epoch; what has not happened is None.
    """

    number: int
    started: float | None = None
    ended: float | None = None
    state: str | None = None
    reason: str | None = None
    restart: str | None = None


def attempts(events: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """Return the attempts that the events of a run describe."""
    found: dict[int, Attempt] = {}
    for event in events:
        number = typed.whole(event.get("attempt"))
        if number is not None:
            found[number] = _told(found.get(number, Attempt(number)), event)
    return [found[number] for number in sorted(found)]


def _told(attempt: Attempt, event: Mapping[str, Any]) -> Attempt:
    match event.get("event"):
        case "attempt_start":
            return attempt._replace(started=typed.moment(event.get("time")))
        case "attempt_end":
            ended, reason = typed.moment(event.get("time")), typed.text(event.get("reason"))
            return attempt._replace(ended=ended, state=typed.text(event.get("state")), reason=reason)
        case "restart":
            return attempt._replace(restart=typed.text(event.get("why")) or typed.text(event.get("reason")))
    return attempt


def _running(paths: RunPaths, status: Mapping[str, Any], attempt: int) -> str:
    """Return what a run does whose client lives."""
    state = str(status.get("state", "starting"))
    if _whole(status.get("attempt", attempt)) < attempt:  # rank 0 has not written since
        return "starting"
    if state in _ENDED:
        # After the outcome of an earlier launch: the run was taken up again.
        return {"restart": "restarting", "outcome": "starting"}.get(str(_last_event(paths).get("event")), "ending")
    return state


def _last_event(paths: RunPaths) -> dict[str, Any]:
    with suppress(OSError, IndexError), os.fdopen(untrusted.open_plain(paths.events), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return decode(file.read(_TAIL).splitlines()[-1]) or {}
    return {}


def _loss(owner: LeaseInfo | None, gone: str | None) -> str | None:
    if owner is None or gone is None:
        return None
    return f"its launcher (pid {owner.pid} on {owner.host}) is gone and left no outcome"


def _whole(value: Any) -> int:
    return typed.whole(value) or 0
