from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from trainrun_callbacks.plateau_check import PlateauCheck, PlateauCheckOptions

from trainrun import HookFailed, Recipe, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
train = { steps = 6, batch_size = 4, log_every = 1 }
evaluate = { every = 1 }
optimizer = { name = "sgd", lr = 1.0 }
checkpoint = { background = false }
"""


class Flat:
    """The evaluation's error gets better until step 2, and then no more; notes the rates."""

    kind: Any = ReduceLROnPlateau

    def __init__(self) -> None:
        self.rates: list[float] = []

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    @hookimpl
    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        return self.kind(optimizer, factor=0.5, patience=0) if self.kind else None

    @hookimpl
    def build_dataset(self) -> Any:
        return torch.ones(24, 1)

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(batch).mean() * 0.0
        return loss

    @hookimpl
    def evaluation_step(self, run: Any) -> dict[str, float]:
        return {"error": 1.0 / min(run.step, 2)}

    @hookimpl
    def on_step_start(self, run: Any) -> None:
        self.rates.append(run.optimizer.param_groups[0]["lr"])


class Stepped(Flat):
    kind = staticmethod(lambda optimizer, **_: StepLR(optimizer, 1))


class Bare(Flat):
    kind = None


def plateau(monitor: str = "eval/error", **options: Any) -> PlateauCheck:
    return PlateauCheck(PlateauCheckOptions(monitor=monitor, **options))


def test_the_rate_falls_with_the_metric_on_all_ranks_and_goes_on(fork_recipe: ForkRecipe) -> None:
    task = Flat()
    result = fork_recipe(RECIPE, plateau(), task=task, report=lambda: task.rates)
    assert result.reports == [[1.0, 1.0, 1.0, 0.5, 0.25, 0.125]] * 2
    saves = ["checkpoint.at_end=true"]
    first = fork_recipe(RECIPE, plateau(), task=Flat(), overrides=["train.steps=4", *saves])
    resumed = fork_recipe(RECIPE, plateau(), task=task, report=lambda: task.rates, overrides=saves, after=first)
    assert resumed.reports == [[0.25, 0.125]] * 2


def test_a_metric_that_is_not_there_fails_the_run(run_recipe: RunRecipe) -> None:
    with pytest.raises(HookFailed, match=r"'eval/los': there is no such metric; this evaluation has: eval/error"):
        run_recipe(RECIPE, plateau("eval/los"), task=Flat())


class Late(Flat):
    """The error is there from step 3 on, and does not get better."""

    @hookimpl
    def evaluation_step(self, run: Any) -> dict[str, float]:
        return {"error": 1.0} if run.step >= 3 else {"other": 1.0}


def test_a_metric_may_come_later_but_must_come(run_recipe: RunRecipe) -> None:
    task = Late()
    run_recipe(RECIPE, plateau(must_exist="later"), task=task)
    assert task.rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.25]
    with pytest.raises(HookFailed, match=r"no evaluation had it; the last one had: eval/error"):
        run_recipe(RECIPE, plateau("eval/los", must_exist="later"), task=Late())


@pytest.mark.parametrize(("task", "kind"), [(Stepped, "StepLR"), (Bare, "none")])
def test_another_scheduler_is_refused(run_recipe: RunRecipe, task: Any, kind: str) -> None:
    with pytest.raises(HookFailed, match=f"the learning-rate scheduler is {kind}, which needs no metric"):
        run_recipe(RECIPE, plateau(), task=task())


def test_a_split_that_is_not_evaluated_is_vetoed() -> None:
    recipe = Recipe.from_data({"task": {"use": "digits"}, "train": {"steps": 1}})
    assert plateau("eval/loss").check_recipe(recipe) is None
    veto = plateau("train/loss").check_recipe(recipe)
    assert veto == "monitor = 'train/loss' names no evaluated split; there is eval/NAME"
