"""The same work through Ignite's engine, with handlers on five events of each step."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from ignite.engine.events import EventEnum
from workload import Batch, ClockedBatches, StepTime, build_model, build_optimizer, loss_of


class StepEvents(EventEnum):
    """Ignite has four events a step of its own; the fifth is made in the way its documentation shows."""

    BACKWARD_COMPLETED = "backward_completed"


FIVE = [
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    StepEvents.BACKWARD_COMPLETED,
]


class NoOp:
    """One observer with five handlers."""

    def __call__(self, engine: Engine) -> None:
        pass

    def attach(self, engine: Engine) -> None:
        for event in FIVE:
            engine.add_event_handler(event, self)


def run(steps: int, plugins: int) -> StepTime:
    batches = ClockedBatches(steps)
    model = build_model()
    optimizer = build_optimizer(model)
    model.train()

    def update(engine: Engine, batch: Batch) -> torch.Tensor:
        loss = loss_of(model, batch)
        loss.backward()
        if plugins:
            engine.fire_event(StepEvents.BACKWARD_COMPLETED)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    engine = Engine(update)
    engine.register_events(*StepEvents)
    for _ in range(plugins):
        NoOp().attach(engine)
    engine.run(batches, max_epochs=1, epoch_length=batches.steps)
    return batches.seconds
