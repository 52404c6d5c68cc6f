"""The client's side of one run: its hooks in order, and an outcome in every case."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from trainrun.errors import EnvironmentProblem, ExitCode, HookFailed, LeaseLost, TrainrunError, described
from trainrun.launch import storage, stray
from trainrun.launch.budget import Budget, Verdict
from trainrun.launch.committed import newest_step
from trainrun.launch.handle import Launch
from trainrun.launch.hooks import client_hooks, waiting
from trainrun.launch.prepare import package
from trainrun.launch.resuming import prepare_start
from trainrun.launch.signals import Signals, StopNow
from trainrun.launch.supervise import StatusWatch, look_for_stop, supervise
from trainrun.launch.terminal import Echo, Say, Tail, shown_ranks
from trainrun.launch.verdict import Ending, judge, stopped_between
from trainrun.plugin.dispatch import Dispatcher
from trainrun.plugin.guard import Fault, hookimpl_traceback
from trainrun.plugin.resolve import Resolved
from trainrun.printing import TRACE, shorten
from trainrun.rundir import process, scratch
from trainrun.rundir.files import append_line, write_atomic, write_json
from trainrun.rundir.lease import Lease
from trainrun.rundir.records import Failure, Outcome
from trainrun.rundir.requests import take_stop
from trainrun.rundir.secrets import scrub, scrub_all

_DRAIN = 10.0  # seconds for background observers to finish
_MIB = 1024 * 1024
_TWICE = "; Ctrl-C twice stops it"
_LOOK = 0.2  # seconds between two looks at the run directory while nothing runs


class Client:
    """The launching process's side of one run: its hooks, and what it does about their errors."""

    def __init__(self, write: Say) -> None:
        self._write = write
        self._faults: deque[Fault] = deque()
        self._told: set[tuple[str, str]] = set()
        self._traces: set[str] = set()
        self._launch: Launch | None = None
        self._hooks: Dispatcher | None = None
        self._lease: Lease | None = None
        self._last: Outcome | None = None  # of the last attempt
        self._ending = False
        self._lost: str | None = None  # why what the run's end writes could not be written

    def load(self, resolved: Resolved) -> Dispatcher:
        """Import the plugins that have client hooks."""
        self._hooks = client_hooks(resolved, self._on_fault)
        return self._hooks

    def run(self, prepared: Launch, signals: Signals, ranks: Echo, lease: Lease | None = None) -> Outcome:
        """Make the attempts and return the outcome.

        Every run ends with an outcome in the run directory.

        lease: the right to the run, if it has been acquired already. It is given up at the end.
        """
        self._launch = prepared
        self._lease = lease = lease or Lease.acquire(prepared.paths)
        if (printed := stray.current()) is not None:
            printed.keep(prepared.paths.client_output, prepared.recipe.launch.output_limit * _MIB)
        take_stop(prepared.paths)  # what was asked of an owner before this one
        started = time.time()
        try:
            outcome = self._begin(prepared, signals, ranks, started)
            lease.confirm()
            return self._finish(outcome)
        except LeaseLost:  # from here on every file of the run is another's
            raise
        except Exception as error:
            raise self._crash(prepared, error, started) from error
        finally:
            process.clear(prepared.paths.root, node=0)  # also an agent that a bug or a plugin has kept running
            scratch.clear()
            lease.release()

    def _begin(self, prepared: Launch, signals: Signals, ranks: Echo, started: float) -> Outcome:
        """Run the launch up to the end of its attempts.

        Errors of plugins and the environment become outcomes: the run exists.
        """
        assert self._hooks is not None
        try:
            with signals.breakable():
                self._settle_faults()
                with waiting(self._hooks, "on_launch_start", quiet=prepared.quiet, hint=_TWICE):
                    self._call(self._hooks.on_launch_start, prepared)
                package(prepared, self._hooks)
                if signals.stopping:
                    return judge(prepared, Ending(None, signals.first, "early"), started)
                return replace(self._attempts(prepared, signals, ranks), started=started)
        except StopNow:
            return judge(self._launch or prepared, Ending(None, signals.first, signals.caught()), started)
        except LeaseLost:
            raise
        except TrainrunError as error:
            return storage.explained(_failed(prepared, error, started), prepared.paths)
        except OSError as error:
            found = storage.problem(prepared.paths, error)
            if found is None:
                raise
            before = self._last or _failed(prepared, EnvironmentProblem(str(error)), started)
            return storage.without_storage(before, prepared.paths, found)

    def _attempts(self, prepared: Launch, signals: Signals, ranks: Echo) -> Outcome:
        """Make attempts until one ends well.

        Stops also if another would be of no use, or if a stop is requested.
        """
        budget, tails = Budget.of(prepared.recipe, newest_step(prepared.paths)), _tails(prepared, ranks, self._write)
        attempt, before = prepared.attempt, None
        while True:
            attempt += 1
            if (end := self._assemble(prepared, signals, before)) is not None:
                return end
            outcome = self._attempt(replace(prepared, attempt=attempt), signals, tails)
            verdict = budget.judge(outcome, newest_step(prepared.paths))
            if not verdict.again or signals.stopping:
                return verdict.outcome
            self._tell_of_restart(outcome, verdict)
            if not self._back_off(signals, verdict.wait):
                return stopped_between(prepared, outcome, signals.first)
            before = verdict.outcome

    def _back_off(self, signals: Signals, seconds: float) -> bool:
        """Wait, but not beyond a request to stop.

        Returns whether another attempt is still wanted.
        """
        assert self._launch is not None
        deadline = time.monotonic() + seconds
        while not signals.stopping and (left := deadline - time.monotonic()) > 0:
            signals.wait(min(left, _LOOK))
            look_for_stop(self._launch, signals)
            self._look()
        return not signals.stopping

    def _assemble(self, prepared: Launch, signals: Signals, before: Outcome | None) -> Outcome | None:
        """Wait for all nodes; return the outcome if the run ends here.

        before: the outcome of the last attempt.
        """
        hub, seconds = prepared.hub, prepared.recipe.launch.node_timeout

        def wanted() -> bool:
            look_for_stop(prepared, signals)
            return not signals.stopping

        if hub is None or hub.gather(seconds, wanted):
            return None
        if before is None and signals.stopping:
            return judge(prepared, Ending(None, signals.first, "early"), time.time())
        if before is None:
            raise EnvironmentProblem(hub.absence(seconds))
        if signals.stopping:
            return stopped_between(prepared, before, signals.first)
        reason = f"{before.reason}; {hub.absence(seconds)}"
        return replace(before, exit_code=int(ExitCode.RESUMABLE), reason=reason, cause=None)

    def _tell_of_restart(self, outcome: Outcome, verdict: Verdict) -> None:
        """Report that the attempt failed and another follows.

        Each traceback is shown once.
        """
        assert self._launch is not None
        failure = outcome.first_failure
        trace = failure.traceback if failure is not None else None
        if trace and trace not in self._traces:
            self._traces.add(trace)
            self._write(shorten(trace.rstrip(), lines=TRACE))
        wait = f" in {verdict.wait:g} s" if verdict.wait else ""
        self._write(f"attempt {outcome.attempt} failed: {shorten(outcome.reason.partition(chr(10))[0])}")
        self._write(f"starting again{wait}: {verdict.why}")
        self._event(
            self._launch, "restart", attempt=outcome.attempt, reason=outcome.reason, why=verdict.why, wait=verdict.wait
        )

    def _attempt(self, current: Launch, signals: Signals, tails: Sequence[Tail]) -> Outcome:
        assert self._hooks is not None
        started = time.time()
        self._launch = current
        self._event(current, "attempt_start", attempt=current.attempt, workers=current.workers)
        # Before rank 0 can: the clock and the metrics of an earlier attempt say nothing about this one.
        first = {"state": "starting", "attempt": current.attempt, "step": 0, "metrics": {}, "updated": time.time()}
        write_json(current.paths.status, first)
        with waiting(self._hooks, "on_attempt_start", quiet=current.quiet, hint=_TWICE):
            self._call(self._hooks.on_attempt_start, current, current.attempt)
        try:
            prepare_start(current, self._write)
            handle = self._hooks.start_workers(current) if self._hooks.start_workers else None
            if handle is None:
                raise EnvironmentProblem(
                    f"launch.backend: no enabled plugin starts workers for {current.recipe.launch.backend!r}"
                )
            status = StatusWatch(current, self._hooks, self._look)
            ending = supervise(current, handle, status, signals, tails, self._write)
            with signals.shield():
                outcome = judge(current, ending, started)
        except LeaseLost:
            raise
        except TrainrunError as error:
            outcome = _failed(current, error, started)
        self._last = outcome = storage.explained(outcome, current.paths)
        with signals.shield():
            self._event(current, "attempt_end", attempt=current.attempt, state=outcome.state, reason=outcome.reason)
            return self._after(
                outcome, self._hooks.on_attempt_end, lambda hook: hook(current, current.attempt, outcome)
            )

    def _finish(self, outcome: Outcome) -> Outcome:
        """Call the last hooks, then record the outcome.

        Each hook is called even if one before it failed.
        """
        assert self._hooks is not None
        assert self._launch is not None
        current, hooks = self._launch, self._hooks
        self._ending = True
        outcome = _scrubbed(outcome)
        outcome = _scrubbed(self._after(outcome, hooks.on_completed, lambda hook: hook(outcome, "client", current)))
        self._keep(current, partial(write_json, current.paths.outcome, outcome.to_json()))
        with waiting(hooks, "on_launch_end", quiet=current.quiet):
            last = self._after(outcome, hooks.on_launch_end, lambda hook: hook(current, outcome))
        self._drain(current, hooks, last.step)
        last = _scrubbed(self._after(last, None, lambda _: None))  # what background threads have raised meanwhile
        self._event(current, "outcome", state=last.state, exit_code=last.exit_code, reason=last.reason)
        if last != outcome:
            self._keep(current, partial(write_json, current.paths.outcome, last.to_json()))
        lost = self._lost if last.ok else None  # otherwise why it failed says more
        return last if lost is None else storage.without_storage(last, current.paths, lost)

    def _keep(self, current: Launch, write: Callable[[], None]) -> None:
        """Write into the run directory.

        If that fails at the end of the run, find out why.
        """
        try:
            write()
        except OSError as error:
            found = storage.problem(current.paths, error) if self._ending else None
            if found is None:
                raise
            self._lost = found

    def _drain(self, current: Launch, hooks: Dispatcher, step: int) -> None:
        for name, lost in hooks.drain(_DRAIN).items():
            reason = lost.told(_DRAIN)
            self._event(current, "decision", step=step, decision="lost", plugin=name, hook="background", reason=reason)

    def _after(self, outcome: Outcome, hook: object, call: Callable[..., object]) -> Outcome:
        """Call one of the ending hooks.

        An error in it fails a run that was well, and never hides why one failed.
        """
        try:
            if hook is not None:
                call(hook)
            self._settle_faults()
        except TrainrunError as error:
            assert self._launch is not None
            failed = _failed(self._launch, error, outcome.started)
            return replace(failed, step=outcome.step, metrics=outcome.metrics) if outcome.ok else outcome
        return outcome

    def _call(self, hook: Callable[..., object] | None, *arguments: object) -> None:
        if hook is not None:
            hook(*arguments)
        self._settle_faults()

    def _on_fault(self, fault: Fault) -> None:
        # May come from a background thread: only noted here.
        self._faults.append(fault)

    def _look(self) -> None:
        if self._lease is not None:
            self._lease.check()
        self._settle_faults()

    def _settle_faults(self) -> None:
        while self._faults:
            fault = self._faults.popleft()
            if isinstance(fault.error, HookFailed):  # from a background thread
                raise fault.error
            if (fault.instance, fault.hook) not in self._told:
                self._told.add((fault.instance, fault.hook))
                self._tell(fault)
            if fault.action == "disable" and self._hooks is not None:
                self._hooks.disable(fault.instance)

    def _tell(self, fault: Fault) -> None:
        assert self._launch is not None
        reason = described(fault.error)
        told = f"warning: plugin {fault.instance} failed in {fault.hook} ({fault.action}): {reason}"
        self._write(shorten(told, self._launch.paths.events))
        self._event(
            self._launch,
            "fault",
            plugin=fault.instance,
            hook=fault.hook,
            action=fault.action,
            reason=reason,
            locus="client",
            traceback=hookimpl_traceback(fault.error),
        )

    def _event(self, current: Launch, event: str, **values: object) -> None:
        line = {"event": event, "time": time.time(), **values}
        self._keep(current, partial(append_line, current.paths.events, line))

    def _crash(self, current: Launch, error: Exception, started: float) -> TrainrunError:
        report = scrub("".join(traceback.format_exception(error)))
        where = str(current.paths.crash_log)
        try:
            write_atomic(current.paths.crash_log, report)
        except OSError as second:
            where = f"here, because it could not be written ({second}):\n{report.rstrip()}"
        bug = TrainrunError(f"a bug in trainrun: {scrub(described(error))}; the report is {where}")
        with suppress(OSError):
            write_json(current.paths.outcome, _failed(current, bug, started).to_json())
        return bug


def _failed(current: Launch, error: TrainrunError, started: float) -> Outcome:
    """Return the outcome of an error in the client itself."""
    cause = error.__cause__
    explained = cause is None or isinstance(cause, TrainrunError)
    trace = None if cause is None or explained else hookimpl_traceback(cause)
    failure = Failure(rank=None, kind="error", message=str(error), type=type(error).__name__, traceback=trace)
    return Outcome(
        state="failed",
        exit_code=int(error.exit_code),
        reason=str(error),
        attempt=current.attempt,
        first_failure=failure,
        started=started,
        ended=time.time(),
        run=str(current.paths.root),
    )


def _scrubbed(outcome: Outcome) -> Outcome:
    """Return the outcome without secrets in its reason and its failure."""
    return Outcome.from_json(scrub_all(outcome.to_json()))


def _tails(current: Launch, ranks: Echo, write: Say) -> list[Tail]:
    return [
        Tail(current.paths.rank_output(rank), f"[rank {rank}] ", write, from_end=True)
        for rank in shown_ranks(ranks, current.workers * current.seat.nodes)
        if rank in current.ranks
    ]
