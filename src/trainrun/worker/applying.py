"""Carry out what plugins, signals and trainrun itself have decided, on all ranks at the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainrun.rundir import Stop
from trainrun.worker.decisions import Decision

if TYPE_CHECKING:
    from trainrun.worker.session import Session

# Kinds of decisions as they are carried out; the ends of saves in the order in which they came.
_ORDER = (("warn",), ("disable",), ("saved", "unsaved"), ("checkpoint",), ("evaluate",), ("stop",))
_LATE = {"warn", "disable", "lost"}
_ROUNDS = 100  # a decision whose effect posts another one, for ever, is cut off here


def apply(session: Session, decisions: Sequence[Decision]) -> None:
    """Apply decisions that all ranks apply now.

    The same decision, taken on several ranks, counts once.
    """
    groups = _by_key([decision for decision in decisions if not _is_met(session, decision)])
    session.applied |= {group[0].key: session.state.decisions.step for group in groups}
    for kinds in _ORDER:
        matching = [group for group in groups if group[0].kind in kinds]
        for group in matching:
            session.record(*group)
        if matching:
            _carry_out(session, kinds[0], [group[0] for group in matching])


def settle(session: Session) -> None:
    """Apply everything that any rank has posted so far. Call it on all ranks alike."""
    for _ in range(_ROUNDS):
        session.raise_fatal()
        decisions = session.state.decisions.settle()
        if not decisions:
            return
        apply(session, decisions)


def record_late(session: Session) -> None:
    """Record the faults since training ended.

    No other request has an effect then.
    """
    session.raise_fatal()
    late = [decision for decision in session.state.decisions.settle() if decision.kind in _LATE]
    for group in _by_key(late):
        session.record(*group)


def _is_met(session: Session, decision: Decision) -> bool:
    """Return whether a posted request for a checkpoint has been met.

    It has if another rank posted it earlier and it was carried out since.
    """
    return decision.kind == "checkpoint" and decision.step < session.applied.get(decision.key, 0)


def _carry_out(session: Session, kind: str, decisions: Sequence[Decision]) -> None:
    first = decisions[0]
    if kind == "disable":
        for decision in decisions:
            session.hooks.disable(decision.plugin)
        session.look_at_plan()
    elif kind == "saved":
        for decision in decisions:
            session.saving.ended(session, decision)
    elif kind == "checkpoint":
        session.saving.wanted = f"{first.plugin}: {first.reason}"
    elif (
        kind == "evaluate" and session.evaluated_at != session.state.step
    ):  # otherwise these weights were evaluated just now
        session.evaluate(session)
        settle(session)
    elif kind == "stop":
        session.stop(Stop(first.reason, first.plugin, first.origin))


def _by_key(decisions: Sequence[Decision]) -> list[list[Decision]]:
    """Group the same decisions, taken on several ranks."""
    groups: dict[tuple[str, str, str], list[Decision]] = {}
    for decision in decisions:
        groups.setdefault(decision.key, []).append(decision)
    return list(groups.values())
