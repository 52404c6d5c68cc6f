"""When a training saves a checkpoint, and what it does when a save has failed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from trainrun.checkpoint import scan
from trainrun.errors import TrainingError
from trainrun.recipe import duration
from trainrun.recipe.model import CheckpointTable
from trainrun.rundir import Stop
from trainrun.worker import applying
from trainrun.worker.checkpoint.finite import Losses
from trainrun.worker.checkpoint.saver import SOURCE, Saved, Saver, folder
from trainrun.worker.decisions import Decision, DecisionKind, Decisions

if TYPE_CHECKING:
    from trainrun.worker.session import Session

_NEVER = 0
_EVERY = "checkpoint.every"
_LONG = 5.0  # seconds of waiting for an earlier save, from which on training is reported as held up


class Saving:
    """The policy of the recipe's [checkpoint] table for one worker; equal on all ranks.

    saved_at is the step of the newest checkpoint, made or being made; `wanted` is the reason of a request for one.
    """

    def __init__(self, table: CheckpointTable, saver: Saver, grace: float, rank: int) -> None:
        self.saved_at = -1
        self.wanted: str | None = None
        self.losses = Losses()
        self._saver = saver
        self._every = table.every if isinstance(table.every, int) else _NEVER
        # One rank looks at its clock and informs the others by a decision: clocks differ, and asking all costs a step.
        interval = duration.seconds(table.every) if isinstance(table.every, str) and table.every != "never" else None
        self._timed = interval is not None
        self._interval = interval if interval is not None and rank == 0 else math.inf
        self._next = monotonic() + self._interval
        self._at_end = table.at_end
        self._background = table.background
        self._failures = 0
        self._allowed = table.max_failures
        self._grace = grace
        self._slow = False
        self._slow_storage = False

    @property
    def saves(self) -> bool:
        """Whether the recipe asks for checkpoints; votes and requests may, in any case."""
        return self._at_end or self._every != _NEVER or self._timed

    def is_due(self, step: int) -> bool:
        """Return whether to save at the end of `step`."""
        return self.wanted is not None or (self._every != _NEVER and step % self._every == 0)

    def post_overdue(self, decisions: Decisions) -> None:
        """Ask for a checkpoint if the recipe's time between two is over."""
        if monotonic() >= self._next:
            self._next = monotonic() + self._interval
            decisions.post("checkpoint", SOURCE, "every", f"{_EVERY} = {self._interval:g} s")

    def at_step(self, session: Session) -> None:
        """Save the step just made.

        All decisions that were posted so far are applied before, so that none is lost.
        """
        state = session.state
        reason, self.wanted = self.wanted or f"{_EVERY} = {self._every}", None
        self._next = monotonic() + self._interval
        if self._at_end and state.step == state.total_steps:
            return  # the last one comes after the last evaluation
        applying.settle(session)
        self.wanted = None
        if self.saved_at == state.step:
            return
        session.require_replicas()
        self._announce(session)
        if self._background:
            self.saved_at = state.step
            with _shown(session):
                waited = self._saver.save(session, reason)
            session.logger.info("checkpoint copied", step=state.step, training_waited=round(waited, 4))
            if waited > _LONG and not self._slow_storage:
                self._slow_storage = True
                session.warn(
                    f"training waited {waited:.3g} s at step {state.step} for the save before to end: saves take longer"
                    " than the time between them; raise checkpoint.every, or use faster storage"
                )
        else:
            with _shown(session):
                saved = self._saver.save_now(session, reason)
            self._ended(session, saved)

    def at_end(self, session: Session) -> None:
        """Wait for a running save when training ends; save the last step.

        It is saved if it was not before. Training has ended or was stopped. Raises TrainingError if all steps were made
        and the last of them could not be saved.
        """
        state = session.state
        with _shown(session):
            self._saver.wait(session)
        applying.settle(session)
        if not (self._at_end or self.wanted) or self.saved_at == state.step:
            return
        complete = state.stop is None
        reason = "training has ended" if state.stop is None else f"training was stopped: {state.stop.reason}"
        session.require_replicas()
        self._announce(session)
        with _shown(session):
            saved = self._saver.save_now(session, self.wanted or reason)
        self._ended(session, saved)
        if saved.problem is not None and complete and saved.finite:
            raise TrainingError(f"the checkpoint of step {saved.step}, the last, could not be saved: {saved.problem}")

    def committed(self, session: Session, path: Path, seconds: float | None = None) -> None:
        """Note that a checkpoint was published; the same on all ranks."""
        self._failures = 0
        if session.hooks.on_checkpoint_saved:
            session.hooks.on_checkpoint_saved(str(path))
        if seconds is not None and seconds > self._grace and not self._slow:
            self._slow = True
            session.warn(
                f"a save took {seconds:.3g} s, longer than launch.grace ({self._grace:g} s): a run that is stopped"
                " may be killed before its last checkpoint is saved; raise launch.grace"
            )

    def ended(self, session: Session, decision: Decision) -> None:
        """Apply the end of a save in the background.

        All ranks learn of it now.
        """
        if decision.kind == "saved":
            self.committed(session, session.state.paths.checkpoints / decision.hook, decision.data["seconds"])
        else:
            self.failed(session, decision.data["step"], decision.reason, finite=decision.data["finite"])

    def failed(self, session: Session, step: int, reason: str, *, finite: bool) -> None:
        """Note that a save has failed; the same on all ranks.

        After too many in a row training stops. Raises TrainingError for one that was not finite, unless
        `train.nonfinite` is "warn".
        """
        if not finite:
            self._refused(session, step, reason)
            return
        self._failures += 1
        self.saved_at = min(self.saved_at, step - 1)
        session.warn(f"the checkpoint of step {step} was not saved: {reason}")
        if session.hooks.on_checkpoint_failed:
            session.hooks.on_checkpoint_failed(str(session.state.paths.checkpoints / folder(step)), reason)
        if self._failures >= self._allowed:
            times = f"{self._failures} saves in a row" if self._failures > 1 else "a save"
            session.stop(Stop(f"{times} failed (checkpoint.max_failures): {reason}", SOURCE, "saves"))

    def _refused(self, session: Session, step: int, reason: str) -> None:
        self.saved_at = max(self.saved_at, step)  # the same step would be no better a second time
        checkpoints = session.state.paths.checkpoints
        last = next((found for found in scan(checkpoints) if found.problem is None), None)
        kept = "there is no good checkpoint" if last is None else f"the last good checkpoint is {last.path.name}"
        message = f"the checkpoint of step {step} was not saved, because what it would keep is {reason}; {kept}"
        if session.hooks.on_checkpoint_failed:
            session.hooks.on_checkpoint_failed(str(checkpoints / folder(step)), reason)
        if session.state.recipe.train.nonfinite == "fail":
            raise TrainingError(
                f'{message}; lower the learning rate or check the data, or set train.nonfinite = "warn" to continue'
            )
        session.warn(message)

    def _announce(self, session: Session) -> None:
        if session.hooks.on_checkpoint_start:
            session.hooks.on_checkpoint_start(str(session.state.paths.checkpoints / folder(session.state.step)))

    def _ended(self, session: Session, saved: Saved) -> None:
        """Apply the end of a save that training has waited for.

        All ranks learn of it here, without a decision.
        """
        if saved.path is not None:
            self.saved_at = saved.step
            session.record(decision(saved, session.state.step))
            self.committed(session, saved.path, saved.seconds)
        else:
            session.record(decision(saved, session.state.step))
            self.failed(session, saved.step, saved.problem or "", finite=saved.finite)


@contextmanager
def _shown(session: Session) -> Iterator[None]:
    """Show in the pulse that training waits for a save."""
    pulse, phase = session.state.pulse, session.state.phase
    pulse.enter("saving")
    try:
        yield
    finally:
        pulse.enter(phase)


def decision(saved: Saved, step: int) -> Decision:
    """Return the end of a save as a decision.

    The ranks and the events receive it as such.
    """
    kind: DecisionKind = "unsaved" if saved.path is None else "saved"
    reason = f"after {saved.seconds:.3f} s" if saved.problem is None else saved.problem
    data = {"step": saved.step, "seconds": saved.seconds, "finite": saved.finite}
    return Decision(kind, SOURCE, folder(saved.step), reason, step=step, origin="saves", data=data)


def tell(decisions: Decisions, saved: Saved) -> None:
    """Post the end of a save in the background. Rank 0 calls it.

    All ranks learn of it at the same step.
    """
    one = decision(saved, 0)
    decisions.post(one.kind, one.plugin, one.hook, one.reason, origin=one.origin, data=one.data)
