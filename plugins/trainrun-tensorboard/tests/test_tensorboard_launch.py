"""A training of two workers whose recipe names the tracker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.testing import LaunchRecipe

RECIPE = """
run = { name = "digits" }
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 6, batch_size = 16, log_every = 2 }
evaluate = { every = 3, batch_size = 359 }

[plugins.tensorboard]
interval = 0.1
"""


@pytest.mark.long
def test_a_launch_is_in_the_event_files(launch_recipe: LaunchRecipe, read: Callable[[Path], dict[str, Any]]) -> None:
    result = launch_recipe(RECIPE)
    assert result.outcome.state == "finished"
    found = read(result.paths.root / "tensorboard")
    for name in ("train/loss", "eval/accuracy"):
        points = {step: value for step, _, value in found["scalars"][name]}
        assert points == pytest.approx(result.series(name), rel=1e-6)
    assert sorted(result.series("train/loss")) == [2, 4, 6]
    assert (found["hparams"]["train.steps"], found["status"]) == (6, 1)
    (outcome,) = found["texts"]["outcome"]
    assert outcome.startswith("**finished** at step 6, exit code 0")
    assert f"| train/loss | {result.series('train/loss')[6]:.6g} |" in outcome
