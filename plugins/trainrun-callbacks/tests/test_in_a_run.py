"""The callbacks as they are used: installed, named in a recipe, and run by trainrun."""

from __future__ import annotations

import pytest

from trainrun import RecipeError, hookimpl
from trainrun.testing import LaunchRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 8, batch_size = 16, log_every = 1 }
evaluate = { every = 2, batch_size = 359 }
scheduler = { name = "linear", warmup = 2 }
"""
THRESHOLD = """
[plugins.early-stopping]
monitor = "eval/loss"
threshold = 1000.0
"""


def test_early_stopping_stops_all_ranks_and_says_why(launch_recipe: LaunchRecipe) -> None:
    result = launch_recipe(RECIPE + THRESHOLD)
    assert result.outcome.state == "stopped"
    assert result.outcome.step == 2
    assert "as good as the threshold 1000" in result.outcome.reason
    (decision,) = [event for event in result.events if event.get("decision") == "stop"]
    assert (decision["plugin"], decision["ranks"]) == ("early-stopping", [0, 1])


def test_a_metric_that_the_task_does_not_return_is_found_before_the_run(launch_recipe: LaunchRecipe) -> None:
    with pytest.raises(RecipeError, match="'eval/los': there is no such metric; did you mean 'eval/loss'"):
        launch_recipe(RECIPE + THRESHOLD.replace("eval/loss", "eval/los"))


class MayAdd:
    """Could add metrics to an evaluation, so that their names are known only when it was made."""

    @hookimpl
    def evaluation_metrics(self) -> dict[str, float]:
        return {}


def test_a_metric_that_is_not_there_fails_the_run_and_is_not_tried_again(launch_recipe: LaunchRecipe) -> None:
    recipe = RECIPE + THRESHOLD.replace("eval/loss", "eval/los")
    ended = launch_recipe(recipe, MayAdd, overrides=["launch.max_restarts=3"]).outcome
    assert (ended.state, ended.exit_code, ended.attempt) == ("failed", 2, 1)
    assert "there is no such metric; this evaluation has: eval/accuracy, eval/loss" in ended.reason


def test_an_unknown_split_vetoes_the_launch(launch_recipe: LaunchRecipe) -> None:
    with pytest.raises(RecipeError, match="'train/loss' names no evaluated split; there is eval/NAME"):
        launch_recipe(RECIPE + THRESHOLD.replace("eval/loss", "train/loss"))


def test_options_are_checked_before_anything_is_started(run_recipe: RunRecipe) -> None:
    with pytest.raises(RecipeError, match=r"patience.*at least 1|patience.*positive"):
        run_recipe(RECIPE + THRESHOLD + "patience = 0")


def test_the_learning_rate_is_that_of_the_logged_update(run_recipe: RunRecipe) -> None:
    rates = run_recipe(RECIPE + "optimizer.lr = 0.01", "learning-rate-monitor").series("lr/0")
    assert list(rates) == list(range(1, 9))
    assert rates[3] == max(rates.values()) == pytest.approx(0.01)


def test_evaluations_are_timed(run_recipe: RunRecipe) -> None:
    seconds = run_recipe(RECIPE, "epoch-timer").series("seconds/eval")
    assert seconds
    assert all(value > 0 for value in seconds.values())
