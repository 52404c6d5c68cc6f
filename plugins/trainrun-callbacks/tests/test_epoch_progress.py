from __future__ import annotations

import pytest

from trainrun.testing import ForkRecipe, RunRecipe

# 1,438 images an epoch: updates of 500, 500 and 438, each of several micro-batches.
RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 5, batch_size = 500, micro_batch_size = 50, log_every = 1 }
evaluate.splits = []
"""
EXPECTED = {1: 500 / 1438, 2: 1000 / 1438, 3: 1.0, 4: 1 + 500 / 1438, 5: 1 + 1000 / 1438}


def test_the_epoch_is_a_fraction_under_accumulation(run_recipe: RunRecipe) -> None:
    assert run_recipe(RECIPE, "epoch-progress").series("epoch") == pytest.approx(EXPECTED)


def test_it_goes_on_after_a_resume_on_two_ranks(fork_recipe: ForkRecipe) -> None:
    first = fork_recipe(RECIPE, "epoch-progress", overrides=["train.steps=2", "checkpoint.at_end=true"])
    second = fork_recipe(RECIPE, "epoch-progress", after=first)
    assert second.series("epoch") == pytest.approx(EXPECTED)


def test_only_logged_steps_have_it(run_recipe: RunRecipe) -> None:
    found = run_recipe(RECIPE, "epoch-progress", overrides=["train.log_every=3"]).series("epoch")
    assert found == pytest.approx({3: EXPECTED[3], 5: EXPECTED[5]})
