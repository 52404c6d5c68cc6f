"""The place in the data, as training itself moves it on."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader

from trainrun.worker.data import SampledBatches, SampledLoader, TrainSampler
from trainrun.worker.world import World

SAMPLES, BATCH = 23, 4


def batches(workers: int = 0) -> SampledBatches:
    sampler = TrainSampler(SAMPLES, BATCH, 2, World(), seed=3)
    loader: DataLoader[Any] = DataLoader(range(SAMPLES), batch_sampler=sampler, num_workers=workers)  # type: ignore[arg-type]
    return SampledBatches(SampledLoader(loader, sampler))


def take(data: SampledBatches, epoch: int, updates: int) -> list[list[int]]:
    """Make some updates of an epoch; the samples of each."""
    made = []
    for update, _ in zip(data.begin(epoch), range(updates), strict=False):
        made.append([sample for _ in update.weights for sample in data.fetch().tolist()])
        data.use(update)
    return made


@pytest.mark.parametrize("done", range(7))
def test_another_loader_goes_on_where_the_first_one_was(done: int) -> None:
    whole = take(batches(), 1, 99) + take(batches(), 2, 99)
    first = batches()
    begun = take(first, 1, done)
    place = first.state_dict()
    second = batches()
    second.load_state_dict(place)
    rest = take(second, place["epoch"], 99)
    if place["epoch"] == 1:
        rest += take(second, 2, 99)
    assert begun + rest == whole


def test_the_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    data = batches()
    take(data, 1, 99)
    assert data.state_dict() == {"epoch": 2, "position": 0}


def test_a_loader_that_runs_ahead_does_not_count() -> None:
    data = batches(workers=1)
    take(data, 1, 2)
    assert data.state_dict() == {"epoch": 1, "position": 2 * BATCH}
