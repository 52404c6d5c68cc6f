"""How an attempt ended: read from what its workers left behind, never from an exit code alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trainrun.errors import ExitCode
from trainrun.launch.committed import reached
from trainrun.launch.ends import End, read_ends, read_records
from trainrun.launch.handle import Launch
from trainrun.launch.watchdog import Hang, told, where
from trainrun.printing import TRACE, shorten
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.pulse import read_pulse
from trainrun.rundir.records import Cause, Failure, Outcome, State, Stop, WorkerError, WorkerRecord

Forced = Literal["now", "grace", "early"]

_LINES = 30  # of the agent's log, if no worker could say what happened


@dataclass(frozen=True)
class Ending:
    """What the client knows of an attempt that is over.

    `code` is the backend's exit code, and `signal` the first signal that the client got. `forced` is why the workers
    were not left to end by themselves: a second Ctrl-C, the end of their time, or a signal that came too early for them
    to be started. `lost` says which of several nodes was lost. `clocks` is what to add to the monotonic times of a rank
    of another node to compare them with those of node 0. `hang` is the position of all ranks when none advanced any
    more. `shortage` says what ran out of memory, if the kernel has killed a process for that.
    """

    code: int | None
    signal: signal.Signals | None = None
    forced: Forced | None = None
    shortage: str | None = None
    lost: str | None = None
    clocks: Mapping[int, int] = field(default_factory=dict)
    hang: Hang | None = None


def judge(launch: Launch, ending: Ending, started: float) -> Outcome:
    """Return the outcome of the attempt that `launch` was making."""
    paths, attempt = launch.paths, launch.attempt
    size = launch.workers * launch.recipe.launch.nodes
    records = _read_records(paths, attempt, size)
    status = _status(paths, attempt)
    step = max([_known_step(status), *(record.step for record in records.values())])
    failure: Failure | None = None
    cause: Cause | None = None
    stop: Stop | None = None
    if ending.forced:
        state, code, reason = _forced(launch, ending, step)
    elif ending.lost is not None:
        failure = Failure(rank=None, kind="node", message=ending.lost)
        state, code, reason, cause = "failed", ExitCode.RESUMABLE, ending.lost, "node"
    elif ending.hang is not None:
        failure = _from_hang(paths, ending.hang)
        state, code, reason, cause = "failed", ExitCode.TRAINING_FAILED, failure.message, "crash"
    elif (failure := first_failure(paths, attempt, size, ending)) is not None and not _was_told(failure, ending):
        state, code, reason = _failed(failure, records, ending, saved=_is_saved(paths, attempt, failure.step))
        cause = "crash" if code == ExitCode.TRAINING_FAILED else _preemption(state, ending)
    elif failure is not None:
        failure, reason = None, "stopped before training began"
        state, code = _by_signal(ending.signal, saved=_is_saved(paths, attempt, 0))
    else:
        stop = next((record.stop for record in records.values() if record.stop), None)
        state, code, reason = _ended(stop, step, ending, saved=_is_saved(paths, attempt, step))
        cause = _preemption(state, ending)
    return Outcome(
        state=state,
        exit_code=code,
        reason=reason,
        step=step,
        attempt=attempt,
        first_failure=failure,
        started=started,
        ended=time.time(),
        metrics=status.get("metrics", {}),
        run=str(paths.root),
        cause=cause,
        stop=stop,
    )


def stopped_between(launch: Launch, before: Outcome, number: signal.Signals | None) -> Outcome:
    """Return the outcome of a run that was stopped between two attempts.

    The last attempt ended as `before`.
    """
    state: State = "stopped"
    code: int = ExitCode.OK
    if number is not None:
        state, code = _by_signal(number, saved=_is_saved(launch.paths, before.attempt, 0))
    by, last = number.name if number is not None else "trainrun stop", before.attempt
    reason = f"stopped by {by} before attempt {last + 1} began; attempt {last} had failed: {before.reason}"
    return replace(before, state=state, exit_code=int(code), reason=reason, ended=time.time(), cause=None)


def first_failure(paths: RunPaths, attempt: int, size: int, ending: Ending) -> Failure | None:
    """Return the failure that came first.

    Those of its peers are its consequences. Returns None if all workers finished.
    """
    records = _read_records(paths, attempt, size)
    if len(records) == size and all(record.phase == "finished" for record in records.values()):
        return None
    ends = read_ends(paths, attempt)
    agent_died = ending.code is not None and ending.code < 0
    error = _first_error(records, ending.clocks)
    end = None if agent_died else _first_end(records, ends)
    if error is not None and not _came_before(end, error, ending.clocks):
        return _from_error(paths, attempt, error)
    if end is not None:
        return _from_end(paths, end, records.get(end.rank), ending, _known_step(_status(paths, attempt)))
    return _from_agent(paths, records, size, ending)


def _read_records(paths: RunPaths, attempt: int, size: int) -> dict[int, WorkerRecord]:
    """Return the workers' records.

    Those of workers that could not say how they ended have what their pulses showed last.
    """
    return {
        rank: _completed(paths, attempt, record) for rank, record in read_records(paths, attempt, range(size)).items()
    }


def _completed(paths: RunPaths, attempt: int, record: WorkerRecord) -> WorkerRecord:
    beat = read_pulse(paths.pulse(attempt, record.rank))
    if beat is None or record.phase in {"finished", "failed"}:
        return record
    step = max(record.step, beat.step)
    return replace(record, step=step, phase=beat.phase, instance=beat.instance, hook=beat.hook)


def _was_told(failure: Failure, ending: Ending) -> bool:
    """Return whether a worker was asked to stop too early.

    It could not handle the signal yet. That is no failure.
    """
    return ending.signal is not None and failure.signal == signal.SIGTERM.name and failure.step == 0


def _forced(launch: Launch, ending: Ending, step: int) -> tuple[State, int, str]:
    saved = ending.signal is not None and _is_saved(launch.paths, launch.attempt, step)
    if ending.forced == "now":
        reason = "stopped at once, because Ctrl-C was pressed again"
    elif ending.forced == "early":
        reason = "stopped before the workers were started"
    else:
        reason = f"killed, because the workers had not stopped within launch.grace ({launch.recipe.launch.grace:g} s)"
        if sat := told(where(launch.paths, launch.attempt, launch.ranks)):
            reason += f": {sat}"
    return (*_by_signal(ending.signal, saved=saved), reason)


def _is_saved(paths: RunPaths, attempt: int, step: int) -> bool:
    """Return whether the run can resume at its last step.

    step: that of the end, 0 if training had not begun.
    """
    at = reached(paths, attempt)
    return at is not None and at >= step


def _preemption(state: State, ending: Ending) -> Cause | None:
    """Return "preemption" if workers were stopped by another process than this client."""
    return "preemption" if state == "terminated" and ending.signal is None else None


def _failed(
    failure: Failure, records: Mapping[int, WorkerRecord], ending: Ending, *, saved: bool
) -> tuple[State, int, str]:
    record = None if failure.rank is None else records.get(failure.rank)
    error = record.error if failure.kind == "error" and record else None
    if error is not None and error.get("kind") == "told_to_stop":
        return (*_by_signal(ending.signal, saved=saved), failure.message)
    known = error["exit_code"] if error is not None else None
    return "failed", known or ExitCode.TRAINING_FAILED, failure.message


def _ended(stop: Stop | None, step: int, ending: Ending, *, saved: bool) -> tuple[State, int, str]:
    if stop is None:
        return "finished", ExitCode.OK, f"{step}/{step} steps"
    if stop.origin == "signal":
        return (*_by_signal(ending.signal, saved=saved), stop.at(step))
    # Too many saves have failed: nothing that was asked for, and worth resuming when there is room on the disk again.
    return "stopped", ExitCode.RESUMABLE if stop.origin == "saves" else ExitCode.OK, stop.at(step)


def _by_signal(number: signal.Signals | None, *, saved: bool) -> tuple[State, int]:
    if number == signal.SIGINT:
        return "interrupted", ExitCode.INTERRUPTED
    return "terminated", ExitCode.RESUMABLE if saved else ExitCode.TERMINATED


def _first_error(records: Mapping[int, WorkerRecord], clocks: Mapping[int, int]) -> WorkerRecord | None:
    failed = [(_raised_ns(record, clocks), rank) for rank, record in records.items() if record.error]
    return records[min(failed)[1]] if failed else None


def _first_end(records: Mapping[int, WorkerRecord], ends: Mapping[int, End]) -> End | None:
    """Return the first worker that ended without saying why."""
    unexplained = [end for rank, end in ends.items() if rank not in records or records[rank].error is None]
    return min(unexplained, key=lambda end: (end.seen_ns, end.rank), default=None)


def _raised_ns(record: WorkerRecord, clocks: Mapping[int, int]) -> int:
    return record.error["monotonic_ns"] + clocks.get(record.rank, 0) if record.error else 0


def _came_before(end: End | None, error: WorkerRecord, clocks: Mapping[int, int]) -> bool:
    # An error that came while the other rank was still seen alive is no consequence of its end.
    return end is not None and end.seen_ns <= _raised_ns(error, clocks)


def _from_hang(paths: RunPaths, hang: Hang) -> Failure:
    blamed = hang.blamed[0]
    beat = blamed.beat
    return Failure(
        rank=blamed.rank,
        kind="hang",
        message=hang.message,
        step=beat.step if beat else 0,
        phase=beat.phase if beat else None,
        instance=beat.instance if beat else None,
        hook=beat.hook if beat else None,
        log=str(blamed.stacks or paths.rank_output(blamed.rank)),
    )


def _from_error(paths: RunPaths, attempt: int, record: WorkerRecord) -> Failure:
    assert record.error is not None
    error = _readable(record.error, Path(record.error.get("whole") or paths.worker_record(attempt, record.rank)))
    return Failure(
        rank=record.rank,
        kind="error",
        message=_told(record, error),
        type=error.get("raised", error["type"]),
        traceback=error["traceback"],
        step=record.step,
        phase=record.phase,
        instance=error["instance"],
        hook=error["hook"],
        exit_code=error["exit_code"],
        log=str(paths.rank_output(record.rank)),
        origin=error.get("origin", "code"),
        out_of_memory=error.get("out_of_memory", False),
    )


def _readable(error: WorkerError, whole: Path) -> WorkerError:
    """Return the error as people read it.

    A message of many megabytes is cut, here and at the end of the traceback.
    """
    message = shorten(error["message"], whole)
    trace = error["traceback"]
    if message != error["message"]:
        trace = trace.replace(error["message"], message)
    return {**error, "message": message, "traceback": shorten(trace, whole, lines=TRACE)}


def _told(record: WorkerRecord, error: WorkerError) -> str:
    if error.get("kind", "raised") != "raised":
        return f"rank {record.rank} failed{_at(record)}: {error['message']}"
    where = f" in {error['hook']} of plugin {error['instance']}" if error["instance"] and error["hook"] else ""
    return f"rank {record.rank} raised {error['type']}{_at(record)}{where}: {error['message']}"


def _from_end(paths: RunPaths, end: End, record: WorkerRecord | None, ending: Ending, known: int) -> Failure:
    killed = end.code is not None and end.code < 0
    return Failure(
        rank=end.rank,
        kind="signal" if killed else "exit",
        message=f"rank {end.rank} {_how(end, ending)}{_when(known, record)}{_within(record)}",
        traceback=_tail(paths.agent_log) if record is None else None,
        step=(record.step or known) if record else 0,
        phase=record.phase if record else None,
        instance=record.instance if record else None,
        hook=record.hook if record else None,
        signal=_signal_name(-end.code) if killed and end.code is not None else None,
        exit_code=end.code,
        log=str(paths.rank_output(end.rank) if record else paths.agent_log),
    )


def _from_agent(paths: RunPaths, records: Mapping[int, WorkerRecord], size: int, ending: Ending) -> Failure:
    missing = ", ".join(str(rank) for rank in range(size) if rank not in records or records[rank].phase != "finished")
    if ending.code is not None and ending.code < 0:
        how = f"the workers' agent was killed by {_signal_name(-ending.code)}"
    elif ending.code:
        how = f"the workers' agent ended with exit code {ending.code}"
    else:
        how = "the workers ended"
    return Failure(
        rank=None,
        kind="silent" if ending.code == 0 else "agent",
        message=f"{how}, and there is no completion record of rank {missing}",
        step=max((record.step for record in records.values()), default=0),
        traceback=_tail(paths.agent_log),
        exit_code=ending.code,
        log=str(paths.agent_log),
    )


def _how(end: End, ending: Ending) -> str:
    if end.orphaned:
        return "died with the fork server that it came from, which was killed"
    # The agent ends with 0 only if all of its workers did.
    code = 0 if end.code is None and ending.code == 0 else end.code
    if code is None:
        return "ended without a completion record"
    if code == 0:
        return "left with exit code 0 before it had finished (did something call os._exit()?)"
    if code > 0:
        return f"left with exit code {code} and without an error record"
    reason = f" because {ending.shortage}" if ending.shortage and code == -signal.SIGKILL else ""
    return f"was killed by {_signal_name(-code)}{reason}"


def _at(record: WorkerRecord | None) -> str:
    if record is None:
        return " before it could write its first record"
    return f" at step {record.step}" if record.step else f" during {record.phase}" if record.phase != "failed" else ""


def _when(step: int, record: WorkerRecord | None) -> str:
    """Describe when a worker ended that could not report it.

    Taken from its last record, or from what rank 0 last wrote of the run.
    """
    return f" after step {step}" if record is not None and not record.step and step else _at(record)


def _status(paths: RunPaths, attempt: int) -> dict[str, Any]:
    """Return what rank 0 last wrote of this attempt.

    Empty if it is from an earlier one.
    """
    status = read_json(paths.status) or {}
    return status if status.get("attempt", attempt) == attempt else {}


def _known_step(status: Mapping[str, Any]) -> int:
    step = status.get("step")
    return step if isinstance(step, int) else 0


def _within(record: WorkerRecord | None) -> str:
    if record is None or record.instance is None:
        return ""
    return f" in {record.hook} of plugin {record.instance}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(path: Path) -> str | None:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-_LINES:]) or None
    except OSError:
        return None
