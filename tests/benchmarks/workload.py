"""The same small work for every loop: a 64-64-10 network, batches made beforehand, SGD, one process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

WARM_UP = 300
BATCH_SIZE = 32
RATE = 0.01

Batch = tuple[torch.Tensor, torch.Tensor]


class StepTime(NamedTuple):
    """Seconds a step: the median on the clock, and the mean of processor time.

    Other processes on the machine disturb the first little and the second hardly; the second also holds what
    is done only now and then.
    """

    wall: float
    cpu: float


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE)


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    inputs, labels = batch
    return functional.cross_entropy(model(inputs), labels)


class ClockedBatches:
    """Yields the same few batches over and over, and times a loop from outside.

    The clock is read whenever the loop asks for a batch, so that every loop is timed alike and none has to be
    changed for it.
    """

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._batches = [
            (
                torch.randn(BATCH_SIZE, 64, generator=generator),
                torch.randint(10, (BATCH_SIZE,), generator=generator),
            )
            for _ in range(16)
        ]
        self.steps = WARM_UP + steps + 1  # one more, so that every loop asks for the batch that stops the clock
        self._asked = [0.0] * self.steps
        self._worked = [0.0] * self.steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        asked, worked, clock, cpu_clock = self._asked, self._worked, time.perf_counter, time.process_time
        for index in range(self.steps):
            asked[index] = clock()
            worked[index] = cpu_clock()
            yield self._batches[index % len(self._batches)]

    @property
    def seconds(self) -> StepTime:
        """The time of a step, after the warm-up."""
        asked, worked = self._asked[WARM_UP:], self._worked[WARM_UP:]
        assert all(asked), "the loop ended early"
        each = [after - before for before, after in itertools.pairwise(asked)]
        return StepTime(statistics.median(each), (worked[-1] - worked[0]) / len(each))
