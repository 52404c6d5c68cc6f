"""Whether a failed attempt is followed by another, and after what wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from trainrun.errors import ExitCode
from trainrun.rundir.records import Cause, Failure, Outcome

if TYPE_CHECKING:
    from trainrun.recipe import Recipe

NO_PROGRESS = 3  # attempts in a row
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
_KEYS: Mapping[Cause, str] = {
    "crash": "max_restarts",
    "preemption": "max_preemptions",
    "node": "max_node_losses",
}
_SINGULAR: Mapping[Cause, str] = {"crash": "a crash", "preemption": "a preemption", "node": "the loss of a node"}


@dataclass(frozen=True)
class Verdict:
    """What comes after an attempt: another one after `wait` seconds, or the end with `outcome`."""

    outcome: Outcome
    again: bool
    wait: float = 0.0
    why: str = ""


@dataclass
class Budget:
    """Counts the attempts of one run. `restarts` is how many may follow the first for each cause.

    Progress of an attempt is a newer committed checkpoint. With `by_step`, unless checkpoints are written every fixed
    number of steps, it is also a step higher than any before. Three attempts in a row without progress end the run for
    good: more of the same would only burn the machine's time. So does a GPU that runs out of memory at the same step
    twice.

    An exception of the code is followed by another attempt only if two conditions hold. A newer checkpoint was
    committed in this attempt, and the exception was not met before at this step: training is reproducible, so the same
    error would come again.
    """

    restarts: Mapping[Cause, int]
    by_step: bool = True
    _used: dict[Cause, int] = field(default_factory=dict)
    _highest: int = 0
    _checkpoint: int = 0
    _idle: int = 0
    _memory_at: int | None = None
    _errors: dict[tuple[str | None, str | None, str | None, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, checkpoint: int = 0) -> Self:
        """Return the budgets that the recipe sets.

        checkpoint: the step of the run's newest one before the first attempt.
        """
        launch = recipe.launch
        restarts: dict[Cause, int] = {
            "crash": launch.max_restarts,
            "preemption": launch.max_preemptions,
            "node": launch.max_node_losses,
        }
        by_step = not isinstance(recipe.checkpoint.every, int) or recipe.checkpoint.resume == "never"
        return cls(restarts, by_step, _checkpoint=checkpoint)

    def judge(self, outcome: Outcome, checkpoint: int = 0) -> Verdict:
        """Decide what follows `outcome`. checkpoint: the step of the newest committed one, 0 for none."""
        cause = outcome.cause
        if cause is None:
            return Verdict(outcome, again=False)
        committed = checkpoint > self._checkpoint
        self._count(outcome, checkpoint)
        failure = outcome.first_failure
        if failure is not None and failure.origin == "code":
            if (attempt := self._met_before(outcome, failure)) is not None:
                met = f"attempt {attempt} raised the same at the same step"
                return Verdict(replace(outcome, reason=f"{outcome.reason}; {met}"), again=False, why=met)
            if not committed:
                return Verdict(outcome, again=False, why="the code raised, and no checkpoint was committed before")
        if (why := self._hopeless(outcome)) is not None:
            reason = f"{outcome.reason}; {why}"
            final = replace(outcome, exit_code=int(ExitCode.NO_PROGRESS), reason=reason, cause=None)
            return Verdict(final, again=False, why=why)
        used, allowed = self._used.get(cause, 0), self.restarts[cause]
        if used >= allowed:
            return Verdict(outcome, again=False, why=f"launch.{_KEYS[cause]} ({allowed}) is used up")
        self._used[cause] = used + 1
        wait = 0.0 if self._idle == 0 else min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._idle - 1))
        return Verdict(outcome, again=True, wait=wait, why=f"restart {used + 1} of {allowed} after {_SINGULAR[cause]}")

    def _met_before(self, outcome: Outcome, failure: Failure) -> int | None:
        """Return the attempt that met the same error at the same step.

        Notes this one.
        """
        key = (failure.type, failure.instance, failure.hook, failure.step)
        attempt = self._errors.get(key)
        self._errors[key] = outcome.attempt
        return attempt

    def _count(self, outcome: Outcome, checkpoint: int) -> None:
        progress = checkpoint > self._checkpoint or (self.by_step and outcome.step > self._highest)
        self._checkpoint = max(self._checkpoint, checkpoint)
        self._highest = max(self._highest, outcome.step)
        self._idle = 0 if progress else self._idle + 1

    def _hopeless(self, outcome: Outcome) -> str | None:
        if self._idle >= NO_PROGRESS:
            saved = "" if self.by_step else f", the newest checkpoint is of step {self._checkpoint}"
            return f"no progress in {NO_PROGRESS} attempts in a row, the furthest step was {self._highest}{saved}"
        failure = outcome.first_failure
        before, self._memory_at = self._memory_at, None
        if failure is None or not failure.out_of_memory:
            return None
        self._memory_at = failure.step
        return f"out of memory at step {failure.step} twice" if failure.step == before else None
