from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset
from trainrun_callbacks.averages import Averages
from trainrun_callbacks.ema import Ema, EmaOptions

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, Result, RunRecipe
from trainrun.worker.checkpoint.reader import read_tensors

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8, dropout = 0.0 }
train = { steps = 6, batch_size = 16, log_every = 1 }
evaluate = { every = 3, batch_size = 90 }
optimizer = { name = "sgd", lr = 0.5 }
[checkpoint]
every = 2
keep = 9
at_end = true
background = false
"""
AT_END = ["checkpoint.at_end=true"]
State = Mapping[str, torch.Tensor]


def ema(**options: Any) -> Ema:
    return Ema(EmaOptions(**options))


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in run.module.named_parameters()}


class Watch:
    """Keeps the weights after each update, those that evaluations use, and those when one ends."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.used: list[dict[str, torch.Tensor]] = []
        self.at_end: list[dict[str, torch.Tensor]] = []
        self.at_checkpoint: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def on_update_end(self, run: Any) -> None:
        self.after.append(weights(run))

    @hookimpl(trylast=True)
    def on_evaluation_batch_start(self, run: Any, index: int) -> None:
        if index == 0:
            self.used.append(weights(run))

    @hookimpl
    def on_evaluation_end(self, run: Any) -> None:
        self.at_end.append(weights(run))

    @hookimpl
    def on_checkpoint_start(self, run: Any) -> None:
        self.at_checkpoint.append(weights(run))


class Early(Watch):
    """The same, enabled before the average."""


class Skip:
    """Skips one update."""

    @hookimpl
    def should_skip_update(self, run: Any) -> str | None:
        return "a test" if run.step == 4 else None


class BreakOff:
    """Stops training while the evaluation of step 3 goes on, as `trainrun stop` would."""

    asked = False

    @hookimpl
    def on_evaluation_batch_start(self, run: Any) -> None:
        if run.step == 3 and not self.asked:
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)


def expected(after: list[dict[str, torch.Tensor]], decay: float, steps: list[int]) -> dict[str, torch.Tensor]:
    average = {name: value.clone() for name, value in after[steps[0] - 1].items()}
    for step in steps[1:]:
        for name, value in after[step - 1].items():
            average[name].lerp_(value, 1 - decay)
    return average


def close(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def whole(value: Any) -> torch.Tensor:
    """A sharded tensor's full value."""
    full: torch.Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, [1, 2, 3, 4, 5, 6]), ({"every": 2, "start": 2}, [2, 4, 6]), ({"start": 5}, [5, 6])],
    ids=str,
)
def test_it_is_the_average_of_the_weights_after_updates(
    run_recipe: RunRecipe, options: dict[str, Any], steps: list[int]
) -> None:
    plugin, watch = ema(decay=0.9, **options), Watch()
    run_recipe(RECIPE, plugin, watch)
    assert equal(plugin.state_dict()["average"], expected(watch.after, 0.9, steps))


def test_a_skipped_update_is_not_averaged(run_recipe: RunRecipe) -> None:
    plugin, watch = ema(decay=0.9), Watch()
    run_recipe(RECIPE, plugin, watch, Skip())
    assert equal(plugin.state_dict()["average"], expected(watch.after, 0.9, [1, 2, 3, 5, 6]))


def test_evaluations_use_the_average_and_so_do_other_plugins_until_they_end(run_recipe: RunRecipe) -> None:
    before, after = Early(), Watch()
    run_recipe(RECIPE, before, ema(decay=0.9), after, overrides=AT_END)
    for seen in (before, after):
        assert equal(seen.used[0], expected(seen.after, 0.9, [1, 2, 3]))
        assert equal(seen.at_end[0], seen.used[0])
        assert equal(seen.at_checkpoint[1], seen.after[3])
        assert equal(seen.at_checkpoint[2], seen.after[5])


def test_evaluations_may_use_the_weights(run_recipe: RunRecipe) -> None:
    watch = Watch()
    run_recipe(RECIPE, ema(decay=0.9, evaluate="model"), watch)
    assert equal(watch.used[0], watch.after[2])


def test_before_the_start_evaluations_use_the_weights(run_recipe: RunRecipe) -> None:
    watch = Watch()
    run_recipe(RECIPE, ema(start=4), watch)
    assert equal(watch.used[0], watch.after[2])


def checkpoint(result: Result, step: int) -> tuple[State, State]:
    """The model's parameters and the averages in a checkpoint."""
    folder = result.paths.checkpoints / f"step-{step:06}"
    average = torch.load(folder / "plugins" / "ema.pt", weights_only=True)["average"]
    if any(isinstance(value, dict) for value in average.values()):  # sharded: beside the model
        average = read_tensors(folder, "plugins/ema/average/")
    return read_tensors(folder, "model/"), average


def gathered(watched: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [{name: whole(value) for name, value in state.items()} for state in watched]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stop_within_an_evaluation_saves_weights_and_average_each_in_its_place(
    fork_recipe: ForkRecipe, strategy: str
) -> None:
    watch = Watch()
    fsdp = [f"parallel.strategy={strategy}", *AT_END]
    whole = fork_recipe(RECIPE, ema(decay=0.9), watch, overrides=fsdp, report=lambda: gathered(watch.after))
    broken = fork_recipe(RECIPE, ema(decay=0.9), watch, BreakOff(), overrides=fsdp)
    model, average = checkpoint(broken, 3)
    after = whole.reports[0]
    assert equal(model, after[2])
    assert close(average, expected(after, 0.9, [1, 2, 3]))
    assert not equal(average, model)


def test_it_goes_on_bit_for_bit_after_a_stop_within_an_evaluation(fork_recipe: ForkRecipe) -> None:
    straight = fork_recipe(RECIPE, ema(decay=0.9), overrides=AT_END)
    first = fork_recipe(RECIPE, ema(decay=0.9), BreakOff(), overrides=AT_END)
    resumed = fork_recipe(RECIPE, ema(decay=0.9), overrides=AT_END, after=first)
    for one, other in zip(checkpoint(straight, 6), checkpoint(resumed, 6), strict=True):
        assert equal(one, other)


_LONG = [pytest.param(then, marks=pytest.mark.long) for then in [(2, "fsdp"), (1, "none"), (2, "ddp")]]


@pytest.mark.parametrize("then", [(3, "fsdp"), *_LONG], ids=str)
def test_a_sharded_average_goes_on_with_any_number_of_ranks(fork_recipe: ForkRecipe, then: tuple[int, str]) -> None:
    sizes = ["train.batch_size=12", *AT_END]
    sharded = ["parallel.strategy=fsdp", *sizes]
    straight = fork_recipe(RECIPE, ema(decay=0.9), overrides=sharded)
    first = fork_recipe(RECIPE, ema(decay=0.9), BreakOff(), overrides=sharded)
    workers, strategy = then
    resumed = fork_recipe(
        RECIPE, ema(decay=0.9), overrides=[f"parallel.strategy={strategy}", *sizes], after=first, workers=workers
    )
    for one, other in zip(checkpoint(straight, 6), checkpoint(resumed, 6), strict=True):
        assert equal(one, other) if then == (2, "fsdp") else close(one, other)


class Second:
    """Another split to evaluate."""

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        return TensorDataset(images, torch.arange(40) % 10) if split == "second" else None


def test_it_is_evaluated_on_every_split_and_training_goes_on_as_without_it(fork_recipe: ForkRecipe) -> None:
    splits = ["evaluate.splits=['eval', 'second']"]
    sharded = ["parallel.strategy=fsdp", *splits]
    without = fork_recipe(RECIPE, Second, overrides=splits)
    whole_, parts = (fork_recipe(RECIPE, Second, ema(decay=0.5), overrides=one) for one in (splits, sharded))
    for name in ("eval/loss", "second/loss"):
        assert whole_.series(name) == pytest.approx(parts.series(name), abs=1e-4)
        assert whole_.series(name)[6] != pytest.approx(without.series(name)[6], abs=1e-4)
    assert whole_.series("train/loss") == without.series("train/loss")


def test_an_update_waits_for_no_device() -> None:
    """A meta tensor has no values: whatever would read one raises."""
    averages = Averages({"a": torch.ones(3, device="meta"), "b": torch.ones(2, device="meta", dtype=torch.bfloat16)})
    for weight in (1.0, 0.1):
        averages.update(weight)
    averages.swap_in()
    averages.swap_out()
