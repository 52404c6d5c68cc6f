"""The same small work for every loop: a 64-64-10 network, batches made beforehand, SGD, one process."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

WARM_UP = 300
BATCH_SIZE = 32
RATE = 0.01

Batch = tuple[torch.Tensor, torch.Tensor]


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

    The clock is read when the loop asks for the first batch after the warm-up and when it asks for the
    one after the last measured step, so that every loop is timed alike and none has to be changed for it.
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
        self._measured = steps
        self.steps = WARM_UP + steps + 1  # one more, so that every loop asks for the batch that stops the clock
        self._started = self._ended = 0.0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.steps):
            if index == WARM_UP:
                self._started = time.perf_counter()
            elif index == WARM_UP + self._measured:
                self._ended = time.perf_counter()
            yield self._batches[index % len(self._batches)]

    @property
    def seconds_per_step(self) -> float:
        assert self._ended > self._started, "the loop ended before the clock was stopped"
        return (self._ended - self._started) / self._measured
