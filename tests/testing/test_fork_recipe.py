from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, RankError

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 3, batch_size = 16, log_every = 1 }
"""


class Counter:
    """Counts steps, over attempts too."""

    steps = 0
    rank = -1

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        Counter.steps += 1
        Counter.rank = run.world.rank

    def state_dict(self) -> dict[str, Any]:
        return {"steps": Counter.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        Counter.steps = state["steps"]


class Breaks:
    """Fails on one rank."""

    @hookimpl
    def on_step_start(self, run: Any, step: int) -> None:
        if step == 2 and run.world.rank == 1:
            raise ValueError("as asked")


def told() -> tuple[int, int]:
    return Counter.rank, Counter.steps


def test_trains_on_two_ranks(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, Counter, report=told)
    assert result.outcome.state == "finished"
    assert result.reports == [(0, 3), (1, 3)]
    assert list(result.series("train/loss")) == [1, 2, 3]
    assert Counter.steps == 0  # of this process


def test_goes_on_after_another_run(fork_recipe: ForkRecipe) -> None:
    first = fork_recipe(RECIPE, Counter, overrides=["checkpoint.at_end=true"], report=told)
    second = fork_recipe(RECIPE.replace("3,", "5,"), Counter, after=first, report=told)
    assert second.paths == first.paths
    assert second.reports == [(0, 5), (1, 5)]
    assert list(second.series("train/loss")) == [1, 2, 3, 4, 5]


def test_the_error_is_that_of_the_rank_which_raised(fork_recipe: ForkRecipe) -> None:
    with pytest.raises(RankError, match="ValueError: as asked"):
        fork_recipe(RECIPE, Breaks)
    result = fork_recipe(RECIPE, Breaks, fails=True)
    assert result.outcome.state == "failed"
    assert "ValueError: as asked" in result.outcome.reason


def test_a_run_that_was_to_fail_must(fork_recipe: ForkRecipe) -> None:
    with pytest.raises(AssertionError, match="was expected to fail, and it finished"):
        fork_recipe(RECIPE, fails=True)
