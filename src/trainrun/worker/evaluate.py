"""One evaluation of the recipe's splits: every sample counted once, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from trainrun.errors import TaskError
from trainrun.rundir.pulse import Pulse
from trainrun.worker import modes, sharding
from trainrun.worker.checkpoint import rng
from trainrun.worker.data import EVALUATION_WEIGHT, SampleCounter, SampledLoader, evaluation_batches
from trainrun.worker.data.fingerprint import length_of
from trainrun.worker.evaluation_record import EvaluationRecord
from trainrun.worker.metrics import Metrics, Value, weighted
from trainrun.worker.session import Session


def evaluate(session: Session) -> bool:
    """Evaluate every split that has data, and log all metrics.

    The metrics are the same on all ranks. Training is left as it was: random generators, the modes of the model's
    parts, and the metrics that wait for the next log. Within, the generators depend on seed, step and rank alone.
    Returns False if a stop interrupted it: then nothing is logged, and the evaluation does not count as made.
    """
    state = session.state
    if not session.evaluation:
        session.evaluated_at, session.last_metrics = state.step, {}
        return True
    phase = state.phase
    state.enter("evaluation")
    session.interruption.begin()
    seed = rng.seed_of("evaluation", state.recipe.run.seed, state.step, state.world.rank)
    with rng.apart(state.device, seed, _generators(session.evaluation.values())):
        with EvaluationRecord(session) as record, modes.evaluating(session.model), torch.no_grad():
            complete = _evaluate_splits(session, record)
            sharding.free(session.shards)
        state.enter(phase)
        session.restart_clock()
        if not complete:
            session.logger.info("evaluation broken off, because training stops", step=state.step)
            return False
        session.warn_nonfinite(record.values)
        session.evaluated_at, session.last_metrics = state.step, record.values
        if record.values and session.hooks.on_log:
            session.hooks.on_log(record.values, state.step)
    return True


def _evaluate_splits(session: Session, record: EvaluationRecord) -> bool:
    """Fill `record`; return False if a stop broke the evaluation off."""
    hooks, splits = session.hooks, tuple(session.evaluation)
    for split, loader in session.evaluation.items():
        metrics = _evaluate_split(session, split, loader)
        if metrics is None:
            return False
        record.begin_split()
        record.add("evaluation_step", metrics)
        record.add_whole_split(split)
        if hooks.on_evaluation_end:
            hooks.on_evaluation_end(split, record.of_split())
        record.add_logged()
    if hooks.on_evaluated:
        hooks.on_evaluated(session.state.step, splits, record.values)
    record.add_logged()  # also on a rank that has no such hook: the others exchange metrics
    return True


def _evaluate_split(session: Session, split: str, loader: Iterable[object]) -> dict[str, float] | None:
    """Average what `evaluation_step` returns for the split.

    Returns None if a stop interrupted the evaluation.
    """
    hooks, collectives = session.hooks, session.collectives
    if hooks.on_evaluation_start:
        hooks.on_evaluation_start(split)
    sums = Metrics(session.state.world.rank, collectives.gather, collectives.gather_objects)
    counter = session.counters.setdefault(split, SampleCounter(f"split {split!r}", EVALUATION_WEIGHT, session.warn))
    total = length_of(loader) or 0
    session.state.pulse.count(0, total)
    batches = evaluation_batches(loader, collectives.gather_integer, counter)
    for index, (fetched, size) in enumerate(_loading(batches, session.state.pulse)):
        batch = hooks.move_batch(fetched, session.device, split) if session.moves else fetched
        if hooks.on_evaluation_batch_start:
            hooks.on_evaluation_batch_start(batch, index, split, size)
        with session.autocast():
            outputs = hooks.evaluation_step(session.model, batch, split) if hooks.evaluation_step else None
        if outputs is None:
            raise TaskError(
                f"evaluation_step returned None for split {split!r}; return a mapping of names to values, or leave"
                " the split out of evaluate.splits"
            )
        for name, (value, weight) in weighted(outputs, hooks.whose).items():
            _add(sums, f"{split}/{name}", value, size if weight is None else weight, counts=size > 0)
        if hooks.on_evaluation_batch_end:
            hooks.on_evaluation_batch_end(batch, index, split, size, outputs)
        session.state.pulse.count(index + 1, total)
        if session.interrupted():
            return None
    reduced = sums.reduce()
    session.warn_partial(sums, idle=True)
    return reduced


def _loading(batches: Iterator[tuple[object, int]], pulse: Pulse) -> Iterator[tuple[object, int]]:
    """Yield the batches; the pulse shows when they are waited for."""
    while True:
        pulse.begin_loading()
        found = next(batches, None)
        pulse.end_loading()
        if found is None:
            return
        yield found


def _generators(loaders: Iterable[object]) -> Iterator[torch.Generator]:
    """Yield the generators that loaders and samplers have of their own.

    A training loader may draw from the same. Processes of a loader have their seeds from there, so that they draw the
    same in each evaluation.
    """
    for one in loaders:
        loader = one.loader if isinstance(one, SampledLoader) else one
        batches = getattr(loader, "batch_sampler", None)
        for holder in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                yield generator


def _add(sums: Metrics, name: str, value: Value, weight: float, *, counts: bool) -> None:
    """Add a batch's value.

    The value of a padding batch leaves no trace, even if it is not finite.
    """
    if counts and not math.isclose(weight, 0.0):
        sums.add(name, value, "mean", weight)
