from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trainrun.launch.budget import Budget
from trainrun.recipe import Recipe
from trainrun.rundir import Outcome
from trainrun.rundir.records import Cause, Failure


def budget_of(restarts: int) -> Budget:
    return Budget({"crash": restarts, "preemption": restarts, "node": restarts})


def failed(step: int, cause: Cause | None = "crash", **changes: Any) -> Outcome:
    return Outcome("failed", 1, "rank 0 raised", step=step, cause=cause, **changes)


def test_a_crash_with_progress_is_retried_at_once_until_the_budget_is_used_up() -> None:
    budget = budget_of(2)
    verdicts = [budget.judge(failed(step)) for step in (10, 20, 30)]
    assert [verdict.again for verdict in verdicts] == [True, True, False]
    assert [verdict.wait for verdict in verdicts] == [0.0, 0.0, 0.0]
    assert verdicts[-1].outcome.exit_code == 1
    assert "max_restarts (2)" in verdicts[-1].why


def test_three_attempts_without_progress_end_the_run_for_good() -> None:
    budget = budget_of(10)
    verdicts = [budget.judge(failed(step)) for step in (10, 10, 9, 10)]
    assert [verdict.again for verdict in verdicts] == [True, True, True, False]
    assert [verdict.wait for verdict in verdicts[:3]] == [0.0, 1.0, 2.0]
    assert verdicts[-1].outcome.exit_code == 93
    assert "the furthest step was 10" in verdicts[-1].outcome.reason


def test_a_crash_before_the_first_step_is_no_progress() -> None:
    budget = budget_of(10)
    verdicts = [budget.judge(failed(0)) for _ in range(3)]
    assert [verdict.outcome.exit_code for verdict in verdicts] == [1, 1, 93]


def test_a_newer_checkpoint_is_progress_even_at_a_lower_step() -> None:
    budget = budget_of(10)
    assert budget.judge(failed(50)).wait == 0
    assert budget.judge(failed(40), checkpoint=30).wait == 0
    assert budget.judge(failed(40), checkpoint=30).wait == 1.0


def test_each_cause_has_a_budget_of_its_own() -> None:
    budget = budget_of(1)
    assert budget.judge(failed(1)).again
    assert budget.judge(failed(2, cause="preemption")).again
    assert not budget.judge(failed(3)).again
    assert not budget.judge(failed(4, cause="preemption")).again


def test_an_end_without_a_cause_is_final() -> None:
    assert not budget_of(3).judge(failed(5, cause=None)).again


def test_a_gpu_out_of_memory_twice_at_one_step_is_final() -> None:
    budget, failure = (
        budget_of(10),
        Failure(0, "out of memory", "error", type="AcceleratorError", step=7, out_of_memory=True),
    )
    assert budget.judge(failed(7, first_failure=failure)).again
    verdict = budget.judge(failed(7, first_failure=failure))
    assert (verdict.again, verdict.outcome.exit_code) == (False, 93)
    assert "out of memory at step 7 twice" in verdict.outcome.reason


def test_no_progress_wins_over_a_budget_that_is_used_up() -> None:
    budget = budget_of(3)
    codes = [budget.judge(failed(5)).outcome.exit_code for _ in range(4)]
    assert codes == [1, 1, 1, 93]


def test_only_checkpoints_are_progress_where_they_are_written_as_training_goes_on() -> None:
    budget = Budget({"crash": 10}, by_step=False)
    ends = [(50, 0), (60, 0), (140, 100), (190, 100)]
    verdicts = [budget.judge(failed(step), checkpoint) for step, checkpoint in ends]
    assert [verdict.wait for verdict in verdicts] == [1.0, 2.0, 0.0, 1.0]


@pytest.mark.parametrize(("table", "by_step"), [({}, True), ({"every": "1h"}, True), ({"every": 5}, False)])
def test_steps_are_progress_unless_checkpoints_are_written_by_steps(table: Any, by_step: bool) -> None:
    """A run that is faster than the time between two checkpoints may have none, and get on all the same."""
    recipe = Recipe.from_data({"task": {"use": "x"}, "train": {"steps": 10}, "checkpoint": table})
    assert Budget.of(recipe).by_step is by_step


def test_crashes_before_the_first_checkpoint_end_the_run_however_far_they_come() -> None:
    budget = Budget({"crash": 10}, by_step=False)
    last = [budget.judge(failed(step)) for step in (50, 60, 70)][-1]
    assert last.outcome.exit_code == 93
    assert "the furthest step was 70, the newest checkpoint is of step 0" in last.outcome.reason


def test_what_was_saved_before_this_launch_is_no_progress_of_it() -> None:
    recipe = Recipe.from_data({"task": {"use": "x"}, "train": {"steps": 10}, "checkpoint": {"every": 5}})
    budget = Budget.of(recipe, checkpoint=300)
    assert not budget.by_step
    assert budget.judge(failed(310), checkpoint=300).wait == 1.0
    assert budget.judge(failed(310), checkpoint=305).wait == 0.0


ERROR = Failure(0, "rank 0 raised", "error", type="ValueError", instance="task", hook="training_step", origin="code")


def test_an_error_of_the_code_is_final_unless_a_checkpoint_was_committed() -> None:
    verdict = budget_of(10).judge(failed(50, first_failure=ERROR))
    assert (verdict.again, verdict.outcome.exit_code, verdict.outcome.reason) == (False, 1, "rank 0 raised")
    assert budget_of(10).judge(failed(50, first_failure=ERROR), checkpoint=40).again


def test_the_same_error_at_the_same_step_is_final() -> None:
    budget, at = budget_of(10), [replace(ERROR, step=step) for step in (50, 60, 60)]
    kept = [budget.judge(failed(one.step, first_failure=one), 40 + 10 * index) for index, one in enumerate(at)]
    assert [verdict.again for verdict in kept] == [True, True, False]
    assert kept[-1].outcome.reason == "rank 0 raised; attempt 1 raised the same at the same step"
    assert kept[-1].outcome.exit_code == 1


@pytest.mark.parametrize("change", [{"type": "KeyError"}, {"hook": "backward"}, {"instance": "other"}, {"step": 51}])
def test_another_error_or_step_is_not_the_same(change: dict[str, Any]) -> None:
    budget, first = budget_of(10), replace(ERROR, step=50)
    assert budget.judge(failed(50, first_failure=first), 10).again
    assert budget.judge(failed(50, first_failure=replace(first, **change)), 20).again


def test_a_failed_machine_keeps_its_budget() -> None:
    budget, failure = budget_of(10), replace(ERROR, type="DistNetworkError", origin="machine", step=7)
    assert [budget.judge(failed(7, first_failure=failure)).again for _ in range(3)] == [True, True, True]
