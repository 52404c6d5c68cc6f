"""What it costs to go on in the middle of the data: at sample 10 million of an epoch beside its beginning.

Both are timed from the loaded place to the first micro-batch, with trainrun's own loader over a dataset of 20 million
samples that costs nothing to read. Most of it is the permutation of an epoch, which is drawn the same for both.
The two take turns.
"""

from __future__ import annotations

import argparse
import operator
import time
from functools import partial

from measure import interleave, paired, show, spread
from torch.utils.data import DataLoader

from trainrun.worker.data import SampledBatches, SampledLoader, TrainSampler
from trainrun.worker.world import World

SAMPLES = 20_000_000
BATCH_SIZE = 100
PLACES = (0, 10_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()

    resume(0)  # fills caches
    found = interleave({f"{place:,}": partial(resume, place) for place in PLACES}, arguments.rounds)
    base = found[f"{PLACES[0]:,}"]
    rows = [
        (name, spread([value * 1e3 for value in seconds], 0), spread(paired(seconds, base, operator.truediv), 2))
        for name, seconds in found.items()
    ]
    show(("first sample", "ms to the first batch", "ratio"), rows)


def resume(place: int) -> float:
    """Seconds from a place in the data to the first batch."""
    sampler = TrainSampler(SAMPLES, BATCH_SIZE, BATCH_SIZE, World(), seed=1)
    batches = SampledBatches(SampledLoader(DataLoader(range(SAMPLES), batch_sampler=sampler), sampler))  # type: ignore[arg-type]
    started = time.perf_counter()
    batches.load_state_dict({"epoch": 1, "position": place})
    update = next(batches.begin(1))
    for _ in update.weights:
        batches.fetch()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
