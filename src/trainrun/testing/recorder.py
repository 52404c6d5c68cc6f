"""A plugin that writes down every hook call."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainrun.marker import hookimpl
from trainrun.rundir.files import append_line
from trainrun.testing.calls import calls_file

if TYPE_CHECKING:
    from trainrun.launch.handle import Launch
    from trainrun.rundir.records import Outcome
    from trainrun.worker.run import Run

Noted = Generator[None, Any, Any]


class HookRecorder:
    """Write down every hook call on every rank and in the client; `trainrun.testing.calls` reads them back.

    It changes nothing: it stands around providers as a wrapper, and leaves `grad_norm` alone, because
    asking for it would have it computed.
    """

    _run: Run | None = None  # for `collate`, which offers none

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy that is sent to another process writes nothing down

    @hookimpl
    def on_package_start(self, launch: Launch) -> None:
        _note(launch, "on_package_start")

    @hookimpl
    def on_package_end(self, launch: Launch, snapshot: str) -> None:
        _note(launch, "on_package_end", snapshot=snapshot)

    @hookimpl
    def on_launch_start(self, launch: Launch) -> None:
        _note(launch, "on_launch_start")

    @hookimpl(wrapper=True)
    def start_workers(self, launch: Launch) -> Noted:
        return (yield from _around(launch, "start_workers"))

    @hookimpl
    def on_attempt_start(self, launch: Launch, attempt: int) -> None:
        _note(launch, "on_attempt_start", attempt=attempt)

    @hookimpl
    def on_status(self, launch: Launch, status: Mapping[str, Any], previous: Mapping[str, Any]) -> None:
        _note(launch, "on_status", status=status, previous=previous)

    @hookimpl
    def on_attempt_end(self, launch: Launch, attempt: int, outcome: Outcome) -> None:
        _note(launch, "on_attempt_end", attempt=attempt, outcome=outcome)

    @hookimpl
    def on_launch_end(self, launch: Launch, outcome: Outcome) -> None:
        _note(launch, "on_launch_end", outcome=outcome)

    @hookimpl(ranks="all")
    def on_completed(self, run: Run | None, launch: Launch | None, outcome: Outcome, locus: str) -> None:
        _note(run or launch, "on_completed", outcome=outcome, locus=locus)

    @hookimpl
    def on_worker_start(self, run: Run) -> None:
        self._run = run
        _note(run, "on_worker_start")

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Noted:
        return (yield from _around(run, "build_model"))

    @hookimpl(wrapper=True)
    def parallelize_model(self, run: Run) -> Noted:
        return (yield from _around(run, "parallelize_model"))

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Noted:
        return (yield from _around(run, "build_optimizer"))

    @hookimpl(wrapper=True)
    def build_scheduler(self, run: Run) -> Noted:
        return (yield from _around(run, "build_scheduler"))

    @hookimpl(wrapper=True)
    def build_dataset(self, run: Run, split: str) -> Noted:
        return (yield from _around(run, "build_dataset", split=split))

    @hookimpl(wrapper=True)
    def build_dataloader(self, run: Run, split: str) -> Noted:
        return (yield from _around(run, "build_dataloader", split=split))

    @hookimpl(wrapper=True)
    def collate(self, split: str) -> Noted:
        return (yield from _around(self._run, "collate", split=split))

    @hookimpl
    def on_resume_start(self, run: Run, checkpoint: str, groups: Sequence[Mapping[str, Any]]) -> None:
        _note(run, "on_resume_start", checkpoint=checkpoint, groups=groups)

    @hookimpl
    def on_resume(self, run: Run, checkpoint: str, differences: Mapping[str, Any]) -> None:
        _note(run, "on_resume", checkpoint=checkpoint, differences=differences)

    @hookimpl
    def on_train_start(self, run: Run) -> None:
        _note(run, "on_train_start")

    @hookimpl
    def on_epoch_start(self, run: Run, epoch: int, resumed: bool) -> None:
        _note(run, "on_epoch_start", epoch=epoch, resumed=resumed)

    @hookimpl
    def on_step_start(self, run: Run, step: int, epoch: int) -> None:
        _note(run, "on_step_start", step=step, epoch=epoch)

    @hookimpl
    def on_batch_fetched(self, run: Run, batch: Any, seconds: float) -> None:
        _note(run, "on_batch_fetched", batch=batch, seconds=seconds)

    @hookimpl(wrapper=True)
    def move_batch(self, run: Run, split: str) -> Noted:
        return (yield from _around(run, "move_batch", split=split))

    @hookimpl
    def on_microbatch_start(self, run: Run, batch: Any, microbatch: int, size: int) -> None:
        _note(run, "on_microbatch_start", batch=batch, microbatch=microbatch, size=size)

    @hookimpl(wrapper=True)
    def training_step(self, run: Run) -> Noted:
        return (yield from _around(run, "training_step"))

    @hookimpl
    def on_forward_end(self, run: Run, outputs: Any, loss: Any, size: int) -> None:
        _note(run, "on_forward_end", outputs=outputs, loss=loss, size=size)

    @hookimpl(wrapper=True)
    def backward(self, run: Run) -> Noted:
        return (yield from _around(run, "backward"))

    @hookimpl
    def on_backward_end(self, run: Run) -> None:
        _note(run, "on_backward_end")

    @hookimpl
    def on_gradients_ready(self, run: Run, model: Any) -> None:
        _note(run, "on_gradients_ready", model=model)

    @hookimpl
    def should_skip_update(self, run: Run) -> None:
        _note(run, "should_skip_update")

    @hookimpl(wrapper=True)
    def clip_gradients(self, run: Run) -> Noted:
        return (yield from _around(run, "clip_gradients"))

    @hookimpl
    def on_gradients_clipped(self, run: Run) -> None:
        _note(run, "on_gradients_clipped")

    @hookimpl(wrapper=True)
    def optimizer_step(self, run: Run) -> Noted:
        return (yield from _around(run, "optimizer_step"))

    @hookimpl
    def on_update_end(self, run: Run, skipped: str | None) -> None:
        _note(run, "on_update_end", skipped=skipped)

    @hookimpl(ranks="all")
    def on_log(self, run: Run, metrics: Mapping[str, Any], step: int) -> None:
        _note(run, "on_log", metrics=metrics, step=step)

    @hookimpl
    def on_step_end(self, run: Run, step: int, epoch: int, loss: Any, metrics: Mapping[str, Any]) -> None:
        _note(run, "on_step_end", step=step, epoch=epoch, loss=loss, metrics=metrics)

    @hookimpl
    def on_epoch_end(self, run: Run, epoch: int) -> None:
        _note(run, "on_epoch_end", epoch=epoch)

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        _note(run, "on_train_end")

    @hookimpl
    def should_evaluate(self, run: Run) -> None:
        _note(run, "should_evaluate")

    @hookimpl
    def should_checkpoint(self, run: Run) -> None:
        _note(run, "should_checkpoint")

    @hookimpl
    def should_stop(self, run: Run) -> None:
        _note(run, "should_stop")

    @hookimpl
    def on_stop_requested(self, run: Run, reason: str, source: str) -> None:
        _note(run, "on_stop_requested", reason=reason, source=source)

    @hookimpl
    def on_control(self, run: Run, command: Mapping[str, Any]) -> None:
        _note(run, "on_control", command=command)

    @hookimpl
    def on_evaluation_start(self, run: Run, split: str) -> None:
        _note(run, "on_evaluation_start", split=split)

    @hookimpl
    def on_evaluation_batch_start(self, run: Run, batch: Any, index: int, split: str, size: int) -> None:
        _note(run, "on_evaluation_batch_start", batch=batch, index=index, split=split, size=size)

    @hookimpl(wrapper=True)
    def evaluation_step(self, run: Run, split: str) -> Noted:
        return (yield from _around(run, "evaluation_step", split=split))

    @hookimpl
    def on_evaluation_batch_end(self, run: Run, batch: Any, index: int, split: str, size: int, outputs: Any) -> None:
        _note(run, "on_evaluation_batch_end", batch=batch, index=index, split=split, size=size, outputs=outputs)

    @hookimpl
    def on_evaluation_end(self, run: Run, split: str, metrics: Mapping[str, Any]) -> None:
        _note(run, "on_evaluation_end", split=split, metrics=metrics)

    @hookimpl
    def evaluation_metrics(self, run: Run, split: str) -> None:
        _note(run, "evaluation_metrics", split=split)

    @hookimpl
    def on_evaluated(self, run: Run, step: int, splits: Sequence[str], metrics: Mapping[str, Any]) -> None:
        _note(run, "on_evaluated", step=step, splits=splits, metrics=metrics)

    @hookimpl
    def on_checkpoint_start(self, run: Run, checkpoint: str) -> None:
        _note(run, "on_checkpoint_start", checkpoint=checkpoint)

    @hookimpl
    def on_checkpoint_saved(self, run: Run, checkpoint: str) -> None:
        _note(run, "on_checkpoint_saved", checkpoint=checkpoint)

    @hookimpl
    def on_checkpoint_failed(self, run: Run, checkpoint: str) -> None:
        _note(run, "on_checkpoint_failed", checkpoint=checkpoint)

    @hookimpl
    def on_exception(self, run: Run, error: BaseException) -> None:
        _note(run, "on_exception", error=error)

    @hookimpl
    def on_worker_end(self, run: Run, outcome: Outcome) -> None:
        _note(run, "on_worker_end", outcome=outcome)


def _around(source: Run | Launch | None, hook: str, /, **arguments: Any) -> Noted:
    answer = yield
    _note(source, hook, **arguments, answer=answer)
    return answer


def _note(source: Run | Launch | None, hook: str, /, **arguments: Any) -> None:
    if source is None:
        return
    world = getattr(source, "world", None)  # a client's handle has none
    plain = {name: _plain(value) for name, value in arguments.items()}
    record = {"hook": hook, "rank": None if world is None else world.rank, "arguments": plain}
    append_line(calls_file(source.paths), record)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold, otherwise its type's name.

    Reading a tensor would wait for it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return type(value).__name__
