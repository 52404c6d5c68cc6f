"""The loop that everybody writes by hand: what the others are measured against."""

from __future__ import annotations

from workload import ClockedBatches, StepTime, build_model, build_optimizer, loss_of


def run(steps: int) -> StepTime:
    batches = ClockedBatches(steps)
    model = build_model()
    optimizer = build_optimizer(model)
    model.train()
    for batch in batches:
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return batches.seconds
