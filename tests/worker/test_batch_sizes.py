"""Batch sizes that a plugin chooses: what it may answer, and who can do it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainrun.errors import TrainingError
from trainrun.marker import hookimpl
from trainrun.worker.data.sizes import BatchSizes

EPOCHS: dict[str, Any] = {"train": {"epochs": 3, "batch_size": 4, "micro_batch_size": 2}, "evaluate": {"splits": []}}


class Grow:
    """Twice the batch from epoch 2 on."""

    @hookimpl
    def choose_batch_size(self, epoch: int) -> int | None:
        return None if epoch == 1 else 8


class Seven:
    @hookimpl
    def choose_batch_size(self) -> int:
        return 7


class ByRank:
    @hookimpl
    def choose_batch_size(self, run: Any) -> int:
        return 4 * (1 + run.world.rank)


def steps(training: Any, task: type, *plugins: type, **options: Any) -> int:
    last: int = training(task, *plugins, **options).outcome.step
    return last


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_number_of_steps_follows(training: Any, regression: Any, ranks: int) -> None:
    """20 samples: 5 updates of 4, then twice 3 of 8; without what does not fill one, 2."""
    assert steps(training, regression, Grow, ranks=ranks, **EPOCHS) == 5 + 3 + 3
    assert steps(training, regression, Grow, ranks=ranks, data={"drop_last": True}, **EPOCHS) == 5 + 2 + 2


def test_without_epochs_each_is_asked_when_it_begins(training: Any, regression: Any) -> None:
    tables = EPOCHS | {"train": {"steps": 9, "batch_size": 4, "micro_batch_size": 2}}
    trained = training(regression, Grow, **tables)
    assert trained.outcome.step == 9
    assert trained.series("train/loss").keys() == set(range(1, 10))


def test_a_size_that_cannot_be_is_an_error(training: Any, regression: Any) -> None:
    with pytest.raises(
        TrainingError, match=r"returned 7 for epoch 1; return a multiple of 2, .*; .* is that of plugin seven"
    ):
        training(regression, Seven, **EPOCHS)


@pytest.mark.parametrize("answer", [0, -4, True, 4.0, "4"])
def test_an_answer_is_a_number_of_samples(answer: object) -> None:
    with pytest.raises(TrainingError, match="return a multiple of 4"):
        BatchSizes(lambda _: answer, 8, 4, None).of([1])


def test_ranks_must_agree() -> None:
    with pytest.raises(TrainingError, match=r"\[8\] for the epochs \[1\] here and \[4\] on rank 1"):
        BatchSizes(lambda _: 8, 8, 4, lambda mine: [mine, [4]]).of([1])


def test_ranks_that_disagree_end_the_run(training: Any, regression: Any) -> None:
    trained = training(regression, ByRank, ranks=2, **EPOCHS)
    assert all("return the same on all ranks" in str(rank) for rank in trained.ranks)


def test_each_epoch_is_asked_once() -> None:
    asked: list[int] = []
    sizes = BatchSizes(asked.append, 8, 4, None)
    assert [sizes.of([1, 2]), sizes.of([2]), sizes.of([3])] == [[8, 8], [8], [8]]
    assert asked == [1, 2, 3]


def test_a_loader_of_the_task_cannot_do_it(training: Any, regression: Any) -> None:
    class OwnLoader(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataloader(self) -> Iterator[Any]:
            return iter([(torch.ones(4, 3), torch.ones(4, 1))])

    with pytest.raises(TrainingError, match="only the train loader of trainrun can change"):
        training(OwnLoader, Grow, **EPOCHS)
