"""The training loop. Everything around it is a hook; `trainrun.hookspecs` shows the whole on one page.

Hooks that no plugin implements are None and are not called. They are looked up at each use, because a decision may
change the plan between two steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch

from trainrun.errors import TaskError, TrainingError
from trainrun.plugin.dispatch import Dispatcher
from trainrun.worker import applying, modes
from trainrun.worker.checkpoint.finite import untrained
from trainrun.worker.data import Update
from trainrun.worker.evaluate import evaluate
from trainrun.worker.loss_graph import depends_on, explain
from trainrun.worker.loss_weights import Units
from trainrun.worker.session import Session

Extra = Mapping[str, Any]

_NO_EXTRA: Extra = {}


def train(session: Session) -> None:
    """Train until the last step, or until the ranks agree to stop.

    `session.state.stop` then says why.
    """
    state, hooks = session.state, session.hooks
    state.enter("training")
    if kept := modes.begin_training(session.model):
        session.warn(modes.explain(kept))
    session.restart_clock()
    if hooks.on_train_start:
        hooks.on_train_start()
    state.exempt |= untrained(session.model)
    session.ready()
    if session.owes_step:
        _end_step(session)
    if session.owes_epoch:
        _end_epoch(session)
    while not session.finished:
        _epoch(session)
    if state.stop is None and session.evaluated_at != state.step:
        evaluate(session)
    session.saving.at_end(session)
    state.enter("ending")
    if hooks.on_train_end:
        hooks.on_train_end()
    log(session)  # what was logged since the last time; without a step since then, only that


def _epoch(session: Session) -> None:
    state, hooks = session.state, session.hooks
    state.epoch += 1
    begun_at, resumed = state.step, session.train.resumed
    state.pulse.begin_loading()
    updates = session.train.begin(state.epoch)
    state.pulse.end_loading()
    session.in_epoch = True
    if hooks.on_epoch_start:
        hooks.on_epoch_start(state.epoch, resumed)
    for update in updates:
        session.begin_step()
        if state.stop is not None:
            break
        state.step += 1
        state.pulse.begin_step(state.step)
        _update(session, update)
        state.pulse.end_step()
        _end_step(session)
        if state.step == state.total_steps:
            break
    if state.step == begun_at and state.stop is None and not resumed:
        raise TaskError("the train loader gave no batch in a whole epoch; check the dataset and data.drop_last")
    _end_epoch(session)


def _end_step(session: Session) -> None:
    """Evaluate, count votes and save a checkpoint after a step.

    If a stop interrupts the evaluation it is still due.
    """
    state, every = session.state, session.state.recipe.evaluate.every
    session.owes_step = True
    if isinstance(session.check_replicas, int) and state.step % session.check_replicas == 0:
        session.require_replicas()
    evaluating = isinstance(every, int) and state.step % every == 0
    if evaluating and not evaluate(session):
        return
    _vote(session)
    session.owes_step = False
    if evaluating:
        applying.settle(session)
    if session.saving.is_due(state.step):
        session.saving.at_step(session)


def _end_epoch(session: Session) -> None:
    state, hooks, evaluating = session.state, session.hooks, session.state.recipe.evaluate.every == "epoch"
    session.owes_epoch = False
    complete = state.stop is None and (not evaluating or evaluate(session))
    session.in_epoch = not complete
    if complete and evaluating:
        _vote(session)
        applying.settle(session)
    if hooks.on_epoch_end:
        hooks.on_epoch_end(state.epoch)
    if complete and evaluating:
        session.save_evaluated()


def _update(session: Session, update: Update) -> None:
    state, hooks, step = session.state, session.hooks, session.state.step
    if hooks.on_step_start:
        hooks.on_step_start(step, state.epoch)
    if session.replicas.changed():
        session.follow_replicas()
    for index in range(len(update.weights)):
        loss, extra = _microbatch(session, update, index)
    if session.replicas.changed():
        session.replicas.require_unchanged(step)
    session.reduced()
    skipped = _apply_gradients(session)
    session.saving.losses.end_update(applied=skipped is None)
    state.samples_seen += update.samples
    session.train.use(update)
    if hooks.on_update_end:
        hooks.on_update_end(skipped)
    session.optimizer.zero_grad()
    if state.logs_now:
        log(session)
    if hooks.on_step_end:
        hooks.on_step_end(step, state.epoch, loss, extra)


def _microbatch(session: Session, update: Update, index: int) -> tuple[torch.Tensor, Extra]:
    hooks = session.hooks
    batch = _fetch(session)
    size = update.sizes[index]  # a custom loader reports it with the first batch of the update
    if session.moves:
        batch = hooks.move_batch(batch, session.device, "train")
    if hooks.on_microbatch_start:
        hooks.on_microbatch_start(batch, index, size)
    if session.plain:
        loss, extra, units = _forward_backward(session, batch, update, index)
    else:
        with session.reduction.around(last=index == len(update.weights) - 1):
            loss, extra, units = _forward_backward(session, batch, update, index)
    if size:
        session.keep(loss, extra, units)
        session.saving.losses.add(loss, units)
    if hooks.on_backward_end:
        hooks.on_backward_end()
    return loss, extra


def _forward_backward(session: Session, batch: Any, update: Update, index: int) -> tuple[torch.Tensor, Extra, Units]:
    hooks, pulse, size = session.hooks, session.state.pulse, update.sizes[index]
    if session.plain:
        outputs = hooks.training_step(session.model, batch)
    else:
        with session.autocast(), session.reduction.advising():
            outputs = hooks.training_step(session.model, batch)
    loss, weight, extra = _loss(outputs, hooks)
    if hooks.on_forward_end:
        hooks.on_forward_end(outputs, loss, size)
    pulse.pause()
    units = session.loss_weights.take(weight, counts=size > 0)
    if units is None:
        units, share = size, update.weights[index]
        scaled = loss if share == 1.0 else loss * share
    else:
        scaled = session.loss_weights.scaled(loss, units, index, len(update.weights))
    known, sharded = session.replicas.identities, bool(session.shards)
    if session.checks_loss and not depends_on(scaled, known, sharded=sharded):
        where = f"step {session.state.step}, rank {session.state.world.rank}"
        raise TrainingError(f"{where}: {explain(loss)}")
    hooks.backward(scaled, session.state.scaler)
    pulse.resume()
    return loss, extra, units


def _fetch(session: Session) -> Any:
    hooks, pulse = session.hooks, session.state.pulse
    pulse.begin_loading()
    started = perf_counter()
    batch = session.train.fetch()
    pulse.end_loading()
    if hooks.on_batch_fetched:
        hooks.on_batch_fetched(batch, perf_counter() - started)
    return batch


def _loss(outputs: Any, hooks: Dispatcher) -> tuple[torch.Tensor, Any, Extra]:
    """Return the loss, its weight, and the task's other values.

    The weight is there if the task returned one.
    """
    loss: Any
    weight: Any = None
    extra = _NO_EXTRA
    if isinstance(outputs, torch.Tensor):
        loss = outputs
    elif isinstance(outputs, Mapping):
        loss, weight = outputs.get("loss"), outputs.get("weight")
        if len(outputs) > 1:
            extra = {key: value for key, value in outputs.items() if key not in ("loss", "weight")}
    else:
        loss = None
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        what = _shown(loss) if isinstance(loss, torch.Tensor) else _shown(outputs)
        raise TaskError(
            f'training_step returned {what}; return a scalar loss, or {{"loss": mean, "weight": units}}'
            + hooks.whose("training_step")
        )
    return loss, weight, extra


def _shown(outputs: Any) -> str:
    if outputs is None:
        return "None"
    if isinstance(outputs, torch.Tensor):
        return f"a tensor of shape {tuple(outputs.shape)}"
    return f"a mapping with {list(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__


def _apply_gradients(session: Session) -> str | None:
    """Clip and step; return the reason if the update was skipped."""
    state, hooks, model = session.state, session.hooks, session.model
    if state.scaler is not None:
        state.scaler.unscale_(session.optimizer)
    norm = session.grad_norm() if session.needs_norm else None
    if hooks.on_gradients_ready:
        hooks.on_gradients_ready(model, norm)
    if hooks.should_skip_update and (reasons := hooks.should_skip_update(model, norm)):
        return session.skip_update(reasons)
    if len(session.optimizer.param_groups) != state.built.count:
        state.built.notice(session.optimizer, state.scheduler)
    if session.clip is not None:
        norm = hooks.clip_gradients(model, session.clip, norm)
        if not isinstance(norm, torch.Tensor | float | int) or (isinstance(norm, torch.Tensor) and norm.numel() != 1):
            what = "clip_gradients returned " + _shown(norm)
            raise TaskError(f"{what}; return the norm before clipping{hooks.whose('clip_gradients')}")
        state.metrics.add("train/grad_norm", norm)
    if hooks.on_gradients_clipped:
        hooks.on_gradients_clipped(norm)
    if hooks.optimizer_step(session.optimizer, None) is False:
        return "gradients were not finite under fp16; the loss scale was lowered"
    if state.scheduler is not None:
        state.scheduler.step()
    return None


def log(session: Session) -> None:
    """Reduce the metrics since the last log and hand them to `on_log`.

    Called on all ranks at the same step.
    """
    session.warn_of_loader()
    pulse = session.state.pulse
    pulse.pause()
    metrics = session.state.metrics.reduce()
    session.warn_partial(session.state.metrics)
    pulse.resume()
    if "train/loss" in metrics:
        metrics["train/samples_per_second"] = session.samples_per_second()
    if metrics and session.hooks.on_log:
        session.hooks.on_log(metrics, session.state.step)
    session.check_loss(metrics)


def _vote(session: Session) -> None:
    hooks, post = session.hooks, session.state.decisions.post
    session.saving.post_overdue(session.state.decisions)
    if hooks.should_evaluate:
        for name, reason in hooks.should_evaluate():
            post("evaluate", name, "should_evaluate", reason)
    if hooks.should_checkpoint:
        for name, reason in hooks.should_checkpoint():
            post("checkpoint", name, "should_checkpoint", reason)
    if hooks.should_stop:
        for name, reason in hooks.should_stop():
            post("stop", name, "should_stop", reason)
