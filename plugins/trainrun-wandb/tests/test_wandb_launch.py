"""A training of two workers whose recipe names the tracker and the histograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainrun import RecipeError
from trainrun.testing import LaunchRecipe

RECIPE = """
run = { name = "digits" }
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 6, batch_size = 16, log_every = 2 }
evaluate = { every = 3, batch_size = 359 }

[plugins.wandb-watch]
every = 4
"""
WANDB = """
[plugins.wandb]
mode = "offline"
system = false
interval = 0.1
"""


@pytest.mark.long
@pytest.mark.usefixtures("packages")
def test_a_launch_is_in_the_offline_run(launch_recipe: LaunchRecipe, read: Callable[..., list[dict[str, Any]]]) -> None:
    result = launch_recipe(RECIPE + WANDB)
    assert result.outcome.state == "finished"
    (part,) = read(result.paths)
    rows = {row["_step"]: row for row in part["rows"]}
    losses = {step: row["train/loss"] for step, row in rows.items() if "train/loss" in row}
    assert losses == pytest.approx(result.series("train/loss"))
    assert sorted(losses) == [2, 4, 6]
    assert {step: row["eval/loss"] for step, row in rows.items() if "eval/loss" in row} == result.series("eval/loss")
    assert [step for step, row in rows.items() if any(name.startswith("gradients/") for name in row)] == [4]
    assert (part["run"]["project"], part["config"]["train.steps"], part["exit"]) == ("digits", 6, 0)
    assert part["summary"]["train/loss"] == result.series("train/loss")[6]


def test_histograms_that_nothing_sends_are_refused(launch_recipe: LaunchRecipe) -> None:
    with pytest.raises(RecipeError, match=r"wandb-watch.*nothing would send its histograms"):
        launch_recipe(RECIPE)
