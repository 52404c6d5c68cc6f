"""The batches of a split that is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

from trainrun.errors import TrainingError
from trainrun.errors import described as described_error
from trainrun.worker.data.collating import unequal
from trainrun.worker.data.counting import SampleCounter
from trainrun.worker.data.deaths import fetched
from trainrun.worker.data.naming import described, processes
from trainrun.worker.data.sampled import SampledLoader
from trainrun.worker.data.samplers import EvaluationSampler
from trainrun.worker.data.shield import close, iterate
from trainrun.worker.data.update import NOTHING


def evaluation_batches(
    loader: Iterable[Any], gather: Callable[[int], list[int]] | None, counter: SampleCounter
) -> Iterator[tuple[Any, int]]:
    """Yield this rank's batches of a split, each with its counted samples.

    All ranks get equally many; padding counts 0. A batch whose size `counter` does not find counts like the one before
    it, or as one sample.
    """
    if isinstance(loader, SampledLoader):
        assert isinstance(loader.sampler, EvaluationSampler)
        yield from zip(_read(loader.loader, counter.where), loader.sampler.sizes(), strict=True)
        return
    batches, last, size = _read(loader, counter.where), NOTHING, 1
    while True:
        batch = next(batches, NOTHING)
        counts = gather(int(batch is not NOTHING)) if gather else [int(batch is not NOTHING)]
        if not sum(counts):
            return
        if batch is not NOTHING:
            last, known = batch, counter.count(batch)
            size = known or size
            yield batch, size if known is None else known
        elif last is NOTHING:
            raise TrainingError("an evaluation loader has no batch at all on one rank, but has on another")
        else:
            yield last, 0


def _read(loader: Iterable[Any], where: str) -> Iterator[Any]:
    batches = iterate(loader)
    try:
        for number in count(1):
            try:
                batch = fetched(batches, processes(loader))
            except StopIteration:
                return
            except Exception as error:
                raise TrainingError(
                    f"{where}: batch {number} could not be read from {described(loader)}: {described_error(error)}"
                    f"{unequal(loader, error)}"
                ) from error
            yield batch
    finally:
        close(batches)
