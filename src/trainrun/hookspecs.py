"""Every hook of trainrun, grouped by phase. This file is the manual for plugin authors.

The client (the process of `trainrun launch`) and each worker (one training process per device)
call these hooks in this order; indented lines repeat::

    check_recipe                                                        client
    on_package_start · on_package_end · on_launch_start                 client
    on_submit_start · on_submit_end (schedulers) · on_attempt_start     client
        on_worker_start                                                 worker
        build_model · parallelize_model · build_optimizer · build_scheduler
        build_dataset · build_dataloader (once a split)
        on_resume_start · on_resume   before and after a checkpoint is loaded
        on_train_start
            choose_batch_size · on_epoch_start
                decisions due at this step: on_stop_requested, on_control, a voted evaluation or checkpoint
                on_step_start
                    collate · on_batch_fetched · move_batch · on_microbatch_start    for each micro-batch
                    training_step · on_forward_end · backward · on_backward_end
                on_gradients_ready · should_skip_update
                clip_gradients · on_gradients_clipped · optimizer_step · on_update_end
                on_log                                                  when due
                on_step_end
                on_evaluation_start                                     when due or voted, for each split
                    collate · move_batch · on_evaluation_batch_start · evaluation_step · on_evaluation_batch_end
                    evaluation_metrics · on_evaluation_end              after the split's last batch
                on_evaluated · on_log                                   after the last split
                on_checkpoint_start · on_checkpoint_saved               when due or voted (or on_checkpoint_failed)
                should_evaluate · should_checkpoint · should_stop
            on_epoch_end
        on_evaluation_start …         unless the last step was evaluated
        on_checkpoint_start · on_checkpoint_saved   unless the last step was saved
        on_train_end · on_completed (rank 0)
        on_exception                  when anything raised
        on_worker_end                 always
    on_status                         while workers run                 client
    on_attempt_end · on_completed · on_launch_end                       client, always

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
    """The recipe is valid and nothing has been created yet. Veto the launch by returning problems.

    Fires in `trainrun check`, `smoke` and `launch`, once. `recipe` is the resolved recipe. Return a
    problem, a list of problems, or None; any problem ends the command with exit code 2, and all
    plugins' problems are shown together. Anything else ends it with code 4. The task cannot implement it.
    """


@hookspec(locus="client", kind="event")
def on_package_start(launch: Launch) -> None:
    """The code snapshot in the run directory's `source/` is about to be taken. `launch` describes the run."""


@hookspec(locus="client", kind="event")
def on_package_end(launch: Launch, snapshot: str) -> None:
    """The code snapshot has been taken. `snapshot` is the folder that holds it."""


@hookspec(locus="client", kind="event")
def on_launch_start(launch: Launch) -> None:
    """The run directory exists and holds the frozen recipe; no worker has been started. `launch` describes the run."""


@hookspec(locus="client", kind="event")
def on_submit_start(launch: Launch, request: Mapping[str, Any]) -> None:
    """A scheduler is about to be asked for machines. `request` holds what it will be asked for.

    Fired by scheduler backends; the local backend submits nothing.
    """


@hookspec(locus="client", kind="event")
def on_submit_end(launch: Launch, request: Mapping[str, Any], job: str | None) -> None:
    """The scheduler has answered, or refused. `job` is its job id, None if it refused. `request` as before.

    Fires after every `on_submit_start`. Fired by scheduler backends; the local backend submits nothing.
    """


@hookspec(locus="client", kind="provider")
def start_workers(launch: Launch) -> WorkersHandle | None:
    """Start the workers of one attempt and answer with a handle to them. Called once an attempt.

    `launch.recipe.launch.backend` names the backend that the recipe asks for: answer None when it
    is not yours. The handle offers `poll()` (None while workers run, then an exit code),
    `stop(reason)` (ask for an orderly end; returns at once) and `kill()` (end everything now;
    returns when nothing is left).
    """


@hookspec(locus="client", kind="event")
def on_attempt_start(launch: Launch, attempt: int) -> None:
    """A worker group is about to be started. `attempt` counts from 1."""


@hookspec(locus="client", kind="event", host=("status", "previous"), copied=("status", "previous"))
def on_status(launch: Launch, status: Mapping[str, Any], previous: Mapping[str, Any]) -> None:
    """The run's status changed, or the plugin's `poll_interval` (seconds, a class attribute) has passed.

    `status` and `previous` are copies of the contents of `status.json` now and at the last call: `state`,
    `attempt`, `step`, `steps`, `epoch`, `metrics`, `samples_per_second` and `updated`.
    """


@hookspec(locus="client", kind="event")
def on_attempt_end(launch: Launch, attempt: int, outcome: Outcome) -> None:
    """A worker group has ended and nothing of it is left running. `outcome` says how `attempt` ended."""


@hookspec(locus="client", kind="event")
def on_launch_end(launch: Launch, outcome: Outcome) -> None:
    """The run is over. Always called, last, also after Ctrl-C, SIGTERM and failures. `outcome` says how it ended."""


@hookspec(locus="client", kind="provider")
def sample_trials(sweep: Any) -> Any:
    """Answer with the ask-and-tell object that proposes the trials of `sweep`. Called once a sweep."""


@hookspec(locus="client", kind="event")
def on_sweep_start(sweep: Any) -> None:
    """A sweep is about to run its first trial. `sweep` describes it."""


@hookspec(locus="client", kind="event")
def on_sweep_end(sweep: Any, results: Any) -> None:
    """All trials of `sweep` are over, or the sweep was stopped. `results` holds every trial's outcome."""


@hookspec(locus="both", kind="event", ranks="zero", host=("outcome", "locus"))
def on_completed(outcome: Outcome, locus: str, run: Run | None, launch: Launch | None) -> None:
    """The run completed. Fires on rank 0 when training ended (`locus` is `"worker"`), and in the client when the
    run ended (`locus` is `"client"`), after `on_attempt_end`.

    `outcome` is how it ended; the client's knows more than rank 0's, which cannot see its peers
    die. `run` is given in the worker, `launch` in the client; the other is None.
    """


# --- worker: setting up ------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all")
def on_worker_start(run: Run) -> None:
    """The process group is up and the plugins are loaded; nothing has been built. `run.model` is None still."""


@hookspec(locus="worker", kind="provider", ranks="all")
def build_model(run: Run, recipe: Recipe, device: torch.device) -> torch.nn.Module | None:
    """Build the model, once. Required.

    Every rank is seeded alike before the call, so all build the same weights. `device` is where
    the model will train; a model left on the CPU is moved there. Answer with the bare module:
    `parallelize_model` wraps it.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def parallelize_model(run: Run, model: torch.nn.Module, world: World) -> torch.nn.Module | None:
    """Wrap the built `model` for the ranks of `world`, once. The default follows the recipe's `[parallel]` table."""


@hookspec(locus="worker", kind="provider", ranks="all")
def build_optimizer(run: Run, model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer | None:
    """Build the optimizer for `model` (already parallel), once. The default follows the `[optimizer]` table.

    Return one `torch.optim.Optimizer`. A list or mapping of optimizers, one that holds others, and one with its own
    `state_dict` or `load_state_dict` are refused: no checkpoint would hold their state.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_scheduler(run: Run, optimizer: torch.optim.Optimizer, recipe: Recipe) -> Any:
    """Build the learning-rate scheduler for `optimizer`, once; it is stepped once an update.

    Optional: without a scheduler rates stay as they are. The default follows the recipe's `[scheduler]` table. It must
    have `step`, callable without arguments, `state_dict` and `load_state_dict`.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_dataset(run: Run, recipe: Recipe, split: str) -> Any:
    """Build the dataset of one split: `"train"` first, then each of the recipe's `evaluate.splits`.

    Return a map-style dataset (`__len__` and `__getitem__`), or an iterable one of samples or of whole micro-batches.
    If several workers or loader processes would read an iterable one, it says by its attribute `sharded` whether a
    copy yields its share (True) or everything (False; trainrun then gives each item out once), and by `batched` whether
    an item is a whole micro-batch. [Data](data.md) has the rules. `"train"` is required unless
    `build_dataloader` returns a loader; a split without data is not evaluated.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def build_dataloader(run: Run, dataset: Any, split: str, world: World) -> Iterable[Any] | None:
    """Build an iterable of this rank's micro-batches of `split`, once a split.

    `dataset` is what `build_dataset` answered, or None; `world` holds this worker's rank and the
    number of workers. The default is a `torch.utils.data.DataLoader` over a sampler that visits
    each sample exactly once an epoch, over all ranks. An iterable with `set_epoch(epoch)` has it
    called before each epoch. A plain `DataLoader` over data that all ranks have is given out by trainrun; if that
    cannot be told, its attribute `sharded`, or that of its dataset or sampler, must say it.
    """


@hookspec(locus="worker", kind="event", ranks="all")
def on_resume_start(run: Run, checkpoint: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """A checkpoint is about to be loaded: everything is built, and nothing has its state yet.

    This is the place to add the parameter groups that training had added by then: the optimizer must have those of the
    checkpoint when its state is loaded. `groups` describes those in order: `names` lists the parameters, as
    `run.module.named_parameters()` calls them, and `settings` holds what the group was built or added with. A
    setting that `add_param_group` is not given here is that of the checkpoint. `checkpoint` is its path. Declare the
    hookimpl with `mutates=True`. After this hook, parameters are frozen or unfrozen as training had left them.
    """


@hookspec(locus="worker", kind="event", ranks="all", copied=("differences",))
def on_resume(run: Run, checkpoint: str, differences: Mapping[str, Any]) -> None:
    """A checkpoint was loaded, before training goes on.

    `checkpoint` is its path; `differences` maps `plugins`, `versions`, `world` and `recipe` to
    what changed since it was written, and is empty where nothing did. Model, optimizer and plugins have their
    state; random generators get theirs after `on_train_start`.
    """


# --- worker: training --------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all")
def on_train_start(run: Run) -> None:
    """Everything is built; the first step of this attempt comes next."""


@hookspec(locus="worker", kind="provider", ranks="all")
def choose_batch_size(run: Run, epoch: int) -> int | None:
    """Choose how many samples an update has, over all workers, in `epoch`, which counts from 1. Optional.

    Called once for each epoch, before it begins; where `train.epochs` is set, for all of them while everything is
    built, because the number of steps depends on it. Answer with a multiple of the workers' micro-batches
    (`train.micro_batch_size` on each worker), the same on all ranks; None stands for `train.batch_size`. Micro-batches
    stay as large as they are: more of them make an update. Only trainrun's own loader can do that.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("epoch", "resumed"))
def on_epoch_start(run: Run, epoch: int, resumed: bool) -> None:
    """An epoch begins. `epoch` counts from 1; `resumed` is True when it is entered in the middle."""


@hookspec(locus="worker", kind="event", ranks="all", host=("step", "epoch"))
def on_step_start(run: Run, step: int, epoch: int) -> None:
    """An update begins; decisions due at `step` have been applied, no batch has been fetched. `epoch` as usual."""


@hookspec(locus="worker", kind="provider", ranks="all")
def collate(samples: list[Any], split: str) -> Any:
    """Make one batch of `samples`, which the dataset of `split` has given. Optional.

    Called once for each micro-batch of trainrun's own loaders, where the samples are: in the loader's processes if
    `data.workers` is set. So it offers no `run`, and what it changes in its plugin stays there. Pad, pack or
    list what differs between samples here: sharding, batch sizes and the position in the data stay exact. Otherwise the
    dataset's `collate_fn` is called if it has one, and torch's `default_collate` if not. A loader from
    `build_dataloader` has its own way.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("seconds",))
def on_batch_fetched(run: Run, batch: Any, seconds: float) -> None:
    """A micro-batch came from the loader, still where the loader put it. `seconds` is how long training waited."""


@hookspec(locus="worker", kind="provider", ranks="all")
def move_batch(run: Run, batch: Any, device: torch.device, split: str) -> Any:
    """Move `batch` to `device`, for training and evaluation; `split` tells which. Wrap it to transform batches.

    The default calls the method `to` of what has one, and goes through mappings, lists, tuples and dataclasses, which
    keep their types. It does not wait if the memory is pinned. On the CPU it returns the batch as it is.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("microbatch", "size"))
def on_microbatch_start(run: Run, batch: Any, microbatch: int, size: int) -> None:
    """A micro-batch is on the device, before its forward. `microbatch` counts from 0 within the update.

    `size` is how many of its samples count: 0 for a batch that is there only because other ranks have one more, and 1
    if the loader is the task's own and its batches do not tell their size.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def training_step(run: Run, model: torch.nn.Module, batch: Any) -> Any:
    """Compute the loss of one micro-batch. Required.

    Return the loss (a scalar tensor: the mean over the samples of `batch`), or a mapping that
    holds it as `"loss"`. If the mean is over something else, such as tokens, the mapping also holds `"weight"`: over
    how many (a number, or a tensor on the device). Gradients and `train/loss` are then the mean over all of them in
    the update, however it is cut into micro-batches and ranks. Return a weight always or never; 0 leaves a micro-batch
    out. Other scalar tensors in the mapping are averaged with the same weights and logged as `train/NAME`. `model` is
    the parallel model: call it, not its parts. Runs under autocast if the recipe's precision asks for it.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("size",))
def on_forward_end(run: Run, outputs: Any, loss: torch.Tensor, size: int) -> None:
    """After the forward of a micro-batch. `outputs` is what `training_step` returned; `loss` is not scaled or divided.

    `size` as in `on_microbatch_start`: a micro-batch of size 0 does not count.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def backward(run: Run, loss: torch.Tensor, scaler: Any) -> bool | None:
    """Run backward of one micro-batch and return True.

    `loss` is already weighted by the micro-batch's share of the update (if the task returns weights and the update has
    several micro-batches, up to a factor that gradients get when it is complete); `scaler` is the
    `torch.amp.GradScaler` under fp16, otherwise None. The default is `loss.backward()`, scaled under fp16.
    """


@hookspec(locus="worker", kind="event", ranks="all")
def on_backward_end(run: Run) -> None:
    """After the backward of a micro-batch. Gradients may be loss-scaled and not reduced over ranks yet."""


@hookspec(locus="worker", kind="event", ranks="all")
def on_gradients_ready(run: Run, model: torch.nn.Module, grad_norm: torch.Tensor | None) -> None:
    """Once an update: gradients are reduced over ranks and unscaled, not clipped.

    `model` is the parallel model. `grad_norm` is the total 2-norm, a scalar tensor on the device,
    computed once, and only if a hookimpl on any rank names it; else None.
    """


@hookspec(locus="worker", kind="vote", ranks="all")
def should_skip_update(run: Run, model: torch.nn.Module, grad_norm: torch.Tensor | None) -> str | None:
    """Skip this update? Return a reason, or None. The arguments are those of `on_gradients_ready`.

    Return a string and not a comparison: `grad_norm > 10` is a tensor, and an error. Every rank must return the same,
    from the same gradients: this vote alone is counted on each rank for itself, and applied at once. A skipped update
    leaves model, optimizer and scheduler as they were.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def clip_gradients(
    run: Run, model: torch.nn.Module, max_norm: float, grad_norm: torch.Tensor | None
) -> torch.Tensor | None:
    """Clip the gradients of `model` to `max_norm` and answer with the norm before clipping, once an update.

    Called when the recipe sets `train.clip_grad_norm`. `grad_norm` is that norm where it was
    computed for `on_gradients_ready` already, else None.
    """


@hookspec(locus="worker", kind="event", ranks="all")
def on_gradients_clipped(run: Run, grad_norm: torch.Tensor | None) -> None:
    """After clipping, before the optimizer. `grad_norm` is the norm before clipping, None where none was computed.

    Does not fire for skipped updates; fires without clipping too.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def optimizer_step(run: Run, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None) -> bool | None:
    """Update the parameters and answer True, once an update. Answer False when the update was left out.

    `closure` is None: gradients are ready when this is called. The default is `optimizer.step()`,
    through the scaler under fp16, which may leave an update out.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("skipped",))
def on_update_end(run: Run, skipped: str | None) -> None:
    """After optimizer and scheduler; gradients are still there. `skipped` is why the update was skipped, or None."""


@hookspec(locus="worker", kind="event", ranks="zero", host=("metrics", "step"), copied=("metrics",))
def on_log(run: Run, metrics: Mapping[str, float], step: int) -> None:
    """Metrics are ready on the host: every `train.log_every` steps, and after an evaluation.

    `metrics` maps names to numbers, reduced over steps and ranks as each was declared in
    `run.log`; each hookimpl gets a copy of its own, to keep or change. `step` is the step just made.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("step", "epoch"), copied=("metrics",))
def on_step_end(run: Run, step: int, epoch: int, loss: torch.Tensor, metrics: Mapping[str, torch.Tensor]) -> None:
    """An update is complete; gradients have been cleared.

    `loss` is the loss of the update's last micro-batch on this rank and `metrics` what
    `training_step` returned besides it: tensors on the device; reading their value waits for it. Each hookimpl gets a
    mapping of its own.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("epoch",))
def on_epoch_end(run: Run, epoch: int) -> None:
    """An epoch ends, also when training stops within it. `epoch` counts from 1."""


@hookspec(locus="worker", kind="event", ranks="all")
def on_train_end(run: Run) -> None:
    """Training ended as planned: the last step was made, or a stop was agreed. Not called after a failure."""


# --- worker: decisions -------------------------------------------------------------------------


@hookspec(locus="worker", kind="vote", ranks="all")
def should_evaluate(run: Run) -> str | None:
    """Evaluate now? Return a reason, or None. Any rank's reason counts.

    Asked at the end of each step, and once more after the evaluation at the end of an epoch.
    What is voted at the end of a step takes effect on all ranks at the same later step
    (two steps on; at once at the end of an evaluation, before a checkpoint, and at the end of the run).
    """


@hookspec(locus="worker", kind="vote", ranks="all")
def should_checkpoint(run: Run) -> str | None:
    """Save a checkpoint? Return a reason, or None. Asked and applied as `should_evaluate` is."""


@hookspec(locus="worker", kind="vote", ranks="all")
def should_stop(run: Run) -> str | None:
    """Stop training? Return a reason, or None. Asked and applied as `should_evaluate` is."""


@hookspec(locus="worker", kind="event", ranks="all", host=("reason", "source"))
def on_stop_requested(run: Run, reason: str, source: str) -> None:
    """All ranks have agreed to stop before the next step. `source` names the plugin, signal or command behind it."""


@hookspec(locus="worker", kind="event", ranks="all", host=("command",))
def on_control(run: Run, command: Mapping[str, Any]) -> None:
    """A live command was applied, at the same step on all ranks. `command` holds its `verb` and arguments.

    This version takes no live commands yet, so it does not fire this.
    """


# --- worker: evaluation ------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all", host=("split",))
def on_evaluation_start(run: Run, split: str) -> None:
    """The evaluation of `split` begins; the model is in evaluation mode.

    From here until after `on_evaluated`, `run.log` logs into the record of this evaluation, and the random generators
    are those of the evaluation: seeded by `run.seed`, step and rank, and put back afterwards.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("index", "split", "size"))
def on_evaluation_batch_start(run: Run, batch: Any, index: int, split: str, size: int) -> None:
    """An evaluation batch of `split` is on the device. `index` counts from 0 on this rank.

    `size` is how many of its samples count: 0 for a batch that is there only because other ranks have one more.
    """


@hookspec(locus="worker", kind="provider", ranks="all")
def evaluation_step(run: Run, model: torch.nn.Module, batch: Any, split: str) -> Mapping[str, Any] | None:
    """Evaluate one batch of `split`, without gradients. Needed as soon as there is a split to evaluate.

    Answer with a mapping of names to values: each a scalar tensor or number that is the mean over
    the samples of `batch`, or a pair (value, weight) where the mean is over something else, such
    as tokens. They are averaged by weight over all batches and ranks, each sample counted exactly
    once, and logged as `SPLIT/NAME`. What is called `"predictions"` may be anything: it is no metric, and goes to
    `on_evaluation_batch_end` only.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("index", "split", "size"))
def on_evaluation_batch_end(
    run: Run, batch: Any, index: int, split: str, size: int, outputs: Mapping[str, Any]
) -> None:
    """After an evaluation batch. `outputs` is the answer of `evaluation_step`; the others as at its start."""


@hookspec(locus="worker", kind="collection", ranks="all")
def evaluation_metrics(run: Run, split: str) -> Mapping[str, Any] | None:
    """Compute metrics of the whole `split`, after its last batch: F1, AUC, perplexity.

    Return a mapping of names to numbers or tensors with one element, logged as `SPLIT/NAME`. All ranks call it at the
    same time, so it may use collectives: sum counts over ranks first, because every rank sees only its own batches. If
    ranks return different values, rank 0's is taken, with a warning. A name that comes from two places is an error.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("split", "metrics"), copied=("metrics",))
def on_evaluation_end(run: Run, split: str, metrics: Mapping[str, float]) -> None:
    """The evaluation of `split` ended. `metrics` maps `SPLIT/NAME` to numbers, the same on all ranks; it is a copy.

    They include those of `evaluation_metrics`, and what was logged since the evaluation's start. What is logged here
    is in the `metrics` of `on_evaluated`.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("step", "splits", "metrics"), copied=("metrics",))
def on_evaluated(run: Run, step: int, splits: Sequence[str], metrics: Mapping[str, float]) -> None:
    """An evaluation is complete, after its last split; does not fire if a stop broke it off.

    `metrics` is the whole record of `step`, the same on all ranks: of all `splits`, with what was logged in
    `on_evaluation_end`. Monitor metrics here.
    """


# --- worker: checkpoints -----------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all", host=("checkpoint",))
def on_checkpoint_start(run: Run, checkpoint: str) -> None:
    """A checkpoint is about to be taken, never within an evaluation. `checkpoint` is the path it will have."""


@hookspec(locus="worker", kind="event", ranks="all", host=("checkpoint",))
def on_checkpoint_saved(run: Run, checkpoint: str) -> None:
    """The checkpoint at path `checkpoint` is committed; fires on all ranks at one agreed step.

    That is some steps after the one that was saved, where it was written in the background.
    """


@hookspec(locus="worker", kind="event", ranks="all", host=("checkpoint", "reason"))
def on_checkpoint_failed(run: Run, checkpoint: str, reason: str) -> None:
    """A checkpoint could not be saved, and training goes on; fires in the place of `on_checkpoint_saved`.

    `checkpoint` is the path that it would have; `reason` says on which rank it failed and why.
    """


# --- worker: the end ---------------------------------------------------------------------------


@hookspec(locus="worker", kind="event", ranks="all")
def on_exception(run: Run, error: BaseException) -> None:
    """Something raised on this rank; `error` is what. Observe only: peers may be gone, so no collectives."""


@hookspec(locus="worker", kind="event", ranks="all", host=("outcome",))
def on_worker_end(run: Run, outcome: Outcome) -> None:
    """The worker leaves, however it ends; `outcome` is this rank's view of it. Called last, also after failures."""
