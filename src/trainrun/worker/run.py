"""The `run` handle that every worker hook may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import torch

from trainrun.errors import TrainingError, shown
from trainrun.plugin.instance import Instance
from trainrun.recipe import Recipe
from trainrun.rundir import RunPaths
from trainrun.worker.checkpoint import finite, weights
from trainrun.worker.decisions import DecisionKind
from trainrun.worker.metrics import Reduce
from trainrun.worker.optim import unwrapped
from trainrun.worker.state import State
from trainrun.worker.world import Job, World

if TYPE_CHECKING:
    import structlog

    from trainrun.plugin.dispatch import Dispatcher


class Run:
    """One plugin instance's view of the run, on one worker. Each instance gets its own.

    Everything but `log`, `save_weights` and the requests is for reading. Attributes are live: they show the moment at
    which they are read. A background hookimpl should use the arguments of its hook instead, which are from the moment
    of the call.
    """

    def __init__(
        self, state: State, instance: Instance, options: Any, logger: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._state = state
        self._instance = instance
        self.options = options
        """The plugin's own validated options; None if it declares none."""
        self.logger = logger
        """A structlog logger bound to run, rank and plugin; writes to `logs/rank-N.jsonl`."""

    @property
    def name(self) -> str:
        """The instance's name: its table in the recipe."""
        return self._instance.name

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe, immutable."""
        return self._state.recipe

    @property
    def world(self) -> World:
        """This worker's rank and the number of workers."""
        return self._state.world

    @property
    def job(self) -> Job:
        """This worker's host, and the scheduler and job id if there is one."""
        return self._state.job

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._state.device

    @property
    def paths(self) -> RunPaths:
        """The files of the run."""
        return self._state.paths

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._state.attempt

    @property
    def step(self) -> int:
        """The current optimizer update, from 1; 0 before the first."""
        return self._state.step

    @property
    def total_steps(self) -> int | None:
        """The last step of the training as planned.

        None if it cannot be known beforehand.
        """
        return self._state.total_steps

    @property
    def epoch(self) -> int:
        """The epoch, from 1; 0 before the first."""
        return self._state.epoch

    @property
    def samples_seen(self) -> int:
        """Training samples used so far, over all ranks and epochs."""
        return self._state.samples_seen

    @property
    def epoch_progress(self) -> float | None:
        """The used share of the epoch's training data, from 0 to 1.

        None if its loader has no length.
        """
        return self._state.epoch_progress()

    @property
    def logs_now(self) -> bool:
        """Whether the metrics of the current step will be logged at its end.

        For what is measured only then.
        """
        return self._state.logs_now

    @property
    def smoke(self) -> bool:
        """Whether this run is a `trainrun smoke`."""
        return self._state.smoke

    @property
    def phase(self) -> str:
        """`"setup"`, `"training"`, `"evaluation"` or `"ending"`."""
        return self._state.phase

    @property
    def model(self) -> torch.nn.Module | None:
        """The parallel model; None before it is built."""
        return self._state.model

    @property
    def module(self) -> torch.nn.Module | None:
        """The model without its wrappers (DDP, `torch.compile`).

        Its parameters have the names that the task knows.
        """
        return None if self._state.model is None else unwrapped(self._state.model)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer; None before it is built."""
        return self._state.optimizer

    @property
    def scheduler(self) -> Any:
        """The learning-rate scheduler; None before it is built, or if there is none."""
        return self._state.scheduler

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler under fp16, otherwise None."""
        return self._state.scaler

    @property
    def hooks(self) -> Dispatcher:
        """The hooks of this worker, for calling those that a plugin brought itself.

        `run.hooks.NAME` is None if no plugin implements the hook. Otherwise it is a function of the hook's arguments in
        the order of its spec, without `run`.
        """
        return self._state.hooks

    def log(self, name: str, value: SupportsFloat, reduce: Reduce = "mean") -> None:
        """Log a number under `name`; it appears in the next `on_log`.

        name: such as `"train/accuracy"`.
        value: a real number, such as a float or a scalar of NumPy, or a tensor with one element, which stays on its
        device until then.
        reduce: how values are combined over steps and ranks: `"mean"`, `"sum"`, `"min"`, `"max"`, `"last"` or `"zero"`.
        `"last"` keeps each rank's last value and takes that of the lowest rank. `"zero"` takes rank 0's last value and
        ignores other ranks, for what only rank 0 computes.

        Raises ValueError or TypeError for other values. Call it from the training thread.
        """
        if isinstance(value, torch.Tensor):
            value = value.detach().clone()  # the plugin may write into its tensor again
        self._state.metrics.add(name, value, reduce)

    def request_stop(self, reason: str) -> None:
        """Ask for training to stop.

        Any rank may ask, from any thread; all ranks stop at one step, as for `should_stop`.

        reason: a non-empty string, here and in the other requests; any other value raises a TypeError.
        """
        self._request("stop", "request_stop", reason)

    def request_checkpoint(self, reason: str) -> None:
        """Ask for a checkpoint, as `should_checkpoint` does. Any rank may, from any thread."""
        self._request("checkpoint", "request_checkpoint", reason)

    def request_evaluation(self, reason: str) -> None:
        """Ask for an evaluation, as `should_evaluate` does. Any rank may, from any thread."""
        self._request("evaluate", "request_evaluation", reason)

    def _request(self, kind: DecisionKind, function: str, reason: str) -> None:
        if not isinstance(reason, str) or not reason.strip():
            raise TypeError(f"run.{function} was called with {shown(reason)}; give it a non-empty string as the reason")
        self._state.decisions.post(kind, self.name, function, reason, origin="request")

    def save_weights(self, path: str | Path, *, local: bool = False) -> None:
        """Write the model's weights to `path` as safetensors; wait for the disk.

        These are its parameters and persistent buffers. Call it on all ranks at the same step, because under fsdp the
        parts are gathered. Rank 0 writes, the others continue as soon as it has what it needs. The file is there whole
        or not at all, and replaces one of its name.
        local: no other rank is asked, and this one writes what it has. Under fsdp these are its parts, with their
        places in the file's notes. For when others may be gone.

        Weights that are not finite never replace a file: with `train.nonfinite` = "warn" that is a warning, otherwise
        an error. With `local` they are written, and the file's notes name them in `not_finite`.

        Raises OSError if the file cannot be written, on the rank that writes; TrainingError before there is a model and
        for weights that are not finite.
        """
        if self.model is None:
            raise TrainingError("run.save_weights: there is no model yet; call it from on_train_start on")
        notes: dict[str, Any] = {"run": self.paths.run_id, "step": str(self.step)}
        if local:
            tensors, places = weights.own(self.model)
            notes |= {"rank": str(self.world.rank), "parts": places, "not_finite": self._not_finite(tensors)}
            weights.write(Path(path), tensors, notes)
        elif tensors := weights.gather(self.model, self.world.rank):
            if found := self._not_finite(tensors):
                self._refuse_weights(Path(path), found)
            else:
                weights.write(Path(path), tensors, notes)

    def _not_finite(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        return [name for name in finite.not_finite(tensors) if name not in self._state.exempt]

    def _refuse_weights(self, path: Path, found: Sequence[str]) -> None:
        message = f"step {self.step}: {path.name} was not written, because weights are not finite: "
        message += finite.describe(found)
        if self.recipe.train.nonfinite == "fail":
            raise TrainingError(f'{message}; set train.nonfinite = "warn" to continue without it')
        self._state.decisions.post("warn", self.name, "save_weights", message)

    def cost(self) -> list[dict[str, Any]]:
        """Return what hooks have cost on this worker so far.

        Rows of instance, hook, calls, total_seconds, max_seconds.
        """
        return [asdict(row) for row in self._state.hooks.cost.table()]
