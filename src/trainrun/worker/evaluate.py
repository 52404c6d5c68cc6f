"""One evaluation of the recipe's splits: every sample counted once, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from trainrun.errors import TrainingError
from trainrun.worker import modes, sharding
from trainrun.worker.data import EVALUATION_WEIGHT, SampleCounter, evaluation_batches
from trainrun.worker.metrics import Metrics, Value, weighted
from trainrun.worker.session import Session


def evaluate(session: Session) -> bool:
    """Evaluate every split that has data, and log all metrics, which are the same on all ranks.

    Answers False where a stop broke it off: then nothing is logged, and the evaluation does not count as made.
    """
    model, state, hooks = session.model, session.state, session.hooks
    phase = state.phase
    state.enter("evaluation")
    session.interruption.begin()
    found: dict[str, float] = {}
    complete = True
    with modes.evaluating(model), torch.no_grad():
        for split, loader in session.evaluation.items():
            metrics = _evaluate_split(session, split, loader)
            if metrics is None:
                complete = False
                break
            found |= metrics
        sharding.free(session.shards)
    state.enter(phase)
    session.restart_clock()
    if not complete:
        session.logger.info("evaluation broken off, because training stops", step=state.step)
        return False
    session.evaluated_at, session.last_metrics = state.step, found
    if found and hooks.on_log:
        hooks.on_log(dict(found), state.step)
    return True


def _evaluate_split(session: Session, split: str, loader: Iterable[object]) -> dict[str, float] | None:
    """The split's metrics; None where a stop broke the evaluation off."""
    hooks, collectives = session.hooks, session.collectives
    if hooks.on_evaluation_start:
        hooks.on_evaluation_start(split)
    sums = Metrics(session.state.world.rank, collectives.gather, collectives.gather_objects)
    counter = session.counters.setdefault(split, SampleCounter(f"split {split!r}", EVALUATION_WEIGHT, session.warn))
    for index, (fetched, size) in enumerate(evaluation_batches(loader, collectives.gather_integer, counter)):
        batch = hooks.move_batch(fetched, session.device, split) if session.moves else fetched
        if hooks.on_evaluation_batch_start:
            hooks.on_evaluation_batch_start(batch, index, split, size)
        with session.autocast():
            outputs = hooks.evaluation_step(session.model, batch, split) if hooks.evaluation_step else None
        if outputs is None:
            raise TrainingError(
                f"nobody answers evaluation_step for split {split!r}; implement it, or leave the split out"
            )
        for name, (value, weight) in weighted(outputs).items():
            _add(sums, f"{split}/{name}", value, size if weight is None else weight, counts=size > 0)
        if hooks.on_evaluation_batch_end:
            hooks.on_evaluation_batch_end(batch, index, split, size, outputs)
        session.state.pulse.advance()
        if session.interrupted():
            return None
    metrics = sums.reduce()
    session.warn_nonfinite(metrics)
    if hooks.on_evaluation_end:
        hooks.on_evaluation_end(split, dict(metrics))
    return metrics


def _add(sums: Metrics, name: str, value: Value, weight: float, *, counts: bool) -> None:
    """Add a batch's value; one of a padding batch leaves no trace, whatever it is."""
    if counts and not math.isclose(weight, 0.0):
        sums.add(name, value, "mean", weight)
