from __future__ import annotations

from trainrun_callbacks.evaluation_timer import EvaluationTimer, EvaluationTimerOptions

from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 4 }
train = { steps = 8, batch_size = 16 }
evaluate = { batch_size = 180 }

[plugins.evaluation-timer]
every = 1e-6
"""


def test_two_ranks_evaluate_at_the_steps_that_the_clock_gives(fork_recipe: ForkRecipe) -> None:
    evaluated = list(fork_recipe(RECIPE).series("eval/accuracy"))
    # Always overdue: asked for at the end of a step, and made two steps later.
    assert len(evaluated) >= 3
    assert evaluated == sorted(set(evaluated))
    assert evaluated[-1] == 8
    never = fork_recipe(RECIPE, overrides=['plugins.evaluation-timer.every="1h"'])
    assert list(never.series("eval/accuracy")) == [8]


def test_every_evaluation_restarts_the_clock() -> None:
    now = 0.0
    plugin = EvaluationTimer(EvaluationTimerOptions.from_table({"every": "10s"}), lambda: now)
    now = 100.0
    plugin.on_train_start()
    now = 109.9
    assert plugin.should_evaluate() is None
    now = 110.0
    assert plugin.should_evaluate() == "10 s have passed since the last evaluation"
    assert plugin.should_evaluate() is None
    now = 119.0
    plugin.on_evaluated()
    now = 128.0
    assert plugin.should_evaluate() is None
    now = 129.0
    assert plugin.should_evaluate() is not None
