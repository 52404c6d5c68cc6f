from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainrun_callbacks.averages import Averages
from trainrun_callbacks.ema import Ema, EmaOptions
from trainrun_callbacks.weight_averaging import WeightAveraging, WeightAveragingOptions

from trainrun import HookFailed, Recipe, TrainingError, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe
from trainrun.worker.checkpoint.reader import read_tensors

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8, dropout = 0.0 }
train = { steps = 6, batch_size = 16, log_every = 1 }
evaluate = { every = 3, batch_size = 359 }
optimizer = { name = "sgd", lr = 0.5 }
checkpoint = { every = 4, keep = 9, background = false }
"""
SAVES = ["checkpoint.at_end=true"]


def averaging(**options: Any) -> WeightAveraging:
    return WeightAveraging(WeightAveragingOptions(**{"start": 2, **options}))


class Watch:
    """Keeps the weights after each update, those that evaluations use, and those when training has ended."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.used: list[dict[str, torch.Tensor]] = []
        self.last: dict[str, torch.Tensor] = {}

    @hookimpl
    def on_update_end(self, run: Any) -> None:
        self.after.append(weights(run))

    @hookimpl
    def on_evaluation_batch_start(self, run: Any) -> None:
        self.used.append(weights(run))

    @hookimpl
    def on_completed(self, run: Any) -> None:
        self.last = weights(run)


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in run.module.named_parameters()}


def mean(after: list[dict[str, torch.Tensor]], steps: list[int]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([after[step - 1][name] for step in steps]).mean(0) for name in after[0]}


def gathered(watched: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    return [{name: one.full_tensor() for name, one in state.items()} for state in watched]


def close(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.parametrize(("options", "steps"), [({}, [2, 3, 4, 5, 6]), ({"every": 3, "start": 1}, [1, 4])], ids=str)
def test_all_weights_count_alike_and_the_last_average_is_in_the_model(
    run_recipe: RunRecipe, options: dict[str, Any], steps: list[int]
) -> None:
    watch, plugin = Watch(), averaging(**options)
    result = run_recipe(RECIPE, watch, plugin, overrides=SAVES)
    assert close(plugin.state_dict()["average"], mean(watch.after, steps))
    assert close(watch.used[0], mean(watch.after, [step for step in steps if step <= 3]))
    assert close(watch.last, mean(watch.after, steps))
    saved = read_tensors(result.paths.checkpoints / "step-000006", "model/")
    assert close(saved, watch.after[-1])


def test_the_weights_may_stay_and_be_evaluated(run_recipe: RunRecipe) -> None:
    watch = Watch()
    run_recipe(RECIPE, watch, averaging(evaluate="model", finish=False))
    assert close(watch.used[0], watch.after[2])
    assert close(watch.last, watch.after[-1])


def test_the_average_is_written_and_the_model_left_alone(fork_recipe: ForkRecipe) -> None:
    watch = Watch()
    options = {"finish": False, "save": "average.safetensors"}
    result = fork_recipe(
        RECIPE, watch, averaging(**options), report=lambda: gathered(watch.after), overrides=["parallel.strategy=fsdp"]
    )
    written = load_file(result.paths.root / "average.safetensors")
    assert close(written, mean(result.reports[0], [2, 3, 4, 5, 6]))


def test_it_goes_on_bit_for_bit_on_two_ranks(fork_recipe: ForkRecipe) -> None:
    def saved(result: Any) -> Any:
        folder = result.paths.checkpoints / "step-000006"
        return torch.load(folder / "plugins" / "weight-averaging.pt", weights_only=True)

    straight = fork_recipe(RECIPE, averaging(), overrides=SAVES)
    first = fork_recipe(RECIPE, averaging(), overrides=["train.steps=4", *SAVES])
    resumed = fork_recipe(RECIPE, averaging(), overrides=SAVES, after=first)
    one, other = saved(straight), saved(resumed)
    assert one["count"] == other["count"] == 5
    assert all(torch.equal(value, other["average"][name]) for name, value in one["average"].items())


def test_two_averages_cannot_both_be_evaluated(run_recipe: RunRecipe) -> None:
    with pytest.raises(HookFailed, match=r"ema and weight-averaging would both put their averages into the model"):
        run_recipe(RECIPE, Ema(EmaOptions()), averaging())
    run_recipe(RECIPE, Ema(EmaOptions(evaluate="model")), averaging(), overrides=["train.steps=1"])


@pytest.mark.parametrize(
    ("tables", "vetoed"),
    [
        ({"ema": {}, "weight-averaging": {"start": 1}}, True),
        ({"ema": {}, "slow": {"use": "ema", "decay": 0.9999}}, True),
        ({"ema": {}, "weight-averaging": {"start": 1, "evaluate": "model"}}, False),
        ({"ema": {}, "weight-averaging": {"start": 1, "enabled": False}}, False),
        ({"ema": {}}, False),
    ],
)
def test_a_recipe_with_two_is_vetoed(tables: dict[str, Any], vetoed: bool) -> None:
    recipe = Recipe.from_data({"task": {"use": "digits"}, "train": {"steps": 1}, "plugins": tables})
    assert (averaging().check_recipe(recipe) is not None) is vetoed


class Normed:
    """Points, and a model with batch normalisation."""

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return torch.randn(32, 2, generator=torch.Generator().manual_seed(1)) if split == "train" else None

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(batch).square().mean()
        return loss


def test_batch_normalisation_is_warned_of(run_recipe: RunRecipe) -> None:
    result = run_recipe({"train": {"steps": 1, "batch_size": 8}}, averaging(), task=Normed)
    assert "the model has batch normalisation" in result.paths.rank_log(0).read_text()


def test_half_precision_is_averaged_in_single_precision() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    averages = Averages({"a": parameter})
    averages.update(1.0)
    with torch.no_grad():
        parameter.fill_(2.0)
    for _ in range(10):
        averages.update(0.001)
    assert averages.state()["a"].dtype == torch.float32
    assert torch.allclose(averages.state()["a"], torch.full((3,), 2 - 0.999**10))
    averages.swap_in()
    assert parameter.dtype == torch.bfloat16
    averages.swap_out()
    assert parameter.tolist() == [2.0] * 3


@pytest.mark.parametrize("other", [{"b": torch.ones(3)}, {"a": torch.ones(2)}])
def test_averages_of_other_parameters_are_refused(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(TrainingError, match="are of other parameters than those trained now: a"):
        Averages({"a": torch.ones(3)}).load(other)
