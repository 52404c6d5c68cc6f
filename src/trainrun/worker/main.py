"""One training process: `python -m trainrun.worker.main RUN_DIR ATTEMPT AGENT_PID`, started by torchrun.

A worker leaves with a completion record, or with an error record and a non-zero exit code. Exit code 0 without a
completion record is taken for a failure by the client: torchrun alone would call it a success.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from trainrun.errors import (
    EnvironmentProblem,
    ExitCode,
    HookFailed,
    PluginProblem,
    TaskError,
    TrainingError,
    TrainrunError,
    described,
    message_of,
)
from trainrun.plugin.guard import hookimpl_traceback
from trainrun.rundir import Outcome, RunPaths, WorkerError, WorkerRecord, scratch
from trainrun.rundir.files import write_atomic, write_json
from trainrun.rundir.process import start_time
from trainrun.rundir.pulse import Beat
from trainrun.rundir.records import ErrorKind
from trainrun.rundir.secrets import scrub, scrub_all
from trainrun.worker import applying, output
from trainrun.worker.logs import make_logger
from trainrun.worker.loop import train as train_loop
from trainrun.worker.origin import origin
from trainrun.worker.parent import die_with_parent
from trainrun.worker.setup import Logger, Worker
from trainrun.worker.signals import Terminated
from trainrun.worker.sockets import make_room
from trainrun.worker.ties import Ties, tie
from trainrun.worker.world import World

_LONG = 1_000_000  # characters of a message or traceback in a record
_DRAIN = 10.0  # seconds that all background plugins together get at the end


def main() -> None:
    """Run a worker that torchrun has started as a new process."""
    run_dir, attempt, agent = sys.argv[1:4]
    die_with_parent(int(agent))
    scratch.adopt()
    run_worker(run_dir, int(attempt))


def run_worker(run_dir: str, attempt: int, problem: str | None = None) -> NoReturn:
    """Run a worker from its first record to its end.

    The process must be tied to its parent already. problem: why it must not train, if that was found before it began.
    """
    code = ExitCode.ENVIRONMENT  # if not even the record can be written: the client finds out what is wrong
    sockets = None
    try:
        sockets = make_room()
        code = _recorded(run_dir, attempt, problem)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the process door
        with suppress(OSError, ValueError):
            traceback.print_exc()
    finally:
        # Not through Python's own end, and without destroying the process group: gloo's destructor can hang when a DDP
        # module outlives its group, threads of plugins may still run, and Python waits for processes that load data.
        # All ranks have met in a barrier before.
        if sockets is not None:
            shutil.rmtree(sockets, ignore_errors=True)
        os._exit(code)


def _recorded(run_dir: str, attempt: int, problem: str | None) -> ExitCode:
    """Train, and leave a record of how that ended.

    Raises OSError if it cannot be written.
    """
    paths, world = RunPaths(Path(run_dir)), World.from_environment()
    output.redirect(paths, attempt, world.rank)
    record = Record(paths, attempt, world.rank)
    try:
        ties, deadline = tie(paths, attempt, world.rank, partial(_end_late, record))
        record.update("starting")  # not before: the client may send a signal as soon as it knows this process
        if problem is not None:
            raise EnvironmentProblem(problem)
        outcome = train(paths, world=world, attempt=attempt, ties=ties, on_phase=record.update)
        deadline.cancel()
        record.finish(outcome)
    except BaseException as error:  # every exception must be on record
        return record.fail(error)
    return ExitCode.OK


def _end_late(record: Record, beat: Beat) -> NoReturn:
    """End, from a thread, if the main thread does not finish.

    It would have to come to the end of its step.
    """
    try:
        record.update(beat.phase, beat.step)
        record.fail(Terminated(f"it did not stop in time, and was still {beat.place}", beat.instance, beat.hook))
    finally:
        os._exit(ExitCode.TERMINATED)


def train(
    paths: RunPaths,
    *,
    world: World | None = None,
    attempt: int = 1,
    ties: Ties | None = None,
    on_phase: Callable[[str, int], None] | None = None,
) -> Outcome:
    """Train one attempt of the run in `paths` as the worker `world`.

    Returns this rank's view of how it ended. The run directory must hold the recipe and the manifest that the client
    writes. on_phase: called with the phase and step at each change.

    Raises what the training raises, after `on_exception` and `on_worker_end` were called.
    """
    world = world or World()
    on_phase, ties = on_phase or _ignore, ties or Ties()
    log, limit = paths.rank_log(world.rank), output.limit(paths)
    logger = make_logger(log, limit, run=paths.run_id, rank=world.rank, attempt=attempt)
    on_phase("setup", 0)
    ties.pulse.enter("setup")
    worker = Worker(paths, world, attempt, logger, ties)
    hooks, state = worker.hooks, worker.state
    outcome = Outcome("failed", ExitCode.TRAINING_FAILED, "", attempt=attempt, started=time.time())
    try:
        if hooks.on_worker_start:
            hooks.on_worker_start()
        session = worker.session()
        on_phase("training", 0)
        train_loop(session)
        outcome = _ended(worker, outcome)
        if hooks.on_completed:
            hooks.on_completed(outcome, "worker", None)
        worker.collectives.barrier()
    except BaseException as error:
        outcome = replace(outcome, reason=described(error), step=state.step)
        logger.exception("training failed", step=state.step, phase=state.phase)
        with suppress(OSError):  # the storage may be why it has failed
            on_phase(state.phase, state.step)
        with _second_to(error, logger):
            if hooks.on_exception:
                hooks.on_exception(error)
        with _second_to(error, logger):
            _leave(worker, replace(outcome, ended=time.time()))
        raise
    outcome = replace(outcome, ended=time.time())
    _leave(worker, outcome)
    applying.record_late(session)
    return outcome


@contextmanager
def _second_to(first: BaseException, logger: Logger) -> Iterator[None]:
    """Keep the reason of a failed training.

    What plugins raise afterwards must not hide it.
    """
    try:
        yield
    except HookFailed as error:
        logger.exception("a hook raised after the failure", hook=error.hook, plugin=error.instance)
        first.add_note(f"then: {error}")


def _ignore(phase: str, step: int) -> None:
    del phase, step


def _ended(worker: Worker, outcome: Outcome) -> Outcome:
    step = worker.state.step
    # A stop that was agreed after the last step has stopped nothing.
    if worker.state.stop is None or step == worker.state.total_steps:
        return replace(outcome, state="finished", exit_code=0, reason=f"all {step} steps were made", step=step)
    stop = worker.state.stop
    return replace(outcome, state="stopped", exit_code=0, reason=stop.at(step), step=step, stop=stop)


def _leave(worker: Worker, outcome: Outcome) -> None:
    """Call `on_worker_end`, and wait for the work of background plugins.

    This is done after any exception.
    """
    try:
        if worker.hooks.on_worker_end:
            worker.hooks.on_worker_end(outcome)
    finally:
        _drain(worker)


def _drain(worker: Worker) -> None:
    for name, lost in worker.hooks.drain(_DRAIN).items():
        reason = lost.told(_DRAIN)
        worker.logger.warning(reason, plugin=name)
        worker.state.decisions.post("lost", name, "background", reason)
    if counts := worker.faults.counts():
        worker.logger.warning("hooks failed", times=counts)


class Record:
    """The worker's record in the run directory."""

    def __init__(self, paths: RunPaths, attempt: int, rank: int) -> None:
        self._path = paths.worker_record(attempt, rank)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        self._record = WorkerRecord(
            pid=pid,
            pgid=os.getpgid(0),
            start_time=start_time(pid) or 0,
            rank=rank,
            phase="starting",
            parent=os.getppid(),
        )

    def update(self, phase: str, step: int = 0) -> None:
        """Note the phase and step of the worker."""
        self._write(replace(self._record, phase=phase, step=max(step, self._record.step)))

    def finish(self, outcome: Outcome) -> None:
        """Write the completion record."""
        self._write(replace(self._record, phase="finished", step=outcome.step, stop=outcome.stop))

    def fail(self, error: BaseException) -> ExitCode:
        """Write the error record; return the error's exit code."""
        code = error.exit_code if isinstance(error, TrainrunError) else ExitCode.TRAINING_FAILED
        blamed = error if isinstance(error, HookFailed | Terminated) else None
        raised = error.__cause__ if isinstance(error, HookFailed) and error.__cause__ else error
        message, trace = message_of(error), _traceback(error)
        told: WorkerError = {
            "type": type(error).__name__,
            "raised": type(raised).__name__,
            "kind": _kind(error),
            "out_of_memory": isinstance(raised, torch.OutOfMemoryError),
            "message": _ends(message),
            "traceback": _ends(trace),
            "monotonic_ns": time.monotonic_ns(),
            "instance": blamed.instance if blamed else None,
            "hook": blamed.hook if blamed else None,
            "exit_code": int(code),
            "origin": origin(error),
        }
        if len(message) > _LONG or len(trace) > _LONG:  # records are read at once, and again and again
            told["whole"] = str(self._path.with_suffix(".error.txt"))
            write_atomic(Path(told["whole"]), scrub(trace or message))
        self._write(replace(self._record, phase="failed", error=told))
        return code

    def _write(self, record: WorkerRecord) -> None:
        self._record = record
        write_json(self._path, scrub_all(record.to_json()))


def _ends(text: str) -> str:
    """Return the text, or both ends of one that is too long.

    A record has room for a text of limited length.
    """
    if len(text) <= _LONG:
        return text
    half = _LONG // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} more characters\n{text[-half:]}"


def _kind(error: BaseException) -> ErrorKind:
    if isinstance(error, Terminated):
        return "told_to_stop"
    # Messages of our own name the plugin and what it raised.
    own = isinstance(error, HookFailed) or type(error) in (TrainingError, TaskError, EnvironmentProblem, PluginProblem)
    return "explained" if own else "raised"


def _traceback(error: BaseException) -> str:
    """Return the traceback of what the user's code raised.

    It is empty for errors that one sentence describes.
    """
    cause = error.__cause__ if isinstance(error, HookFailed | PluginProblem) and error.__cause__ else error
    if isinstance(cause, TrainrunError):
        return ""
    return hookimpl_traceback(cause)


if __name__ == "__main__":
    main()
