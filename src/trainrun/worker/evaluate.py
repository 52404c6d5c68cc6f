"""One evaluation of the recipe's splits: every sample counted once, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from trainrun.errors import TrainingError
from trainrun.worker import sharding
from trainrun.worker.data import evaluation_batches
from trainrun.worker.metrics import Metrics, Value, weighted
from trainrun.worker.session import Session


def evaluate(session: Session) -> dict[str, float]:
    """Evaluate every split that has data; answer with all metrics, the same on all ranks, and log them."""
    model, state, hooks = session.model, session.state, session.hooks
    phase, modes = state.phase, [(module, module.training) for module in model.modules()]
    state.enter("evaluation")
    model.eval()
    found: dict[str, float] = {}
    with torch.no_grad():
        for split, loader in session.evaluation.items():
            found |= _evaluate_split(session, split, loader)
    sharding.free(session.shards)
    for module, training in modes:  # one by one: a task may keep a part of its model in evaluation mode
        module.training = training
    state.enter(phase)
    session.evaluated_at = state.step
    session.restart_clock()
    if found and hooks.on_log:
        hooks.on_log(dict(found), state.step)
    return found


def _evaluate_split(session: Session, split: str, loader: Iterable[object]) -> dict[str, float]:
    hooks, collectives = session.hooks, session.collectives
    if hooks.on_evaluation_start:
        hooks.on_evaluation_start(split)
    sums = Metrics(session.state.world.rank, collectives.gather, collectives.gather_objects)
    for index, (fetched, size) in enumerate(evaluation_batches(loader, collectives.gather_integer)):
        batch = hooks.move_batch(fetched, session.device, split) if session.moves else fetched
        if hooks.on_evaluation_batch_start:
            hooks.on_evaluation_batch_start(batch, index, split)
        with session.autocast():
            outputs = hooks.evaluation_step(session.model, batch, split) if hooks.evaluation_step else None
        if outputs is None:
            raise TrainingError(
                f"nobody answers evaluation_step for split {split!r}; implement it, or leave the split out"
            )
        for name, (value, weight) in weighted(outputs).items():
            _add(sums, f"{split}/{name}", value, size if weight is None else weight, counts=size > 0)
        if hooks.on_evaluation_batch_end:
            hooks.on_evaluation_batch_end(batch, index, split, outputs)
        session.state.pulse.advance()
    metrics = sums.reduce()
    session.warn_nonfinite(metrics)
    if hooks.on_evaluation_end:
        hooks.on_evaluation_end(split, dict(metrics))
    return metrics


def _add(sums: Metrics, name: str, value: Value, weight: float, *, counts: bool) -> None:
    """Add a batch's value; one of a padding batch leaves no trace, whatever it is."""
    if counts and not math.isclose(weight, 0.0):
        sums.add(name, value, "mean", weight)
