from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from trainrun_callbacks.batch_schedule import BatchSchedule, BatchScheduleOptions

from trainrun import Recipe, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
train = { epochs = 4, batch_size = 8, micro_batch_size = 4, log_every = 1 }
evaluate = { splits = [] }
checkpoint = { background = false }
"""
SCHEDULE = {"2": 16, "4": 32}
SAMPLES = 40


class Numbers:
    """Samples that are their own indices, and a note of those that each step used."""

    def __init__(self) -> None:
        self.used: list[tuple[int, int, list[int]]] = []  # epoch, step, samples

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return torch.arange(float(SAMPLES)).reshape(-1, 1) if split == "train" else None

    @hookimpl
    def training_step(self, run: Any, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        self.used.append((run.epoch, run.step, batch.flatten().int().tolist()))
        loss: torch.Tensor = (model(batch) / SAMPLES).square().mean()
        return loss


def schedule(**schedule: int) -> BatchSchedule:
    return BatchSchedule(BatchScheduleOptions(schedule=schedule or SCHEDULE))


def samples(used: list[tuple[int, int, list[int]]], epoch: int) -> Counter[int]:
    return Counter(sample for at, _, batch in used for sample in batch if at == epoch)


def steps(used: list[tuple[int, int, list[int]]], epoch: int) -> list[int]:
    """How many samples each step of the epoch used."""
    found: Counter[int] = Counter()
    for at, step, batch in used:
        if at == epoch:
            found[step] += len(batch)
    return [found[step] for step in sorted(found)]


def test_batches_grow_and_each_sample_comes_once_an_epoch(run_recipe: RunRecipe) -> None:
    task = Numbers()
    result = run_recipe(RECIPE, schedule(), task=task)
    assert [steps(task.used, epoch) for epoch in (1, 2, 3, 4)] == [[8] * 5, [16, 16, 8], [16, 16, 8], [32, 8]]
    assert all(samples(task.used, epoch) == Counter(range(SAMPLES)) for epoch in (1, 2, 3, 4))
    assert all(len(batch) == 4 for _, _, batch in task.used)
    assert result.outcome.step == 5 + 3 + 3 + 2


def test_two_ranks_share_the_batches(fork_recipe: ForkRecipe) -> None:
    task = Numbers()
    result = fork_recipe(RECIPE, schedule(), task=task, report=lambda: task.used)
    together = [use for used in result.reports for use in used]
    assert [steps(together, epoch) for epoch in (1, 2, 4)] == [[8] * 5, [16, 16, 8], [32, 8]]
    assert all(samples(together, epoch) == Counter(range(SAMPLES)) for epoch in (1, 2, 3, 4))


@pytest.mark.parametrize(("step", "workers"), [(6, 1), (6, 2), (8, 2)], ids=str)
def test_it_goes_on_in_the_middle_of_an_epoch_and_at_its_end(fork_recipe: ForkRecipe, step: int, workers: int) -> None:
    class Stop:
        @hookimpl
        def should_stop(self, run: Any) -> str | None:
            return "enough" if run.step == step - 1 else None  # it takes effect a step later

    straight = fork_recipe(RECIPE, schedule(), task=Numbers)
    first_task, task = Numbers(), Numbers()
    saves = ["checkpoint.at_end=true"]
    first = fork_recipe(RECIPE, schedule(), Stop, task=first_task, report=lambda: first_task.used, overrides=saves)
    rest = fork_recipe(RECIPE, schedule(), task=task, report=lambda: task.used, after=first, workers=workers)
    assert rest.outcome.step == straight.outcome.step == 13
    together = [use for used in (*first.reports, *rest.reports) for use in used]
    assert [steps(together, epoch) for epoch in (1, 2, 3, 4)] == [[8] * 5, [16, 16, 8], [16, 16, 8], [32, 8]]
    assert all(samples(together, epoch) == Counter(range(SAMPLES)) for epoch in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"0": 64}, "'0' is no epoch; epochs are counted from 1"),
        ({"one": 64}, "'one' is no epoch"),
        ({"1": 60}, "60 samples from epoch 1 on cannot be cut into micro-batches; take a multiple of 32"),
        ({"1": -32}, "take a multiple of 32"),
    ],
)
def test_what_cannot_be_is_vetoed(table: dict[str, int], problem: str) -> None:
    data = {"task": {"use": "digits"}, "train": {"steps": 1, "batch_size": 64, "micro_batch_size": 16}}
    recipe = Recipe.from_data({**data, "launch": {"workers": 2}})
    (found,) = schedule(**table).check_recipe(recipe)
    assert problem in found
    assert schedule(**{"1": 96}).check_recipe(recipe) == []


def test_before_the_first_epoch_of_the_schedule_the_recipe_counts() -> None:
    plugin = schedule(**{"02": 16, "10": 64})
    assert [plugin.choose_batch_size(epoch) for epoch in (1, 2, 9, 10, 11)] == [None, 16, 16, 64, 64]
