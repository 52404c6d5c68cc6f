"""A run in a few words, from its directory alone: running, dead or long over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainrun.rundir.files import read_json
from trainrun.rundir.lease import LeaseInfo, recorded
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome

DIED = "died"


@dataclass(frozen=True)
class Summary:
    """What `trainrun ps` shows of a run. `state` is ``died`` where the client is gone without an outcome."""

    run: str
    state: str
    step: int
    steps: int | None
    started: float | None
    ended: float | None
    exit_code: int | None
    reason: str | None
    owner: str | None

    def to_json(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return asdict(self)


def summarize(paths: RunPaths) -> Summary:
    """Read a run directory; whatever is missing or broken in it is left out."""
    status = read_json(paths.status) or {}
    outcome = read_outcome(paths)
    owner = recorded(paths)
    created = (read_json(paths.manifest) or {}).get("created")
    return Summary(
        run=paths.run_id,
        state=_state(outcome, owner, status),
        step=max(_whole(status.get("step")), outcome.step if outcome else 0),
        steps=_whole(status.get("steps")) or None,
        started=outcome.started if outcome else created,
        ended=outcome.ended if outcome else None,
        exit_code=outcome.exit_code if outcome else None,
        reason=outcome.reason if outcome else None,
        owner=str(owner) if owner and owner.is_alive and not outcome else None,
    )


def read_outcome(paths: RunPaths) -> Outcome | None:
    """How the run ended; None while it has not, or where nobody could write it down."""
    data = read_json(paths.outcome)
    try:
        return None if data is None else Outcome.from_json(data)
    except (TypeError, AttributeError):
        return None


def _state(outcome: Outcome | None, owner: LeaseInfo | None, status: Mapping[str, Any]) -> str:
    if outcome is not None:
        return outcome.state
    if owner is None or not owner.is_alive:
        return DIED
    return str(status.get("state", "starting"))


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
