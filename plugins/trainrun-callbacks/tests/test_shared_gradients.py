from __future__ import annotations

from typing import Any

import pytest
import torch
from trainrun_callbacks.shared_gradients import Scaled, SharedGradients, SharedGradientsOptions

from trainrun import HookFailed, Recipe, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
train = { steps = 3, batch_size = 8, micro_batch_size = 2 }
evaluate = { splits = [] }
optimizer = { name = "sgd", lr = 0.1 }
"""


class Tied:
    """One matrix that is used twice, under two names, and one that is used once; notes the gradients."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        first, again = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
        again.weight = first.weight
        model = torch.nn.Sequential()
        for name, part in {"first": first, "again": again, "head": torch.nn.Linear(3, 1, bias=False)}.items():
            model.add_module(name, part)
        return model

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return torch.randn(32, 3, generator=torch.Generator().manual_seed(1)) if split == "train" else None

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(batch).square().mean()
        return loss

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        self.gradients.append({name: one.grad.clone() for name, one in run.module.named_parameters()})


def shared(**scale: float) -> SharedGradients:
    return SharedGradients(
        SharedGradientsOptions(groups=[Scaled(match=[one], factor=factor) for one, factor in scale.items()])
    )


@pytest.mark.parametrize("pattern", ["first.weight", "again.*"])
@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_are_scaled_once_also_under_accumulation(fork_recipe: ForkRecipe, pattern: str, workers: int) -> None:
    def first_gradients(*plugins: Any) -> list[dict[str, torch.Tensor]]:
        task = Tied()
        result = fork_recipe(RECIPE, *plugins, task=task, report=lambda: task.gradients[0], workers=workers)
        return list(result.reports)

    for plain, scaled in zip(first_gradients(), first_gradients(shared(**{pattern: 0.5})), strict=True):
        torch.testing.assert_close(scaled["first.weight"], plain["first.weight"] * 0.5)
        torch.testing.assert_close(scaled["head.weight"], plain["head.weight"])


def test_the_first_group_that_matches_counts(run_recipe: RunRecipe) -> None:
    plain, scaled = Tied(), Tied()
    run_recipe(RECIPE, task=plain)
    run_recipe(RECIPE, shared(**{"f*": 2.0, "*": 4.0}), task=scaled)
    torch.testing.assert_close(scaled.gradients[0]["first.weight"], plain.gradients[0]["first.weight"] * 2)
    torch.testing.assert_close(scaled.gradients[0]["head.weight"], plain.gradients[0]["head.weight"] * 4)


def test_a_glob_that_matches_nothing_names_what_there_is(run_recipe: RunRecipe) -> None:
    message = "'embedding.*' matches no parameter; there are first.weight, again.weight, head.weight"
    with pytest.raises(HookFailed, match=message.replace("*", r"\*").replace(".", r"\.")):
        run_recipe(RECIPE, shared(**{"embedding.*": 0.5}), task=Tied())


def test_sharded_parameters_are_vetoed_and_refused(fork_recipe: ForkRecipe) -> None:
    data = {"task": {"use": "digits"}, "train": {"steps": 1}}
    veto = shared(**{"*": 0.5}).check_recipe(Recipe.from_data({**data, "parallel": {"strategy": "fsdp"}}))
    assert veto is not None
    assert veto.startswith('parallel.strategy = "fsdp": ')
    assert shared(**{"*": 0.5}).check_recipe(Recipe.from_data(data)) is None
    failed = fork_recipe(RECIPE, shared(**{"*": 0.5}), task=Tied, overrides=["parallel.strategy=fsdp"], fails=True)
    assert "arrive in parts, too late to be scaled" in str(failed.error)
