from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from trainrun import Field, HookFailed, PluginOptions, RecipeError, hookimpl
from trainrun.testing import RunRecipe

pytest_plugins = ["pytester"]

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 3, batch_size = 16, log_every = 1 }
"""


class Line:
    """A task whose model fits a line."""

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return [torch.tensor([float(x)]) for x in range(8)] if split == "train" else None

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch) - batch).square().mean()


class StepCounter:
    class Options(PluginOptions):
        start: int = Field(0, ge=0)

    def __init__(self, options: StepCounter.Options) -> None:
        self.steps = options.start

    @hookimpl
    def on_update_end(self, run: Any) -> None:
        self.steps += 1
        run.log("step-counter/steps", self.steps, reduce="last")


def test_trains_an_installed_task(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE)
    assert result.outcome.state == "finished"
    assert result.outcome.step == 3
    assert list(result.series("train/loss")) == [1, 2, 3]
    assert list(result.series("eval/accuracy")) == [3]


def test_a_recipe_may_be_a_dict_or_a_file(run_recipe: RunRecipe, tmp_path: Path) -> None:
    recipe = {"task": {"use": "digits", "channels": 2, "hidden": 8}, "train": {"steps": 1, "batch_size": 8}}
    assert run_recipe(recipe).outcome.step == 1
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    assert run_recipe(path, overrides=["train.steps=2"]).outcome.step == 2


def test_plugins_may_be_classes_from_within_a_test(run_recipe: RunRecipe) -> None:
    class Probe:
        seen: list[int] = []  # noqa: RUF012

        @hookimpl
        def on_step_start(self, step: int) -> None:
            self.seen.append(step)

    run_recipe(RECIPE, Probe)
    assert Probe.seen == [1, 2, 3]


def test_options_come_from_the_recipe(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE + "plugins.step-counter.start = 10", StepCounter)
    assert result.series("step-counter/steps") == {1: 11, 2: 12, 3: 13}
    with pytest.raises(RecipeError, match=r"plugins\.step-counter\.start"):
        run_recipe(RECIPE + "plugins.step-counter.start = -1", StepCounter)


def test_plugins_may_be_instances_and_modules(run_recipe: RunRecipe) -> None:
    counter = StepCounter(StepCounter.Options(start=5))
    module = types.ModuleType("noise")
    noted = []

    @hookimpl
    def on_evaluation_end(metrics: Mapping[str, float]) -> None:
        noted.extend(metrics)

    module.on_evaluation_end = on_evaluation_end  # type: ignore[attr-defined]
    run_recipe(RECIPE, counter, module)
    assert counter.steps == 8
    assert sorted(noted) == ["eval/accuracy", "eval/loss"]


def test_a_task_may_be_given_as_an_object(run_recipe: RunRecipe) -> None:
    recipe = {"train": {"steps": 2, "batch_size": 4}, "optimizer": {"name": "sgd", "lr": 0.01}}
    assert run_recipe(recipe, task=Line).outcome.step == 2
    assert run_recipe(recipe, task=Line()).outcome.step == 2


def test_installed_plugins_are_enabled_by_name(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, "learning-rate-monitor")
    assert len(result.series("lr/0")) == 3


def test_what_a_plugin_raises_is_raised(run_recipe: RunRecipe) -> None:
    class Broken:
        @hookimpl
        def on_train_start(self) -> None:
            raise ValueError("no")

    with pytest.raises(HookFailed, match="'broken' raised ValueError in on_train_start: no"):
        run_recipe(RECIPE, Broken)
    result = run_recipe(RECIPE, Broken, fails=True)
    assert isinstance(result.error, HookFailed)
    assert result.outcome.state == "failed"
    assert result.outcome.exit_code == 1


def test_an_expected_failure_that_does_not_come_fails_the_test(run_recipe: RunRecipe) -> None:
    with pytest.raises(AssertionError, match="expected to fail"):
        run_recipe(RECIPE, fails=True)


def test_a_survived_fault_is_an_event(run_recipe: RunRecipe) -> None:
    class Broken:
        on_error = "disable"

        @hookimpl
        def on_step_start(self) -> None:
            raise ValueError("no")

    result = run_recipe(RECIPE, Broken)
    assert result.outcome.ok
    assert ("disable", "broken") in [(event.get("decision"), event.get("plugin")) for event in result.events]


SUITE = """
import sys

import pytest
import torch

from trainrun import hookimpl


class Probe:
    @hookimpl
    def on_train_start(self):
        torch.manual_seed(7)


@pytest.fixture(autouse=True)
def untouched():
    torch.manual_seed(1)
    generator, path = torch.get_rng_state(), list(sys.path)
    yield
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    assert sys.path == path
    assert not [name for name in sys.modules if "trainrun_live" in name]


def test_one(untouched, run_recipe):
    run_recipe(RECIPE, Probe)
"""


def test_generators_and_modules_are_left_as_they_were(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE.replace("RECIPE", repr(RECIPE)))
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
