from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainrun_callbacks.flops import peak_of
from trainrun_callbacks.throughput import Throughput, ThroughputOptions

from trainrun import RecipeError, hookimpl
from trainrun.testing import ForkRecipe, LaunchRecipe, RunRecipe

WIDTH, DEPTH, ROWS = 8, 3, 6


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class FakeRun:
    """As much of `run` as the plugin reads."""

    def __init__(self) -> None:
        self.world = SimpleNamespace(rank=0, size=2)
        self.device = torch.device("cpu")
        self.step = self.samples_seen = 0
        self.recipe = SimpleNamespace(train=SimpleNamespace(precision="fp32"))
        self.logged: dict[str, float] = {}

    @property
    def logs_now(self) -> bool:
        return self.step % 2 == 0

    def log(self, name: str, value: Any, reduce: str) -> None:
        self.logged[name] = float(value)


def step(plugin: Throughput, run: Any, clock: Clock, seconds: float) -> None:
    run.step += 1
    plugin.on_step_start(run)
    plugin.on_microbatch_start({"ids": torch.ones(2, 5), "mask": torch.tensor([[1, 1, 0]])}, 2)
    plugin.on_backward_end(run)
    run.samples_seen += 4
    clock.now += seconds
    plugin.on_update_end(run)


def test_rates_leave_out_evaluations_and_checkpoints(clock: Clock) -> None:
    run: Any = FakeRun()
    plugin = Throughput(ThroughputOptions(tokens="ids"), clock)
    plugin.on_train_start(run)
    step(plugin, run, clock, 1.0)
    step(plugin, run, clock, 1.0)
    assert run.logged == {"throughput/samples": 4.0, "throughput/steps": 1.0, "throughput/tokens": 10.0}
    step(plugin, run, clock, 1.0)
    plugin.on_evaluation_start()
    clock.now += 50
    plugin.on_checkpoint_start()
    clock.now += 50
    step(plugin, run, clock, 3.0)
    assert run.logged == {"throughput/samples": 2.0, "throughput/steps": 0.5, "throughput/tokens": 5.0}


def test_tokens_may_be_the_sum_of_a_mask(clock: Clock) -> None:
    run: Any = FakeRun()
    plugin = Throughput(ThroughputOptions(tokens="mask", count="sum"), clock)
    plugin.on_train_start(run)
    step(plugin, run, clock, 1.0)
    step(plugin, run, clock, 1.0)
    assert run.logged["throughput/tokens"] == 2.0


def test_the_first_window_on_a_gpu_says_nothing(clock: Clock) -> None:
    run: Any = FakeRun()
    run.device = torch.device("cuda")
    plugin = Throughput(ThroughputOptions(), clock)
    plugin.on_train_start(run)
    for _ in range(2):
        step(plugin, run, clock, 0.001)
    assert not run.logged
    for _ in range(2):
        step(plugin, run, clock, 1.0)
    assert run.logged == {"throughput/samples": 4.0, "throughput/steps": 1.0}


class Stack:
    """Linear layers without biases, whose operations are easily counted."""

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)))

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return [torch.ones(WIDTH) for _ in range(ROWS)]

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: Any) -> Any:
        return model(batch).square().mean()


RECIPE = """
train = { steps = 2, batch_size = 6, log_every = 1 }
evaluate.splits = []

[plugins.throughput]
tokens = "0"
flops = true
peak_flops = 1e6
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_flops_are_those_of_the_model(run_recipe: RunRecipe, fork_recipe: ForkRecipe, ranks: int) -> None:
    result = (run_recipe if ranks == 1 else fork_recipe)(RECIPE, task=Stack)
    # Forward and gradients of weights in each layer, gradients of inputs in all but the first.
    per_sample = 2 * WIDTH * WIDTH * (3 * DEPTH - 1)
    samples, flops = result.series("throughput/samples"), result.series("throughput/flops")
    assert {one: flops[one] / samples[one] for one in (1, 2)} == pytest.approx(dict.fromkeys((1, 2), per_sample))
    expected = {one: value / (1e6 * ranks) for one, value in flops.items()}
    assert result.series("throughput/mfu") == pytest.approx(expected)
    tokens = {one: value / WIDTH for one, value in result.series("throughput/tokens").items()}
    assert tokens == pytest.approx(samples, rel=0.5)  # each rank has a clock of its own
    lines = [json.loads(line) for line in result.paths.rank_log(0).read_text().splitlines()]
    steps = {one: value / ROWS for one, value in samples.items()}
    assert result.series("throughput/steps") == pytest.approx(steps)  # also at the first step, which is logged
    (told,) = [line for line in lines if line["event"] == "model FLOPs"]
    assert told["per_sample"] == per_sample
    assert told["how"] == f"counted in the first micro-batch of rank 0, of {ROWS // ranks} samples"


@pytest.mark.parametrize(
    ("name", "halves", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", True, 312e12),
        ("NVIDIA H100 80GB HBM3", False, 67e12),
        ("NVIDIA H100 PCIe", True, 756e12),
        ("Tesla V100-PCIE-16GB", True, 112e12),
        ("NVIDIA L40S", True, 362e12),
        ("NVIDIA L40", True, None),
        ("NVIDIA RTX A4000", True, None),
        ("NVIDIA GH200 480GB", True, None),
        ("NVIDIA A10", False, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", True, None),
    ],
)
def test_peaks_are_those_of_that_very_model(name: str, halves: bool, expected: float | None) -> None:
    assert peak_of(name, halves=halves) == expected


def test_without_a_known_peak_there_is_no_share_and_the_log_says_so(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE.replace("peak_flops = 1e6", ""), task=Stack)
    assert result.series("throughput/flops")
    assert not result.series("throughput/mfu")
    assert "unknown; set peak_flops for throughput/mfu" in result.paths.rank_log(0).read_text()


def test_compiled_code_is_not_counted(launch_recipe: LaunchRecipe) -> None:
    recipe = 'task.use = "digits"\ntrain = { steps = 1, compile = true }\nplugins.throughput = { flops = true }\n'
    with pytest.raises(RecipeError, match=r"cannot count within compiled code .*; set flops_per_sample"):
        launch_recipe(recipe)


def test_a_pattern_that_fits_no_tensor_turns_it_off(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE.replace('"0"', '"input_ids"'), task=Stack)
    (decision,) = [event for event in result.events if event.get("decision") == "disable"]
    assert "'input_ids' fits no tensor of the batch; there are: 0" in decision["reason"]
