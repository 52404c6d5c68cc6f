from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from trainrun_callbacks.spike_guard import SpikeGuard, SpikeGuardOptions

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
train = { steps = 12, batch_size = 4, log_every = 3, nonfinite = "warn" }
evaluate = { splits = [] }
data = { shuffle = false }
optimizer = { name = "sgd", lr = 1e-6 }
checkpoint = { background = false }
"""
SAVES = ["checkpoint.at_end=true"]


class Losses:
    """The loss of step n is n % 2, but where `at` says otherwise, on rank 0 alone."""

    def __init__(self, at: dict[int, float] | None = None) -> None:
        self.at = at or {}
        self.skipped: list[int] = []

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return torch.zeros(48, 1) if split == "train" else None

    @hookimpl
    def training_step(self, run: Any, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        value = float(run.step % 2)
        if run.world.rank == 0:
            value = self.at.get(run.step, value)
        loss: torch.Tensor = model(batch).mean() * 0.0 + value
        return loss

    @hookimpl
    def on_update_end(self, run: Any, skipped: str | None) -> None:
        if skipped is not None:
            self.skipped.append(run.step)


def guard(**options: Any) -> SpikeGuard:
    return SpikeGuard(SpikeGuardOptions(**{"min_history": 4, "window": 8, **options}))


def reasons(result: Any) -> list[str]:
    lines = [json.loads(line) for line in result.paths.rank_log(0).read_text().splitlines()]
    return [line["event"] for line in lines if line.get("plugin") == "spike-guard"]


def test_spikes_are_told_at_the_log_and_counted(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, guard(), task=Losses({2: 50.0, 8: 100.0, 10: math.nan}))
    assert reasons(result) == [
        "a loss spike: the loss of step 8 is 100, and the median of the 7 before is 1 ± 0",
        "a loss spike: the loss of step 10 is nan",
    ]
    assert result.series("train/spikes") == {3: 0, 6: 0, 9: 1, 12: 2}


def test_mean_and_deviation_are_another_method(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, guard(method="mean"), task=Losses({8: 100.0}))
    assert reasons(result) == ["a loss spike: the loss of step 8 is 100, and the mean of the 7 before is 0.5714 ± 0.49"]


@pytest.mark.parametrize(
    ("losses", "options", "spikes"),
    [
        ([1, 1, 1, 1, 1.01], {}, [4]),
        ([1, 1, 1, 1, 1.01], {"min_rise": 0.1}, []),
        ([1, 2, 1, 2, 1, 20, 20, 20, 20, 20, 20], {}, [5, 6, 7, 8]),
        ([1, 2, 1, 2, -100.0], {}, []),
        ([1, 2, 20], {}, []),
        ([math.inf], {}, [0]),
    ],
    ids=str,
)
def test_what_a_spike_is(losses: list[float], options: dict[str, Any], spikes: list[int]) -> None:
    plugin = guard(**options)
    assert [step for step, loss in enumerate(losses) if plugin._judge(step, loss)] == spikes


def test_the_loss_is_that_of_all_ranks_and_micro_batches(fork_recipe: ForkRecipe) -> None:
    overrides = ["train.micro_batch_size=1"]
    result = fork_recipe(RECIPE, guard(), task=Losses({8: 100.0}), overrides=overrides)
    assert reasons(result) == ["a loss spike: the loss of step 8 is 50, and the median of the 7 before is 1 ± 0"]


def test_all_ranks_skip_for_a_spike_of_one(fork_recipe: ForkRecipe) -> None:
    task = Losses({8: 100.0, 10: math.nan})
    result = fork_recipe(RECIPE, guard(action="skip"), task=task, report=lambda: task.skipped)
    assert result.reports == [[8, 10], [8, 10]]
    assert result.series("train/spikes") == {3: 0, 6: 0, 9: 1, 12: 2}


def test_it_may_stop_the_training(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, guard(action="stop"), task=Losses({8: 100.0}))
    assert result.outcome.state == "stopped"
    assert "the loss of step 8 is 50" in result.outcome.reason
    assert result.outcome.step is not None
    assert result.outcome.step < 12


def test_it_may_ask_for_a_checkpoint(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, guard(action="checkpoint"), task=Losses({5: 100.0}))
    assert len(list(result.paths.checkpoints.glob("step-*"))) == 1
    (decision,) = [event for event in result.events if event.get("decision") == "checkpoint"]
    assert "the loss of step 5 is 100" in decision["reason"]


@pytest.mark.parametrize("action", ["warn", "skip"])
def test_it_goes_on_where_it_was_also_between_two_logs(fork_recipe: ForkRecipe, action: str) -> None:
    def state(result: Any) -> Any:
        folder = result.paths.checkpoints / "step-000012" / "plugins"
        return torch.load(folder / "spike-guard.pt", weights_only=True)

    task = Losses({7: 50.0, 8: 100.0})
    straight = fork_recipe(RECIPE, guard(action=action), task=task, overrides=SAVES)
    first = fork_recipe(RECIPE, guard(action=action), task=task, overrides=[*SAVES, "train.steps=8"])
    resumed = fork_recipe(RECIPE, guard(action=action), task=task, overrides=SAVES, after=first)
    assert state(resumed) == state(straight)
    assert resumed.series("train/spikes")[12] == straight.series("train/spikes")[12] == 2


def test_a_window_must_hold_the_history() -> None:
    assert guard(window=3).check_recipe() == "min_history = 4 is more than window = 3 can hold"
    assert guard().check_recipe() is None
