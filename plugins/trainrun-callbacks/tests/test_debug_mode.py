from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainrun_callbacks.debug_mode import DebugMode, DebugModeOptions

from trainrun import hookimpl
from trainrun.testing import RunRecipe

RECIPE = """
train = { steps = 2, batch_size = 2 }
evaluate.splits = []

[plugins.debug-mode]
always = true
attribute = "debug"
"""


class Flagged(torch.nn.Linear):
    """A layer with a flag."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.debug = False


class Task:
    """Says in each step what it sees of the debug mode."""

    broken = False

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, 3), Flagged())

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return [{"row": torch.ones(3)} for _ in range(4)]

    @hookimpl
    def training_step(self, run: Any, model: torch.nn.Module, batch: Any) -> Any:
        run.log("flag", run.module[1].debug, reduce="last")
        run.log("anomalies", torch.is_anomaly_enabled(), reduce="last")
        values = model(batch["row"])
        return (values * 0).sqrt().mean() if self.broken else values.mean()


class Plain(torch.nn.Linear):
    """A layer whose class has the flag."""

    debug = False


class Computed(torch.nn.Linear):
    """A layer with a property of that name."""

    @property
    def debug(self) -> bool:
        return False


class Method(torch.nn.Linear):
    """A layer with a method of that name."""

    def debug(self) -> None:
        """Do nothing."""


def test_a_flag_of_the_class_is_set_on_the_module_and_taken_away() -> None:
    model = torch.nn.Sequential(Plain(1, 1), Computed(1, 1), Method(1, 1), Flagged())
    run: Any = SimpleNamespace(smoke=True, model=model, logger=SimpleNamespace(info=lambda *_, **__: None))
    plugin = DebugMode(DebugModeOptions(attribute="debug", anomalies=False))
    plugin.on_train_start(run)
    assert [vars(module).get("debug") for module in model] == [True, None, None, True]
    plugin.on_worker_end()
    assert [vars(module).get("debug") for module in model] == [None, None, None, False]
    assert Plain.debug is False


def first_batches(result: Any) -> list[Any]:
    lines = [json.loads(line) for line in result.paths.rank_log(0).read_text().splitlines()]
    return [line["tensors"] for line in lines if line["event"] == "the first batch"]


def test_everything_is_on_while_it_trains_and_off_afterwards(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, task=Task)
    assert (result.series("flag"), result.series("anomalies")) == ({2: 1}, {2: 1})
    assert first_batches(result) == [{"row": "float32 [2, 3] on cpu"}]
    assert not torch.is_anomaly_enabled()


def test_in_a_real_run_it_does_nothing(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE.replace("always = true", ""), task=Task)
    assert (result.series("flag"), result.series("anomalies")) == ({2: 0}, {2: 0})


def test_in_a_smoke_test_it_is_on(run_recipe: RunRecipe) -> None:
    smoke = '[plugins.smoke-check]\nuse = "trainrun.builtin.smoke:SmokeCheck"\n'
    result = run_recipe(RECIPE.replace("always = true", "") + smoke, task=Task)
    assert result.series("anomalies") == {2: 1}


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_a_gradient_that_is_nan_is_named(run_recipe: RunRecipe) -> None:
    class Broken(Task):
        broken = True

    result = run_recipe(RECIPE, task=Broken, fails=True)
    assert "returned nan values" in result.outcome.reason
    assert not torch.is_anomaly_enabled()
