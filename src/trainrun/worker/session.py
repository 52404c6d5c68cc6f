"""Everything that the loop works with, and what it does about decisions and faults."""

from __future__ import annotations

import math
import numbers
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from trainrun.errors import TrainingError
from trainrun.plugin.dispatch import Dispatcher
from trainrun.rundir import Stop
from trainrun.worker import applying, sharding
from trainrun.worker.data import ForeignBatches, SampleCounter, SampledBatches
from trainrun.worker.decisions import Decision
from trainrun.worker.faults import Faults
from trainrun.worker.interruption import Interruption
from trainrun.worker.loss_weights import LossWeights, Units
from trainrun.worker.parallel import Collectives
from trainrun.worker.reduction import Reduction
from trainrun.worker.replicas import Replicas, listed
from trainrun.worker.saving import Saving
from trainrun.worker.signals import Inbox
from trainrun.worker.state import State

if TYPE_CHECKING:
    import structlog

    from trainrun.worker.metrics import Metrics

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_UNCHANGED: AbstractContextManager[None] = nullcontext()


def _nothing() -> None:
    """Do nothing."""


@dataclass
class Session:
    """One worker's training. Built by `trainrun.worker.setup`; the loop and the evaluation read it."""

    state: State
    hooks: Dispatcher
    collectives: Collectives
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    train: SampledBatches | ForeignBatches
    evaluation: Mapping[str, Iterable[Any]]
    inbox: Inbox
    faults: Faults
    logger: structlog.typing.FilteringBoundLogger
    record_event: Callable[[Mapping[str, Any]], None]
    evaluate: Callable[[Session], bool]
    saving: Saving
    restore_randomness: Callable[[], None] = _nothing
    dataset: Mapping[str, Any] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)  # the state of plugins that the run has no more
    last_metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    counters: dict[str, SampleCounter] = field(default_factory=dict)  # of the splits with a custom loader
    in_epoch: bool = False  # the epoch is not over, its last evaluation included
    owes_step: bool = False  # the step is made, what follows it is not: evaluation and votes
    owes_epoch: bool = False  # the epoch's steps are made, what follows them is not
    partial_metrics: set[str] = field(default_factory=set)  # logged on some ranks only, and warned of
    needs_norm: bool = field(init=False)
    moves: bool = field(init=False)
    checks_loss: bool = field(init=False)
    evaluated_at: int = 0
    logged_at: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        table = self.state.recipe.train
        self.clip = table.clip_grad_norm
        self._precision = _PRECISIONS.get(table.precision)
        several = self.state.world.size > 1
        self.shards = sharding.shards(self.model)
        self.reduction = Reduction(self.model, self.shards, self.state.world)
        self._events: deque[torch.cuda.Event] | None = deque() if several and self.device.type == "cuda" else None
        self.plain = self._precision is None and self.reduction.plain
        self._loss = self.state.metrics.series("train/loss")
        self.interruption = Interruption(self.collectives.gather)
        world, scaled = self.state.world, self.state.scaler is not None
        self.loss_weights = LossWeights(world, self.device, self.collectives.gather_integer, scaled=scaled)
        wait = self.state.recipe.launch.timeout / 2  # seconds: before the run would end as one that hangs
        self.replicas = Replicas(self.model, self.optimizer, world, wait=wait, warn=self.warn)
        self._compared_at = -1
        self.check_replicas = self.state.recipe.parallel.check_replicas
        self.applied: dict[tuple[str, str, str], int] = {}  # the step at which each decision was last applied
        self.look_at_plan()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.state.device

    @property
    def finished(self) -> bool:
        """Whether training is over: the last step or epoch was made, or a stop was agreed."""
        state, epochs = self.state, self.state.recipe.train.epochs
        return state.stop is not None or state.step == state.total_steps or state.epoch == epochs

    def resume_at(self, place: Mapping[str, Any], loader_epoch: int) -> None:
        """Resume from a checkpoint's position.

        loader_epoch: the epoch that the loader begins or continues.
        """
        state, epoch = self.state, place["epoch"]
        state.step, state.samples_seen, state.epoch = place["step"], place["samples_seen"], loader_epoch - 1
        self.in_epoch, self.owes_step = place["in_epoch"], place["owes_step"]
        self.owes_epoch = self.in_epoch and loader_epoch > epoch
        self.evaluated_at, self.last_metrics = place["evaluated_at"], dict(place["last_metrics"])
        self.saving.saved_at = state.step

    def place(self) -> dict[str, Any]:
        """Return the position of the training between two steps, for `resume_at`."""
        state = self.state
        return {
            "step": state.step,
            "epoch": state.epoch,
            "samples_seen": state.samples_seen,
            "in_epoch": self.in_epoch,
            "owes_step": self.owes_step,
            "evaluated_at": self.evaluated_at,
            "last_metrics": dict(self.last_metrics),
        }

    def ready(self) -> None:
        """Apply pending stops and restore generators right before the first step.

        A stop may have been requested meanwhile.
        """
        self.replicas.warn_left_out()
        self.replicas.warn_outside()
        self.look_outside()
        applying.settle(self)
        self.restore_randomness()

    # --- one step ---

    def begin_step(self) -> None:
        """Apply the decisions that are due at the next step."""
        if self.faults.fatal is not None:
            raise self.faults.fatal
        self.look_outside()
        if self._events is not None and len(self._events) >= 2:
            self._events.popleft().synchronize()  # the host must not run ahead of the reduction before last
        decisions = self.state.decisions
        decisions.step = self.state.step + 1
        if decisions.more or decisions.written != decisions.read:
            evaluated_at = self.evaluated_at
            applying.apply(self, decisions.due(decisions.step))
            if self.evaluated_at != evaluated_at:
                self.save_evaluated()

    def save_evaluated(self) -> None:
        """Save the weights that were evaluated, if a checkpoint was requested.

        Call it right after an evaluation between two steps.
        """
        if self.saving.wanted is not None:
            self.saving.at_step(self)

    def interrupted(self) -> bool:
        """Return whether a stop was agreed.

        Then the result of the evaluation is not needed. Call it after an evaluation batch, on all ranks alike.
        """
        if self.interruption.is_asked(here=self.inbox.pending):
            self.look_outside()
            applying.settle(self)
        return self.state.stop is not None

    def look_outside(self) -> None:
        """Post what signals and the client have asked for."""
        for name in self.inbox.put_back():
            self.logger.warning("something had replaced the handler of a signal; it is back", signal=name)
        if self.inbox.pending:
            for request in self.inbox.take():
                self.state.decisions.post(
                    request.kind, request.source, request.hook, request.reason, origin=request.origin
                )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward: the recipe's precision.

        If the model is sharded, ranks wait for one another in it.
        """
        if self.shards:
            return self._gathering()
        return _UNCHANGED if self._precision is None else torch.autocast(self.device.type, self._precision)

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        self.state.pulse.pause()
        with torch.autocast(self.device.type, self._precision, enabled=self._precision is not None):
            yield
        self.state.pulse.resume()

    def follow_replicas(self) -> None:
        """Train what `requires_grad` says from this step on. All ranks call it alike."""
        model = self.replicas.follow()
        strategy = self.state.recipe.parallel.strategy if self.hooks.only_builtin("parallelize_model") else "none"
        if self.reduction.explicit and strategy != "none":
            raise TrainingError(
                "no parameter required a gradient when the model was made parallel, so it was left as it is, and now"
                f" {listed(sorted(self.replicas.trained))} does; let one require a gradient when build_model returns"
            )
        if model is not self.model:
            self.model = self.state.model = model
            self.reduction = Reduction(model, self.shards, self.state.world)

    def reduced(self) -> None:
        """Note that all ranks have entered this step's gradient reduction.

        `Decisions` relies on it. Raises TrainingError if gradients of this rank were left out of it.
        """
        if self.checks_loss:
            self.reduction.require_complete(self.state.step, self.replicas)
        if self.loss_weights.incomplete:
            self.loss_weights.complete(self.replicas.parameters)
        if self.reduction.explicit:
            self.state.pulse.pause()
            self.collectives.barrier()
            self.state.pulse.resume()
        if self._events is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)

    def require_replicas(self) -> None:
        """Raise TrainingError, on all ranks, if they hold different parameters under DDP.

        All ranks call it alike.
        """
        gather, step = self.collectives.gather, self.state.step
        if self.reduction.ddp is None or gather is None or self.check_replicas == "never" or self._compared_at == step:
            return
        self._compared_at = step
        if unlike := self.replicas.differences(gather):
            raise TrainingError(
                f"step {step}: the ranks hold different values of {listed(unlike)}; something changes parameters or"
                " gradients on some ranks only, such as a hook under a condition on the rank, or random numbers that"
                " differ by rank"
            )

    def keep(self, loss: torch.Tensor, extra: Mapping[str, Any], units: Units) -> None:
        """Keep a micro-batch's loss and scalars for the next log.

        The scalars are those that were returned with it.
        """
        self._loss.add(loss.detach(), units)
        if not extra:
            return
        metrics = self.state.metrics
        for name, value in extra.items():
            if isinstance(value, numbers.Real) or (isinstance(value, torch.Tensor) and value.numel() == 1):
                metrics.add(f"train/{name}", value, "mean", units)

    def grad_norm(self) -> torch.Tensor:
        """Return the total 2-norm of the gradients, on the device."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return sharding.whole(torch.nn.utils.get_total_norm(gradients))

    def skip_update(self, reasons: Sequence[tuple[str, str]]) -> str:
        """Leave the training state as it is; return the reasons as text.

        That is the state of model, optimizer and scheduler. The reasons make one text.
        """
        if self.state.scaler is not None:
            self.state.scaler.update()
        for name, reason in reasons:
            self.record(Decision("skip", name, "should_skip_update", reason, self.state.world.rank, self.state.step))
        return "; ".join(f"{name}: {reason}" for name, reason in reasons)

    def look_at_plan(self) -> None:
        """Note what the plan asks of the loop. Call it when the plan has changed."""
        hooks = ("on_gradients_ready", "should_skip_update", "on_gradients_clipped")
        self.needs_norm = any(self.hooks.asks_for(hook, "grad_norm") for hook in hooks)
        # The built-in move_batch leaves batches for the CPU as they are: not worth a call for each.
        self.moves = self.device.type != "cpu" or not self.hooks.only_builtin("move_batch")
        # With a backward of its own, a task may return a loss for the log only.
        self.checks_loss = self.hooks.only_builtin("backward")

    # --- decisions ---

    def stop(self, stop: Stop) -> None:
        """Stop before the next step; all ranks have agreed. The first reason counts."""
        if self.state.stop is not None:
            return
        self.state.stop = stop
        if self.hooks.on_stop_requested:
            self.hooks.on_stop_requested(stop.reason, stop.source)

    def record(self, *group: Decision) -> None:
        """Record a decision and the ranks that took it as an event."""
        first = group[0]
        self.record_event(
            {
                "event": "decision",
                "step": self.state.step,
                "decision": first.kind,
                "plugin": first.plugin,
                "hook": first.hook,
                "rank": first.rank,
                "ranks": sorted({decision.rank for decision in group}),
                "reason": first.reason,
                "posted": first.step,
            }
        )

    # --- faults ---

    def raise_fatal(self) -> None:
        """Raise what a background hookimpl with the policy "fail" has left."""
        if self.faults.fatal is not None:
            raise self.faults.fatal

    def warn_nonfinite(self, metrics: Mapping[str, float]) -> None:
        """Log which evaluation metrics are not finite."""
        found = [name for name, value in metrics.items() if not math.isfinite(value)]
        if found:
            self.logger.warning("metrics that are not finite", metrics=found, step=self.state.step)

    def check_loss(self, metrics: Mapping[str, float]) -> None:
        """Fail, or warn, if the logged training loss is not finite.

        All ranks see the same value.
        """
        loss = metrics.get("train/loss", 0.0)
        if math.isfinite(loss):
            return
        step, every = self.state.step, self.state.recipe.train.log_every
        message = (
            f"train/loss is {loss} at step {step} (mean of steps {max(1, step - every + 1)} to {step}); "
            'lower the learning rate or check the data, or set train.nonfinite = "warn" to continue'
        )
        if self.state.recipe.train.nonfinite == "fail":
            raise TrainingError(message)
        self.warn(message)

    def warn_partial(self, metrics: Metrics, *, idle: bool = False) -> None:
        """Warn, once for each, of metrics that only some ranks have logged.

        Call it on all ranks alike.
        """
        for warning in metrics.take_warnings(self.partial_metrics, idle=idle):
            self.warn(warning)

    def warn_of_loader(self) -> None:
        """Warn, once each, of what a custom loader's batches have shown.

        They count alike, because neither loader nor task gives their size; or ranks begin with the same ones.
        """
        if not isinstance(self.train, ForeignBatches):
            return
        if (warning := self.train.take_warning()) and not self.loss_weights.used:
            self.warn(warning)
        if warning := self.train.take_duplicates():
            self.warn(warning)

    def warn(self, message: str) -> None:
        """Put a warning into the log and the run's events. Call it on all ranks alike."""
        self.logger.warning(message)
        self.record_event({"event": "warning", "step": self.state.step, "reason": message})

    # --- rates ---

    def samples_per_second(self) -> float:
        """Return the samples per second over all ranks.

        They count since the last call or `restart_clock`.
        """
        before, samples = self.logged_at
        now = time.perf_counter()
        self.logged_at = (now, self.state.samples_seen)
        return (self.state.samples_seen - samples) / max(now - before, 1e-9)

    def restart_clock(self) -> None:
        """Leave the time until now out of the rates."""
        self.logged_at = (time.perf_counter(), self.state.samples_seen)
