from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from trainrun_callbacks.predictions import Predictions, PredictionsOptions, read_predictions
from trainrun_callbacks.writing import FileWriter

from trainrun import TrainingError, hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

SAMPLES = 7  # of which two ranks get four and three

RECIPE = """
train = { steps = 2, batch_size = 2 }
evaluate = { every = 2, batch_size = 2 }

[plugins.predictions]
batch = ["0"]
"""


class Numbers:
    """Sample i is the number i, and the prediction is ten times that and its name."""

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return [(torch.tensor([float(number)]),) for number in range(SAMPLES)]

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: Any) -> Any:
        return model(batch[0]).square().mean()

    @hookimpl
    def evaluation_step(self, model: torch.nn.Module, batch: Any) -> Any:
        (numbers,) = batch
        return {"loss": numbers.mean(), "predictions": self.predict(numbers)}

    def predict(self, numbers: torch.Tensor) -> Any:
        return {"ten": 10 * numbers, "name": [f"n{int(number)}" for number in numbers]}


def folder(result: Any) -> Path:
    found: Path = result.paths.root / "predictions" / "eval-step-2"
    return found


def read(result: Any, **how: Any) -> list[tuple[float, float, str]]:
    return [
        (one["batch"]["0"].item(), one["predictions"]["ten"].item(), one["predictions"]["name"])
        for one in read_predictions(folder(result), **how)
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_sample_is_there_once_and_in_order(run_recipe: RunRecipe, fork_recipe: ForkRecipe, ranks: int) -> None:
    result = (run_recipe if ranks == 1 else fork_recipe)(RECIPE, task=Numbers)
    assert read(result) == [(number, 10 * number, f"n{number}") for number in range(SAMPLES)]
    by_rank = sorted(range(SAMPLES), key=lambda number: number % ranks)
    assert [number for number, _, _ in read(result, interleaved=False)] == by_rank
    assert result.series("eval/loss") == {2: 3.0}


def test_padding_is_not_written(fork_recipe: ForkRecipe) -> None:
    """With one sample a batch, rank 1 repeats one so that it makes as many batches as rank 0."""
    result = fork_recipe(
        RECIPE, task=Numbers, overrides=["evaluate.batch_size=1", "plugins.predictions.shard_mib=1e-6"]
    )
    assert len(read(result)) == SAMPLES
    assert len(list(folder(result).glob("rank-0-*.pt"))) == 4
    assert len(list(folder(result).glob("rank-1-*.pt"))) == 3


def test_an_evaluation_that_was_broken_off_has_no_index(fork_recipe: ForkRecipe) -> None:
    class Breaks(Numbers):
        @hookimpl
        def evaluation_step(self, model: torch.nn.Module, batch: Any) -> Any:
            if batch[0].max() > 2:
                raise TrainingError("enough")
            return super().evaluation_step(model, batch)

    result = fork_recipe(RECIPE, task=Breaks, fails=True)
    with pytest.raises(ValueError, match=r"rank-0.json: missing; the evaluation was interrupted"):
        list(read_predictions(folder(result)))


def test_only_chosen_splits_and_steps_are_written(run_recipe: RunRecipe) -> None:
    for override in ("plugins.predictions.splits=['test']", "plugins.predictions.from_step=3"):
        assert not folder(run_recipe(RECIPE, task=Numbers, overrides=[override])).exists()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda numbers: numbers.mean(), r"predictions must have one row for each of 2 samples, got the shape \[\]"),
        (lambda numbers: {"a": numbers[:1]}, r"predictions.a must have one row .* 2 samples, got the shape \[1, 1\]"),
        (lambda numbers: (["one"],), r"predictions.0 must have one row for each of 2 samples, got the shape \[1\]"),
        (lambda numbers: "text", r"predictions must have one row for each of 2 samples, got str"),
    ],
)
def test_predictions_without_a_row_a_sample_are_an_error(run_recipe: RunRecipe, answer: Any, told: str) -> None:
    class Wrong(Numbers):
        def predict(self, numbers: torch.Tensor) -> Any:
            return answer(numbers)

    result = run_recipe(RECIPE, task=Wrong, overrides=["plugins.predictions.on_error='fail'"], fails=True)
    import re

    assert re.search(told, result.outcome.reason)


def test_a_task_without_predictions_is_told_what_to_answer(run_recipe: RunRecipe) -> None:
    class Silent(Numbers):
        @hookimpl
        def evaluation_step(self, model: torch.nn.Module, batch: Any) -> Any:
            return {"loss": batch[0].mean()}

    result = run_recipe(RECIPE, task=Silent)
    (decision,) = [event for event in result.events if event.get("decision") == "disable"]
    assert 'return them as "predictions", next to the metrics' in decision["reason"]


def test_what_cannot_be_written_is_raised_in_training() -> None:
    def full() -> None:
        raise OSError("no space left")

    writer = FileWriter("test")
    writer.put(full)
    with pytest.raises(OSError, match="no space left"):
        writer.finish()
    writer.close()


def test_before_an_evaluation_nothing_is_written_and_no_thread_is_there() -> None:
    plugin = Predictions(PredictionsOptions())
    before = threading.active_count()
    plugin.on_evaluation_batch_end(batch=None, size=1, outputs={})  # else it would miss "predictions"
    assert threading.active_count() == before
    plugin.on_train_end()
    plugin.on_worker_end()
