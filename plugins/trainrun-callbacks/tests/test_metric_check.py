from __future__ import annotations

from typing import Any

import pytest

from trainrun import HookFailed, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 8, batch_size = 16, log_every = 4 }
evaluate = { every = 2, batch_size = 359 }

[plugins.metric-check]
"""


def expect(*names: str) -> str:
    return f"{RECIPE}expect = {list(names)}\n"


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_there_is_passed_over(run_recipe: RunRecipe, fork_recipe: ForkRecipe, workers: int) -> None:
    run: Any = run_recipe if workers == 1 else fork_recipe
    assert run(expect("train/loss", "train/*", "eval/acc*", "eval/loss")).outcome.step == 8


def test_a_missing_train_metric_is_told_at_the_first_log(run_recipe: RunRecipe) -> None:
    result = run_recipe(expect("train/los", "train/f*", "train/loss"), fails=True)
    assert "the first log has no metric 'train/los', 'train/f*'; it has: " in str(result.error)
    assert "train/loss" in str(result.error)
    assert list(result.series("train/loss")) == [4]


def test_a_missing_evaluation_metric_is_told_at_the_first_evaluation(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(expect("eval/f1"), fails=True)
    assert "the first evaluation of eval has no metric 'eval/f1'; it has: eval/accuracy, eval/loss" in str(result.error)
    assert not result.series("eval/loss")


class Vanishes:
    """Logs a metric once."""

    @hookimpl
    def on_step_start(self, run: Any, step: int) -> None:
        if step == 1:
            run.log("once", 1.0)


def test_nothing_is_decided_later(run_recipe: RunRecipe) -> None:
    assert run_recipe(expect("once"), Vanishes).outcome.step == 8


def test_a_resumed_run_does_not_look_again(fork_recipe: ForkRecipe) -> None:
    first = fork_recipe(expect("once"), Vanishes, overrides=["checkpoint.every=6", "train.steps=6"])
    assert fork_recipe(expect("once"), after=first).outcome.step == 8


def test_a_warning_does_not_end_the_run(run_recipe: RunRecipe) -> None:
    result = run_recipe(expect("train/los", "eval/f1") + 'on_missing = "warn"')
    assert result.outcome.step == 8
    log = result.paths.rank_log(0).read_text()
    assert log.count("has no metric") == 2


def test_something_must_be_expected(run_recipe: RunRecipe) -> None:
    with pytest.raises(Exception, match="expect"):
        run_recipe(expect())
    with pytest.raises(HookFailed, match="'no/such'"):
        run_recipe(expect("no/such"))
