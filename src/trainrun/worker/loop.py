"""The training loop. Everything around it is a hook; `trainrun.hookspecs` shows the whole on one page.

Hooks that nobody implements are None and are not called. They are looked up at each use, because a decision may
change the plan between two steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch

from trainrun.errors import TrainingError
from trainrun.worker.data import Update
from trainrun.worker.evaluate import evaluate
from trainrun.worker.session import Session

Extra = Mapping[str, Any]

_NO_EXTRA: Extra = {}


def train(session: Session) -> None:
    """Train until the last step, or until the ranks agree to stop; `session.state.stop` then says why."""
    state, hooks = session.state, session.hooks
    state.enter("training")
    session.model.train()
    session.restart_clock()
    if hooks.on_train_start:
        hooks.on_train_start()
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
    updates = session.train.begin(state.epoch)
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
        raise TrainingError(
            "the train loader gave no batch in a whole epoch; look at the dataset, or at data.drop_last"
        )
    _end_epoch(session)


def _end_step(session: Session) -> None:
    """What follows a step: evaluation, votes, a checkpoint. Where a stop breaks the evaluation off it is still owed."""
    state, every = session.state, session.state.recipe.evaluate.every
    session.owes_step = True
    evaluating = isinstance(every, int) and state.step % every == 0
    if evaluating and not evaluate(session):
        return
    _vote(session)
    session.owes_step = False
    if evaluating:
        session.settle()
    if session.saving.is_due(state.step):
        session.saving.at_step(session)


def _end_epoch(session: Session) -> None:
    state, hooks, evaluating = session.state, session.hooks, session.state.recipe.evaluate.every == "epoch"
    session.owes_epoch = False
    complete = state.stop is None and (not evaluating or evaluate(session))
    session.in_epoch = not complete
    if complete and evaluating:
        _vote(session)
        session.settle()
    if hooks.on_epoch_end:
        hooks.on_epoch_end(state.epoch)
    if complete and evaluating:
        session.save_evaluated()


def _update(session: Session, update: Update) -> None:
    state, hooks, step = session.state, session.hooks, session.state.step
    if hooks.on_step_start:
        hooks.on_step_start(step, state.epoch)
    for index in range(len(update.weights)):
        loss, extra = _microbatch(session, update, index)
    session.reduced()
    skipped = _apply_gradients(session)
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
    hooks, weight, size = session.hooks, update.weights[index], update.sizes[index]
    batch = _fetch(session)
    if session.moves:
        batch = hooks.move_batch(batch, session.device, "train")
    if hooks.on_microbatch_start:
        hooks.on_microbatch_start(batch, index)
    if session.plain:
        loss, extra = _forward_backward(session, batch, weight)
    else:
        with session.reduction(last=index == len(update.weights) - 1):
            loss, extra = _forward_backward(session, batch, weight)
    if size:
        session.keep(loss, extra, size)
    if hooks.on_backward_end:
        hooks.on_backward_end()
    return loss, extra


def _forward_backward(session: Session, batch: Any, weight: float) -> tuple[torch.Tensor, Extra]:
    hooks, pulse = session.hooks, session.state.pulse
    if session.plain:
        outputs = hooks.training_step(session.model, batch)
    else:
        with session.autocast():
            outputs = hooks.training_step(session.model, batch)
    loss, extra = _loss(outputs)
    if hooks.on_forward_end:
        hooks.on_forward_end(outputs, loss)
    pulse.pause()
    hooks.backward(loss if weight == 1.0 else loss * weight, session.state.scaler)
    pulse.resume()
    return loss, extra


def _fetch(session: Session) -> Any:
    hooks = session.hooks
    if not hooks.on_batch_fetched:
        return session.train.fetch()
    started = perf_counter()
    batch = session.train.fetch()
    hooks.on_batch_fetched(batch, perf_counter() - started)
    return batch


def _loss(outputs: Any) -> tuple[torch.Tensor, Extra]:
    """The loss, and what the task answered beside it."""
    loss: Any
    if isinstance(outputs, torch.Tensor):
        loss, extra = outputs, _NO_EXTRA
    elif isinstance(outputs, Mapping):
        loss, extra = outputs.get("loss"), {key: value for key, value in outputs.items() if key != "loss"}
    else:
        loss, extra = None, _NO_EXTRA
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else _shown(outputs)
        raise TrainingError(
            f"training_step answered {shown}; it must answer a scalar tensor, or a mapping that holds one as 'loss'"
        )
    return loss, extra


def _shown(outputs: Any) -> str:
    if outputs is None:
        return "None"
    return f"a mapping with {list(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__


def _apply_gradients(session: Session) -> str | None:
    """Clip and step; answer with the reason where the update was skipped."""
    state, hooks, model = session.state, session.hooks, session.model
    if state.scaler is not None:
        state.scaler.unscale_(session.optimizer)
    norm = session.grad_norm() if session.needs_norm else None
    if hooks.on_gradients_ready:
        hooks.on_gradients_ready(model, norm)
    if hooks.should_skip_update and (reasons := hooks.should_skip_update(model, norm)):
        return session.skip_update(reasons)
    if session.clip is not None:
        norm = hooks.clip_gradients(model, session.clip, norm)
        state.metrics.add("train/grad_norm", norm)
    if hooks.on_gradients_clipped:
        hooks.on_gradients_clipped(norm)
    if hooks.optimizer_step(session.optimizer, None) is False:
        return "gradients were not finite under fp16; the loss scale was lowered"
    if state.scheduler is not None:
        state.scheduler.step()
    return None


def log(session: Session) -> None:
    """Reduce the metrics since the last log and hand them to `on_log`. Called on all ranks at the same step."""
    pulse = session.state.pulse
    pulse.pause()
    metrics = session.state.metrics.reduce()
    pulse.resume()
    if "train/loss" in metrics:
        metrics["train/samples_per_second"] = session.samples_per_second()
    if metrics and session.hooks.on_log:
        session.hooks.on_log(dict(metrics), session.state.step)
    session.check_loss(metrics)


def _vote(session: Session) -> None:
    hooks, post = session.hooks, session.state.decisions.post
    session.saving.post_overdue(session.state.decisions)
    if hooks.should_evaluate:
        for name, reason in hooks.should_evaluate():
            post("evaluate", name, "should_evaluate", str(reason))
    if hooks.should_checkpoint:
        for name, reason in hooks.should_checkpoint():
            post("checkpoint", name, "should_checkpoint", str(reason))
    if hooks.should_stop:
        for name, reason in hooks.should_stop():
            post("stop", name, "should_stop", str(reason))
