"""Every hook of trainrun, grouped by phase. This file is the manual for plugin authors.

The hooks are called in this order, in the client (the process of `trainrun launch`) and in each worker (one
training process per device). What stands under a line with a colon is repeated, or is called under the condition
that the line states; `<checkpoint>` and `<evaluation>` stand for the parts of that name::

    client:
        check_recipe
        on_launch_start
        on_package_start · on_package_end
        for each attempt:
            on_attempt_start
            if a scheduler starts the workers:
                on_submit_start · on_submit_end
            start_workers
            while the workers run:
                on_status
            on_attempt_end
        on_completed
        on_launch_end

    worker:
        on_worker_start
        build_model · parallelize_model
        build_dataset · build_dataloader (for training)
        if train.epochs is set, for each epoch:
            choose_batch_size
        build_optimizer · build_scheduler
        for each split of evaluate.splits:
            build_dataset · build_dataloader
        if the attempt starts from a checkpoint:
            on_resume_start · on_resume
        on_train_start
        if the checkpoint was saved before the end of its step:
            <end of step>
        for each epoch:
            if train.steps is set:
                choose_batch_size
            on_epoch_start
            for each step:
                if decisions are due (of votes, signals or commands), one after the other:
                    <decision>
                on_step_start
                for each micro-batch:
                    if the loader is trainrun's:
                        collate
                    on_batch_fetched · move_batch · on_microbatch_start
                    training_step · on_forward_end · backward · on_backward_end
                on_gradients_ready · should_skip_update
                unless a plugin skips the update:
                    if train.clip_grad_norm is set:
                        clip_gradients
                    on_gradients_clipped · optimizer_step
                on_update_end
                at every train.log_every-th step:
                    on_log
                on_step_end
                <end of step>
            if decisions are due after the last step, one after the other:
                <decision>
            if evaluate.every is "epoch":
                <evaluation>
                should_evaluate · should_checkpoint · should_stop
            on_epoch_end
            if a checkpoint was voted for:
                <checkpoint>
        if the last step was not evaluated:
            <evaluation>
        if the last step was not saved:
            <checkpoint>
        on_train_end
        if something was logged since the last step:
            on_log
        on rank 0:
            on_completed
        on_worker_end

    end of step:
        if evaluate.every divides the step:
            <evaluation>
        should_evaluate · should_checkpoint · should_stop
        if checkpoint.every divides the step, or its time has passed:
            <checkpoint>

    decision:
        if it is a stop:
            on_stop_requested
        if it is a command:
            on_control
        if it is a vote for an evaluation:
            <evaluation>
        if it is the end of a save in the background:
            on_checkpoint_saved
        if that save failed:
            on_checkpoint_failed
        if a checkpoint was voted for with the evaluation:
            <checkpoint>

    evaluation:
        for each split of evaluate.splits:
            on_evaluation_start
            for each batch:
                if the loader is trainrun's:
                    collate
                move_batch · on_evaluation_batch_start · evaluation_step · on_evaluation_batch_end
            evaluation_metrics · on_evaluation_end
        on_evaluated · on_log

    checkpoint:
        on_checkpoint_start
        if it was committed at once:
            on_checkpoint_saved
        if it failed at once:
            on_checkpoint_failed

An exception, or a signal that ends the process, breaks off the worker's part at any point; then come `on_exception`
and `on_worker_end`. A stop breaks off an evaluation after any of its batches, and the loop over steps and epochs.

Kinds: all hookimpls of an *event* run, and what they return is ignored; the first value of a *provider* that is
not None wins; all hookimpls of a *vote* return None or False for no, or the reason as a non-empty string, and any
reason counts; all mappings of a *collection* are merged. A hookimpl is a plain function: one that is `async`, or has
a `yield` without `wrapper=True`, is refused.

A hookimpl takes any subset of a hook's arguments, by name. Every worker hook but `collate` also offers `run`
(`trainrun.Run`), bound to the plugin instance that receives it. Ranks are the default; `hookimpl(ranks=…)`
overrides it. Steps count optimizer updates from 1, epochs from 1, micro-batches and evaluation batches from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainrun.marker import hookspec

if TYPE_CHECKING:
    import torch

    from trainrun.launch.handle import Launch, WorkersHandle
    from trainrun.recipe import Recipe
    from trainrun.rundir import Outcome
    from trainrun.worker.run import Run
    from trainrun.worker.world import World

# --- in the client -----------------------------------------------------------------------------


@hookspec(locus="client", kind="vote")
def check_recipe(recipe: Recipe) -> str | list[str] | None:
    """Veto a launch by returning what is wrong with the recipe.

    Called once in `trainrun check`, `smoke` and `launch`, when the recipe is valid and nothing has been created yet.
    `recipe` is the resolved recipe. Return a problem, a list of problems, or None. Any problem ends the command with
    exit code 2, and the problems of all plugins are shown together. Any other value ends it with code 4. The task
    cannot implement this hook.
    """


@hookspec(locus="client", kind="event")
def on_package_start(launch: Launch) -> None:
    """Called before the code is copied into the run directory's `source/`. `launch` describes the run."""


@hookspec(locus="client", kind="event")
def on_package_end(launch: Launch, snapshot: str) -> None:
    """Called after the code has been copied. `snapshot` is the folder that holds the copy."""


@hookspec(locus="client", kind="event")
def on_launch_start(launch: Launch) -> None:
    """Called when the run directory exists and holds the saved recipe, before any worker is started.

    `launch` describes the run.
    """


@hookspec(locus="client", kind="event")
def on_submit_start(launch: Launch, request: Mapping[str, Any]) -> None:
    """Called before a scheduler is asked for machines. `request` holds what it will be asked for.

    Scheduler backends call it; the local backend submits nothing.
    """


@hookspec(locus="client", kind="event")
def on_submit_end(launch: Launch, request: Mapping[str, Any], job: str | None) -> None:
    """Called after every `on_submit_start`, when the scheduler has accepted or refused the request.

    `job` is the scheduler's job id, or None if it refused; `request` is that of `on_submit_start`. Scheduler backends
    call it; the local backend submits nothing.
    """


@hookspec(locus="client", kind="provider")
def start_workers(launch: Launch) -> WorkersHandle | None:
    """Start the workers of one attempt and return a handle to them.

    Called once for each attempt. `launch.recipe.launch.backend` names the backend that the recipe asks for: return
    None for any other than yours. The handle has `poll()` (returns None while workers run, then an exit code),
    `stop(reason)` (requests an orderly end and returns at once) and `kill()` (ends every process and returns when none
    is left).
    """


@hookspec(locus="client", kind="event")
def on_attempt_start(launch: Launch, attempt: int) -> None:
    """Called before the workers of an attempt are started. `attempt` counts from 1."""


@hookspec(locus="client", kind="event", host=("status", "previous"), copied=("status", "previous"))
def on_status(launch: Launch, status: Mapping[str, Any], previous: Mapping[str, Any]) -> None:
    """Called when the run's status has changed, and every `poll_interval` seconds (an attribute of the plugin's class).

    `status` and `previous` are copies of the contents of `status.json` now and at the last call: `state`,
    `attempt`, `step`, `steps`, `epoch`, `metrics`, `samples_per_second` and `updated`.
    """


@hookspec(locus="client", kind="event")
def on_attempt_end(launch: Launch, attempt: int, outcome: Outcome) -> None:
    """Called when the workers of `attempt` have ended and none is left. `outcome` says how they ended."""


@hookspec(locus="client", kind="event")
def on_launch_end(launch: Launch, outcome: Outcome) -> None:
    """Called last, when the run is over, also after Ctrl-C, SIGTERM and failures. `outcome` says how it ended."""


@hookspec(locus="client", kind="provider")
def sample_trials(sweep: Any) -> Any:
    """Return the sampler that proposes the trials of `sweep`. Called once for each sweep."""


@hookspec(locus="client", kind="event")
def on_sweep_start(sweep: Any) -> None:
    """Called before the first trial of a sweep. `sweep` describes it."""


@hookspec(locus="client", kind="event")
def on_sweep_end(sweep: Any, results: Any) -> None:
    """Called when all trials of `sweep` are over, or it was stopped. `results` holds the outcome of every trial."""


@hookspec(locus="both", kind="event", ranks="zero", host=("outcome", "locus"))
def on_completed(outcome: Outcome, locus: str, run: Run | None, launch: Launch | None) -> None:
    """Called when training has ended, on rank 0, and when the run has ended, in the client after `on_attempt_end`.

    `locus` is `"worker"` or `"client"` accordingly. `outcome` says how it ended; the client's knows more than that of
    rank 0, which cannot see other ranks die. `run` is given in the worker, `launch` in the client; the other is None.
    """


# --- worker: setting up ------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all")
def on_worker_start(run: Run) -> None:
    """Called when the process group is up and the plugins are loaded, before anything is built.

    `run.model` is still None.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_model(run: Run, recipe: Recipe, device: torch.device) -> torch.nn.Module | None:
    """Build the model. Required.

    Called once. Every rank is seeded alike before the call, so all build the same weights. The model will train
    on `device`; a model left on the CPU is moved there. Return the bare module: `parallelize_model` wraps it.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def parallelize_model(run: Run, model: torch.nn.Module, world: World) -> torch.nn.Module | None:
    """Wrap the built `model` for the ranks of `world`.

    Called once. The default follows the recipe's `[parallel]` table.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_optimizer(run: Run, model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer | None:
    """Build the optimizer for `model`, which is already parallel.

    Called once. The default follows the `[optimizer]` table. Return one `torch.optim.Optimizer`. A list or mapping of
    optimizers, one that holds others, and one with its own `state_dict` or `load_state_dict` are refused, because no
    checkpoint would hold their state.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_scheduler(run: Run, optimizer: torch.optim.Optimizer, recipe: Recipe) -> Any:
    """Build the learning-rate scheduler for `optimizer`.

    Called once; the scheduler is then stepped once for each update. Optional: without a scheduler, rates stay as they
    are. The default follows the recipe's `[scheduler]` table. A scheduler needs `step`, callable without arguments,
    `state_dict` and `load_state_dict`.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_dataset(run: Run, recipe: Recipe, split: str) -> Any:
    """Build the dataset of one split.

    Called for `"train"` first, then for each of the recipe's `evaluate.splits`. Return a map-style dataset (`__len__`
    and `__getitem__`), or an iterable one of samples or of whole micro-batches. If several workers or loader processes
    would read an iterable one, it says by its attribute `sharded` whether a copy yields its share (True) or everything
    (False; trainrun then gives each item out once), and by `batched` whether an item is a whole micro-batch.
    [Data](data.md) has the rules. `"train"` is required unless `build_dataloader` returns a loader; a split without
    data is not evaluated.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_dataloader(run: Run, dataset: Any, split: str, world: World) -> Iterable[Any] | None:
    """Build an iterable of this rank's micro-batches of `split`.

    Called once for each split. `dataset` is what `build_dataset` returned, or None; `world` holds this worker's rank
    and the number of workers. The default is a `torch.utils.data.DataLoader` over a sampler that visits each sample
    exactly once in an epoch, over all ranks. If the iterable has `set_epoch(epoch)`, that is called before each epoch.
    A plain `DataLoader` over data that all ranks have is given out by trainrun; if trainrun cannot find out, an
    attribute `sharded` of the loader, its dataset or its sampler must say it.
    """


@hookspec(locus="worker", kind="event", ranks="all")
def on_resume_start(run: Run, checkpoint: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """Called before a checkpoint is loaded: everything is built, and nothing has its state yet.

    This is the place to add the parameter groups that training had added by then: the optimizer must have those of the
    checkpoint when its state is loaded. `groups` describes those in order: `names` lists the parameters, as
    `run.module.named_parameters()` calls them, and `settings` holds what the group was built or added with. A
    setting that `add_param_group` is not given here is that of the checkpoint. `checkpoint` is its path. Declare the
    hookimpl with `mutates=True`. After this hook, parameters are frozen or unfrozen as training had left them.
    """


@hookspec(locus="worker", kind="event", ranks="all", copied=("differences",))
def on_resume(run: Run, checkpoint: str, differences: Mapping[str, Any]) -> None:
    """Called after a checkpoint was loaded, before training continues.

    `checkpoint` is its path; `differences` maps `plugins`, `versions`, `world` and `recipe` to
    what has changed since it was written, and is empty if nothing has. Model, optimizer and plugins have their
    state; random generators get theirs after `on_train_start`.
    """


# --- worker: training --------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all")
def on_train_start(run: Run) -> None:
    """Called when everything is built, before the first step of this attempt."""


@hookspec(locus="worker", kind="provider", ranks="all")
def choose_batch_size(run: Run, epoch: int) -> int | None:
    """Choose how many samples an update has, over all workers, in `epoch`. Optional.

    Called once for each epoch, before it begins; if `train.epochs` is set, for all of them while everything is
    built, because the number of steps depends on it. `epoch` counts from 1. Return a multiple of the workers'
    micro-batches (`train.micro_batch_size` on each worker), the same on all ranks, or None for `train.batch_size`.
    The size of a micro-batch does not change: an update has more of them. Only trainrun's own loader can do that.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("epoch", "resumed"))
def on_epoch_start(run: Run, epoch: int, resumed: bool) -> None:
    """Called when an epoch begins. `epoch` counts from 1; `resumed` is True if it is entered in the middle."""


@hookspec(locus="worker", kind="event", ranks="all", host=("step", "epoch"))
def on_step_start(run: Run, step: int, epoch: int) -> None:
    """Called when an update begins: decisions due at `step` have been applied, and no batch has been fetched.

    `epoch` counts from 1.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def collate(samples: list[Any], split: str) -> Any:
    """Make one batch of `samples`, which the dataset of `split` has returned. Optional.

    Called once for each micro-batch of trainrun's own loaders, in the process that has the samples: a loader process if
    `data.workers` is set. Therefore it offers no `run`, and what it changes in its plugin stays there. Pad, pack or
    list what differs between samples here: sharding, batch sizes and the position in the data stay exact. The default
    is the dataset's `collate_fn` if it has one, and torch's `default_collate` otherwise. A loader from
    `build_dataloader` collates in its own way.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("seconds",))
def on_batch_fetched(run: Run, batch: Any, seconds: float) -> None:
    """Called when a micro-batch came from the loader, before it is moved to the device.

    `seconds` is how long training waited for it.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def move_batch(run: Run, batch: Any, device: torch.device, split: str) -> Any:
    """Move `batch` to `device`.

    Called for each micro-batch of training and each batch of an evaluation; `split` says of which. Wrap it to
    transform batches. The default calls the method `to` of what has one, and goes through mappings, lists, tuples and
    dataclasses, which keep their types. It does not wait if the memory is pinned. On the CPU it returns the batch as
    it is.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("microbatch", "size"))
def on_microbatch_start(run: Run, batch: Any, microbatch: int, size: int) -> None:
    """Called when a micro-batch is on the device, before its forward pass.

    `microbatch` counts from 0 within the update. `size` is how many of its samples count: 0 for a batch that is there
    only because other ranks have one more, and 1 if the loader is the task's own and its batches do not show their
    size.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def training_step(run: Run, model: torch.nn.Module, batch: Any) -> Any:
    """Compute the loss of one micro-batch. Required.

    Called for each micro-batch, under autocast if the recipe's precision asks for it. Return the loss (a scalar
    tensor: the mean over the samples of `batch`), or a mapping that
    holds it as `"loss"`. If the mean is over other units, such as tokens, the mapping also holds `"weight"`: over
    how many (a number, or a tensor on the device). Gradients and `train/loss` are then the mean over all of them in
    the update, however it is cut into micro-batches and ranks. Return a weight always or never; 0 leaves a micro-batch
    out. Other scalar tensors in the mapping are averaged with the same weights and logged as `train/NAME`. `model` is
    the parallel model: call it, not its parts.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("size",))
def on_forward_end(run: Run, outputs: Any, loss: torch.Tensor, size: int) -> None:
    """Called after the forward pass of a micro-batch.

    `outputs` is what `training_step` returned; `loss` is not scaled or divided. `size` is that of
    `on_microbatch_start`: a micro-batch of size 0 does not count.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def backward(run: Run, loss: torch.Tensor, scaler: Any) -> bool | None:
    """Run the backward pass of one micro-batch and return True.

    Called for each micro-batch. `loss` is already weighted by the micro-batch's share of the update (if the task
    returns weights and the update has several micro-batches, up to a factor that gradients get when the update is
    complete); `scaler` is the `torch.amp.GradScaler` under fp16, otherwise None. The default is `loss.backward()`,
    scaled under fp16.
    """


@hookspec(locus="worker", kind="event", ranks="all")
def on_backward_end(run: Run) -> None:
    """Called after the backward pass of a micro-batch.

    Gradients may be scaled, and are perhaps not yet reduced over ranks.
    """


@hookspec(locus="worker", kind="event", ranks="all")
def on_gradients_ready(run: Run, model: torch.nn.Module, grad_norm: torch.Tensor | None) -> None:
    """Called once for each update, when gradients are reduced over ranks and unscaled, before they are clipped.

    `model` is the parallel model. `grad_norm` is the total 2-norm, a scalar tensor on the device, computed once, and
    only if a hookimpl on any rank names it; otherwise it is None.
    """


@hookspec(locus="worker", kind="vote", ranks="all")
def should_skip_update(run: Run, model: torch.nn.Module, grad_norm: torch.Tensor | None) -> str | None:
    """Return a reason to skip this update, or None.

    Called once for each update; the arguments are those of `on_gradients_ready`. Return a string and not a comparison:
    `grad_norm > 10` is a tensor, and an error. Every rank must return the same, from the same gradients:
    this vote alone is counted on each rank for itself, and applied at once. A skipped update leaves model, optimizer
    and scheduler as they were.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def clip_gradients(
    run: Run, model: torch.nn.Module, max_norm: float, grad_norm: torch.Tensor | None
) -> torch.Tensor | None:
    """Clip the gradients of `model` to `max_norm` and return the norm before clipping.

    Called once for each update if the recipe sets `train.clip_grad_norm`. `grad_norm` is that norm if it was computed
    for `on_gradients_ready`, otherwise None.
    """


@hookspec(locus="worker", kind="event", ranks="all")
def on_gradients_clipped(run: Run, grad_norm: torch.Tensor | None) -> None:
    """Called after clipping, before the optimizer's step, also if nothing is clipped.

    `grad_norm` is the norm before clipping, or None if it was not computed. Not called for skipped updates.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def optimizer_step(run: Run, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None) -> bool | None:
    """Update the parameters; return True, or False if the update was left out.

    Called once for each update, when gradients are ready; `closure` is None. The default is `optimizer.step()`,
    through the scaler under fp16, which may leave an update out.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("skipped",))
def on_update_end(run: Run, skipped: str | None) -> None:
    """Called after the steps of optimizer and scheduler, before gradients are cleared.

    `skipped` is why the update was skipped, or None.
    """


@hookspec(locus="worker", kind="event", ranks="zero", host=("metrics", "step"), copied=("metrics",))
def on_log(run: Run, metrics: Mapping[str, float], step: int) -> None:
    """Called when metrics are on the host: every `train.log_every` steps, and after an evaluation.

    `metrics` maps names to numbers, reduced over steps and ranks as each was declared in
    `run.log`; each hookimpl gets a copy of its own, to keep or change. `step` is the last step.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("step", "epoch"), copied=("metrics",))
def on_step_end(run: Run, step: int, epoch: int, loss: torch.Tensor, metrics: Mapping[str, torch.Tensor]) -> None:
    """Called when an update is complete and gradients have been cleared.

    `loss` is the loss of the update's last micro-batch on this rank and `metrics` what
    `training_step` returned besides it: tensors on the device; reading their value waits for it. Each hookimpl gets a
    mapping of its own.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("epoch",))
def on_epoch_end(run: Run, epoch: int) -> None:
    """Called when an epoch ends, also if training stops within it. `epoch` counts from 1."""


@hookspec(locus="worker", kind="event", ranks="all")
def on_train_end(run: Run) -> None:
    """Called when training ended as planned: after the last step, or an agreed stop. Not called after a failure."""


# --- worker: decisions -------------------------------------------------------------------------


@hookspec(locus="worker", kind="vote", ranks="all")
def should_evaluate(run: Run) -> str | None:
    """Return a reason to evaluate now, or None. The reason of any rank counts.

    Called at the end of each step, and once more after the evaluation at the end of an epoch.
    A vote at the end of a step takes effect on all ranks at the same later step
    (two steps on; at once at the end of an evaluation, before a checkpoint, and at the end of the run).
    """


@hookspec(locus="worker", kind="vote", ranks="all")
def should_checkpoint(run: Run) -> str | None:
    """Return a reason to save a checkpoint, or None. Called and applied as `should_evaluate` is."""


@hookspec(locus="worker", kind="vote", ranks="all")
def should_stop(run: Run) -> str | None:
    """Return a reason to stop training, or None. Called and applied as `should_evaluate` is."""


@hookspec(locus="worker", kind="event", ranks="all", host=("reason", "source"))
def on_stop_requested(run: Run, reason: str, source: str) -> None:
    """Called when all ranks have agreed to stop before the next step.

    `source` names the plugin, signal or command that asked for it; `reason` says why.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("command",))
def on_control(run: Run, command: Mapping[str, Any]) -> None:
    """Called when a live command was applied, at the same step on all ranks.

    `command` holds its `verb` and arguments. This version takes no live commands yet, so it never calls this hook.
    """


# --- worker: evaluation ------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all", host=("split",))
def on_evaluation_start(run: Run, split: str) -> None:
    """Called when the evaluation of `split` begins; the model is in evaluation mode.

    From here until after `on_evaluated`, `run.log` logs into the record of this evaluation, and the random generators
    are those of the evaluation: seeded by `run.seed`, step and rank, and put back afterwards.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("index", "split", "size"))
def on_evaluation_batch_start(run: Run, batch: Any, index: int, split: str, size: int) -> None:
    """Called when an evaluation batch of `split` is on the device.

    `index` counts from 0 on this rank. `size` is how many of its samples count: 0 for a batch that is there only
    because other ranks have one more.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def evaluation_step(run: Run, model: torch.nn.Module, batch: Any, split: str) -> Mapping[str, Any] | None:
    """Evaluate one batch of `split`, without gradients. Required if there is a split to evaluate.

    Called for each batch. Return a mapping of names to values: each a scalar tensor or number that is the mean over
    the samples of `batch`, or a pair (value, weight) if the mean is over other units, such
    as tokens. They are averaged by weight over all batches and ranks, each sample counted exactly
    once, and logged as `SPLIT/NAME`. The value of `"predictions"` may be anything: it is no metric, and is passed to
    `on_evaluation_batch_end` only.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("index", "split", "size"))
def on_evaluation_batch_end(
    run: Run, batch: Any, index: int, split: str, size: int, outputs: Mapping[str, Any]
) -> None:
    """Called after an evaluation batch. `outputs` is what `evaluation_step` returned; the others as at its start."""


@hookspec(locus="worker", kind="collection", ranks="all")
def evaluation_metrics(run: Run, split: str) -> Mapping[str, Any] | None:
    """Compute metrics of the whole `split`: F1, AUC, perplexity.

    Called after the last batch of each split. Return a mapping of names to numbers or tensors with one element, logged
    as `SPLIT/NAME`. All ranks call it at the same time, so it may use collectives: sum counts over ranks first, because
    every rank sees only its own batches. If ranks return different values, that of rank 0 is taken, with a warning. A
    name that comes from two places is an error.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("split", "metrics"), copied=("metrics",))
def on_evaluation_end(run: Run, split: str, metrics: Mapping[str, float]) -> None:
    """Called when the evaluation of `split` has ended.

    `metrics` maps `SPLIT/NAME` to numbers, the same on all ranks; it is a copy. They include those of
    `evaluation_metrics`, and what was logged since the evaluation's start. What is logged here is in the `metrics` of
    `on_evaluated`.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("step", "splits", "metrics"), copied=("metrics",))
def on_evaluated(run: Run, step: int, splits: Sequence[str], metrics: Mapping[str, float]) -> None:
    """Called when an evaluation is complete, after its last split. Not called if a stop broke it off.

    `metrics` is the whole record of `step`, the same on all ranks: of all `splits`, with what was logged in
    `on_evaluation_end`. Monitor metrics here.
    """


# --- worker: checkpoints -----------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all", host=("checkpoint",))
def on_checkpoint_start(run: Run, checkpoint: str) -> None:
    """Called before a checkpoint is taken, never within an evaluation. `checkpoint` is the path it will have."""


@hookspec(locus="worker", kind="event", ranks="all", host=("checkpoint",))
def on_checkpoint_saved(run: Run, checkpoint: str) -> None:
    """Called when the checkpoint at path `checkpoint` is committed, on all ranks at one agreed step.

    If it was written in the background, that is some steps after the one that was saved.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("checkpoint", "reason"))
def on_checkpoint_failed(run: Run, checkpoint: str, reason: str) -> None:
    """Called instead of `on_checkpoint_saved` when a checkpoint could not be saved; training continues.

    `checkpoint` is the path that it would have; `reason` says on which rank it failed and why.
    """


# --- worker: the end ---------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all")
def on_exception(run: Run, error: BaseException) -> None:
    """Called when an exception, `error`, has ended training on this rank.

    Only observe: other ranks may be gone, so collectives would hang.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("outcome",))
def on_worker_end(run: Run, outcome: Outcome) -> None:
    """Called last, before the worker exits, also after failures.

    `outcome` is how training ended, as this rank saw it.
    """
