"""The plugins that change training, together, in a real launch that is told to stop within an evaluation."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.testing import LaunchRecipe
from trainrun.worker.checkpoint.reader import read_tensors

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8, dropout = 0.0 }
train = { steps = 8, batch_size = 16, log_every = 2, nonfinite = "warn" }
evaluate = { every = 6, batch_size = 8 }
optimizer = { name = "sgd", lr = 0.5 }

[plugins.ema]
decay = 0.9

[plugins.weight-averaging]
start = 2
evaluate = "model"

[plugins.gradient-skipping]
threshold = 1e6

[plugins.spike-guard]
min_history = 4
"""


class TermWithin:
    """Spoils step 3, writes down the weights after step 6, and gets SIGTERM in its evaluation, once."""

    @hookimpl
    def on_backward_end(self, run: Any) -> None:
        if run.step == 3:
            next(iter(run.module.parameters())).grad.fill_(float("nan"))

    @hookimpl(ranks="zero")
    def on_update_end(self, run: Any) -> None:
        if run.step == 6:
            torch.save(run.module.state_dict(), run.paths.root / "weights.pt")

    @hookimpl(ranks="zero")
    def on_evaluation_batch_start(self, run: Any, index: int) -> None:
        if run.attempt == 1 and run.step == 6 and index == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.timeout(120)
def test_a_checkpoint_after_a_broken_off_evaluation_holds_the_weights_and_is_gone_on_from(
    launch_recipe: LaunchRecipe,
) -> None:
    result = launch_recipe(RECIPE, TermWithin, overrides=["checkpoint.at_end=true"])
    assert (result.outcome.state, result.outcome.step) == ("finished", 8)
    stops = [event for event in result.events if event.get("decision") == "stop"]
    assert [(stop["plugin"], stop["step"]) for stop in stops] == [("SIGTERM", 6)]
    assert list(result.series("eval/loss")) == [6, 8]
    (skip,) = [event for event in result.events if event.get("decision") == "skip"]
    assert (skip["plugin"], skip["step"]) == ("gradient-skipping", 3)
    assert result.series("train/skipped") == {2: 0, 4: 1, 6: 1, 8: 1}
    assert result.series("train/spikes") == {2: 0, 4: 0, 6: 0, 8: 0}
    folder = result.paths.checkpoints / "step-000006"
    weights, model = torch.load(result.paths.root / "weights.pt", weights_only=True), read_tensors(folder, "model/")
    assert weights.keys() == model.keys()
    assert all(torch.equal(weights[name], value) for name, value in model.items())
    states = {name: torch.load(folder / "plugins" / f"{name}.pt", weights_only=True) for name in _STATES}
    assert [states[name]["count"] for name in ("ema", "weight-averaging")] == [5, 4]
    for name in ("ema", "weight-averaging"):
        assert states[name]["average"].keys() == model.keys()
        assert not all(torch.equal(value, model[key]) for key, value in states[name]["average"].items())
    assert states["gradient-skipping"] == {"skipped": 1, "in_a_row": 0}
    assert len(states["spike-guard"]["before"]) == 6


_STATES = ("ema", "weight-averaging", "gradient-skipping", "spike-guard")
