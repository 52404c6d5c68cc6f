from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from trainrun_callbacks.gradient_skipping import GradientSkipping, GradientSkippingOptions

from trainrun import HookFailed, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
train = { steps = 6, batch_size = 4, log_every = 1, nonfinite = "warn" }
evaluate = { splits = [] }
data = { shuffle = false }
optimizer = { name = "sgd", lr = 0.001 }
checkpoint = { background = false }
"""
SAVES = ["checkpoint.at_end=true"]


class Steep:
    """The gradient of the only weight is the mean of a batch: of samples that are 1 but where `values` says more."""

    def __init__(self, **values: float) -> None:
        self.values = {int(step.removeprefix("step")): value for step, value in values.items()}
        self.skipped: list[int] = []

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1, bias=False)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        data = torch.ones(24, 1)
        for step, value in self.values.items():
            data[4 * (step - 1)] = value  # only rank 0 sees it
        return data if split == "train" else None

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(batch).mean()
        return loss

    @hookimpl
    def on_update_end(self, run: Any, skipped: str | None) -> None:
        if skipped is not None:
            self.skipped.append(run.step)


def skipping(**options: Any) -> GradientSkipping:
    return GradientSkipping(GradientSkippingOptions(**{"start": 1, **options}))


LARGE = {"step2": 1e3, "step4": math.nan, "step5": math.inf}


@pytest.mark.parametrize(
    ("options", "skipped"),
    [
        ({"threshold": 10.0}, [2, 4, 5]),
        ({"threshold": 10.0, "norm_type": "inf"}, [2, 4, 5]),
        ({"threshold": 10.0, "norm_type": 1.0}, [2, 4, 5]),
        ({"threshold": 10.0, "start": 3}, [4, 5]),
        ({"threshold": 1e6}, [4, 5]),
        ({}, [4, 5]),
        ({"threshold": 10.0, "non_finite": False}, [2]),
    ],
    ids=str,
)
def test_which_updates_are_skipped(run_recipe: RunRecipe, options: dict[str, Any], skipped: list[int]) -> None:
    task = Steep(**LARGE)
    result = run_recipe(RECIPE, skipping(**options), task=task)
    assert task.skipped == skipped
    assert result.series("train/skipped") == {step: sum(one <= step for one in skipped) for step in range(1, 7)}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_skip_for_what_one_of_them_has_seen(fork_recipe: ForkRecipe, strategy: str) -> None:
    task = Steep(**LARGE)
    overrides = [f"parallel.strategy={strategy}"]
    for norm in (2.0, "inf", 1.0):
        plugin = skipping(threshold=10.0, norm_type=norm)
        result = fork_recipe(RECIPE, plugin, task=task, report=lambda: task.skipped, overrides=overrides)
        assert result.reports == [[2, 4, 5], [2, 4, 5]]


@pytest.mark.parametrize("norm", [2.0, "inf"])
def test_all_ranks_skip_also_where_each_has_gradients_of_its_own(fork_recipe: ForkRecipe, norm: Any) -> None:
    task = Steep(**LARGE)
    overrides = ["parallel.strategy=none"]
    plugin = skipping(threshold=10.0, norm_type=norm)
    result = fork_recipe(RECIPE, plugin, task=task, report=lambda: task.skipped, overrides=overrides)
    assert result.reports == [[2, 4, 5], [2, 4, 5]]


def test_a_skipped_update_leaves_the_weights_and_the_reason_is_recorded(run_recipe: RunRecipe) -> None:
    seen = []

    class Weight:
        @hookimpl
        def on_update_end(self, run: Any) -> None:
            seen.append(run.model.weight.item())

    result = run_recipe(RECIPE, skipping(threshold=10.0), Weight, task=Steep(**LARGE))
    assert [step for step in range(2, 7) if seen[step - 1] == seen[step - 2]] == [2, 4, 5]
    reasons = [event["reason"] for event in result.events if event.get("decision") == "skip"]
    assert reasons[0] == "the norm of the gradients is 250.8, above 10"
    assert reasons[1:] == ["the norm of the gradients is nan", "the norm of the gradients is inf"]


def test_too_many_in_a_row_fail_the_run_also_across_a_resume(fork_recipe: ForkRecipe) -> None:
    task = Steep(step3=math.nan, step4=math.nan, step5=math.nan)
    first = fork_recipe(RECIPE, skipping(max_in_a_row=3), task=task, overrides=[*SAVES, "train.steps=4"])
    failed = fork_recipe(RECIPE, skipping(max_in_a_row=3), task=task, after=first, fails=True)
    assert "3 updates in a row were skipped (max_in_a_row)" in str(failed.error)
    fork_recipe(RECIPE, skipping(max_in_a_row=4), task=task)


def test_one_that_is_made_starts_the_count_anew(run_recipe: RunRecipe) -> None:
    task = Steep(step1=math.nan, step2=math.nan, step4=math.nan, step5=math.nan)
    run_recipe(RECIPE, skipping(max_in_a_row=3), task=task)
    with pytest.raises(HookFailed, match="2 updates in a row"):
        run_recipe(RECIPE, skipping(max_in_a_row=2), task=task)


def test_options_that_skip_nothing_are_vetoed() -> None:
    assert skipping(non_finite=False).check_recipe() is not None
    assert skipping().check_recipe() is None
    assert skipping(threshold=1.0, non_finite=False).check_recipe() is None
