from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from trainrun_callbacks.finite_check import FiniteCheck, FiniteCheckOptions

from trainrun import HookFailed, Recipe, hookimpl
from trainrun.testing import ForkRecipe, Result, RunRecipe

RECIPE = """
train = { steps = 4, batch_size = 4, log_every = 2, nonfinite = "warn" }
evaluate = { splits = [] }
data = { shuffle = false }
optimizer = { name = "sgd", lr = 0.001 }
"""


class Broken:
    """Two weights in a row; the gradient of the second is not a number in the steps `at`, or a parameter has none."""

    def __init__(self, *at: int, unused: bool = False) -> None:
        self.at = at
        self.unused = unused
        self.skipped: list[int] = []

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("good", "bad")})

    @hookimpl
    def parallelize_model(self, model: torch.nn.Module) -> torch.nn.Module | None:
        return model if self.unused else None

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return torch.ones(16, 2) if split == "train" else None

    @hookimpl
    def training_step(self, run: Any, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        good = run.module["good"](batch).mean()
        if self.unused:
            return good  # type: ignore[no-any-return]
        broken = run.step in self.at and run.world.rank == 0
        loss: torch.Tensor = good + run.module["bad"](batch).mean() * (math.nan if broken else 1.0)
        return loss

    @hookimpl
    def on_update_end(self, run: Any, skipped: str | None) -> None:
        if skipped is not None:
            self.skipped.append(run.step)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.good, self.bad = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))

    def forward(self, batch: torch.Tensor, factor: float) -> torch.Tensor:
        loss: torch.Tensor = self.good(batch).mean() + self.bad(batch).mean() * factor
        return loss


class Parallel(Broken):
    """The same, through the parallel model, so that gradients are reduced."""

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return Model()

    @hookimpl
    def training_step(self, run: Any, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        broken = run.step in self.at and run.world.rank == 0
        loss: torch.Tensor = model(batch, math.nan if broken else 1.0)
        return loss


def check(action: str = "fail", **options: Any) -> FiniteCheck:
    return FiniteCheck(FiniteCheckOptions(action=action, **options))  # type: ignore[arg-type]


def warnings(result: Result) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in result.paths.rank_log(0).read_text().splitlines()]
    return [line for line in lines if line.get("plugin") == "finite-check"]


def test_a_gradient_fails_the_run_before_the_update(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, check(), task=Broken(3), fails=True)
    assert isinstance(result.error, HookFailed)
    assert "gradients that are not finite: bad.weight; lower the learning rate" in str(result.error)
    run_recipe(RECIPE, check(), task=Broken())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "none"])
def test_all_ranks_skip_alike(fork_recipe: ForkRecipe, strategy: str) -> None:
    task = Parallel(2)
    overrides = [f"parallel.strategy={strategy}"]
    result = fork_recipe(RECIPE, check("skip"), task=task, report=lambda: task.skipped, overrides=overrides)
    assert result.reports == [[2], [2]]
    (decision,) = [event for event in result.events if event.get("decision") == "skip"]
    assert decision["reason"] == "gradients that are not finite: bad.weight"


def test_a_warning_waits_for_the_log_and_names_the_parameters(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, check("warn"), task=Broken(1))
    (line,) = warnings(result)[:1]
    assert line["event"] == "gradients that were not finite since the last log"
    assert (line["parameters"], line["step"]) == (["bad.weight"], 2)


def test_parameters_are_looked_at_on_request(run_recipe: RunRecipe) -> None:
    run_recipe(RECIPE, check("skip", parameters=True), task=Broken(1))
    with pytest.raises(HookFailed, match=r"parameters that are not finite: bad\.weight;"):
        run_recipe(RECIPE, check("skip", gradients=False, parameters=True), task=Broken(1))
    warned = warnings(run_recipe(RECIPE, check("warn", parameters=True), task=Broken(1)))
    assert [line["event"].split()[0] for line in warned] == ["gradients", "parameters", "parameters"]


def test_a_parameter_without_a_gradient_is_found_in_the_first_update(run_recipe: RunRecipe) -> None:
    with pytest.raises(HookFailed, match=r"the first update has no gradient for bad\.weight; let them take part"):
        run_recipe(RECIPE, check(), task=Broken(unused=True))
    run_recipe(RECIPE, check(missing=False), task=Broken(unused=True))
    assert (
        "no gradient for bad.weight"
        in warnings(run_recipe(RECIPE, check("skip"), task=Broken(unused=True)))[0]["event"]
    )


def test_without_a_parallel_model_that_shares_gradients_ranks_ask_one_another(fork_recipe: ForkRecipe) -> None:
    failed = fork_recipe(RECIPE, check(), task=Broken(2), overrides=["parallel.strategy=none"], fails=True)
    assert "gradients that are not finite: bad.weight" in str(failed.error)


def test_fp16_overflows_now_and_then() -> None:
    data = {"task": {"use": "digits"}, "train": {"steps": 1, "precision": "fp16"}}
    veto = check().check_recipe(Recipe.from_data(data))
    assert veto is not None
    assert "until the loss scale fits" in veto
    assert check("warn").check_recipe(Recipe.from_data(data)) is None


def test_looking_reads_nothing_until_the_log(monkeypatch: pytest.MonkeyPatch, run_recipe: RunRecipe) -> None:
    reads: list[torch.Tensor] = []
    original = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        reads.append(tensor)
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    run_recipe(RECIPE, check("warn"), task=Broken(), overrides=["train.log_every=4"])
    assert len([one for one in reads if one.dtype == torch.bool]) == 1
