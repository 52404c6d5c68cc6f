"""The batches of a split that is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from trainrun.errors import TrainingError
from trainrun.worker.data.counting import batch_size
from trainrun.worker.data.deaths import fetched
from trainrun.worker.data.naming import processes
from trainrun.worker.data.sampled import SampledLoader
from trainrun.worker.data.samplers import EvaluationSampler
from trainrun.worker.data.update import NOTHING


def evaluation_batches(loader: Iterable[Any], gather: Callable[[int], list[int]] | None) -> Iterator[tuple[Any, int]]:
    """This rank's batches of a split, each with the number of its samples that count.

    All ranks get equally many; padding counts 0.
    """
    if isinstance(loader, SampledLoader):
        assert isinstance(loader.sampler, EvaluationSampler)
        yield from zip(_read(loader.loader), loader.sampler.sizes(), strict=True)
        return
    batches, last = _read(loader), NOTHING
    while True:
        batch = next(batches, NOTHING)
        counts = gather(int(batch is not NOTHING)) if gather else [int(batch is not NOTHING)]
        if not sum(counts):
            return
        if batch is not NOTHING:
            last = batch
            yield batch, batch_size(batch) or 1
        elif last is NOTHING:
            raise TrainingError("an evaluation loader has no batch at all on one rank, but has on another")
        else:
            yield last, 0


def _read(loader: Iterable[Any]) -> Iterator[Any]:
    batches = iter(loader)
    while True:
        try:
            batch = fetched(batches, processes(loader))
        except StopIteration:
            return
        yield batch
