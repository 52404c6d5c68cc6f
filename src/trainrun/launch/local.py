"""The backend for this machine: an agent in a session of its own, and its workers watched one by one."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from trainrun.launch.agents import Agent, ColdAgent, WarmAgent, seat, spawn
from trainrun.launch.ends import End, read_record, read_records, write_ends
from trainrun.launch.handle import Launch, WorkersHandle
from trainrun.launch.nodes.spread import SpreadWorkers
from trainrun.launch.output import Output
from trainrun.marker import hookimpl
from trainrun.rundir import process
from trainrun.rundir.process import REQUEST_SIGNAL
from trainrun.rundir.records import WorkerRecord

_WAIT = 0.05  # seconds that one poll may wait for a process to end
_EVIDENCE = 0.5  # seconds to wait for the agent's account of an end that was not seen
_ACCOUNT = 10.0  # seconds for a warm agent to report how workers ended, once all of them are gone
_LINGER = 15.0  # seconds that finished workers have to leave: destructors of process groups have been seen to hang

# What elastic logs of a worker that failed.
_AGENT_SAYS = re.compile(rb"failed \(exitcode: (-?\d+)\) local_rank: (\d+) ")


class Local:
    """Start the workers on this machine, with torchrun or by forking them from a warm agent."""

    def __init__(self) -> None:
        self._warm: WarmAgent | None = None

    @hookimpl
    def start_workers(self, launch: Launch) -> WorkersHandle | None:
        """Start workers for `launch.backend = "local"`."""
        if launch.recipe.launch.backend != "local":
            return None
        workers = self.begin(launch)
        return workers if launch.hub is None else SpreadWorkers(workers, launch.hub, launch)

    def begin(self, launch: Launch) -> LocalWorkers:
        """Start the workers of this node."""
        if launch.recipe.launch.start == "cold":
            return start([*process.PYTHON, "-m", "trainrun.agent.cold", str(os.getpid())], launch)
        warm = self.warm(launch)
        logged, output = _ready(launch), Output.of(launch)
        with ExitStack() as opened:
            opened.callback(output.close)
            warm.begin(launch)
            opened.pop_all()
        return LocalWorkers(warm, launch, logged, output)

    def warm(self, launch: Launch) -> WarmAgent:
        """Return a warm agent that can take an attempt.

        It is the one of the last attempt, if that can, or a new one.
        """
        if self._warm is None or not self._warm.free():
            self._warm = WarmAgent(launch)
        return self._warm

    @hookimpl
    def on_launch_end(self) -> None:
        """End the warm agent."""
        if self._warm is not None:
            self._warm.close()


def start(agent: list[str], launch: Launch) -> LocalWorkers:
    """Run the command `agent` with its last arguments added.

    They are run directory, attempt and number of workers. To be called from the main thread: the agent asks the kernel
    to be killed with the thread that started it.
    """
    logged, output = _ready(launch), Output.of(launch)
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    told = seat(launch).get("seat")
    others = [json.dumps(told), str(theirs)] if told else []
    with ExitStack() as opened:
        opened.callback(os.close, ours)
        opened.callback(output.close)
        try:
            arguments = [str(launch.paths.root), str(launch.attempt), str(launch.workers), *others]
            started = spawn(launch, [*agent, *arguments], pass_fds=[theirs] if told else [])
        finally:
            os.close(theirs)
        opened.pop_all()
    return LocalWorkers(ColdAgent(started, ours), launch, logged, output)


def _ready(launch: Launch) -> int:
    """Make the attempt's folder; return the size of the agent's log.

    The size is the number of bytes that earlier attempts have left.
    """
    launch.paths.attempt(launch.attempt).mkdir(mode=0o700, exist_ok=True)
    try:
        return launch.paths.node_log(launch.seat.node).stat().st_size
    except FileNotFoundError:
        return 0


@dataclass
class _Watch:
    """One worker's process, held by a descriptor that becomes readable when it ends; `seen_ns`: last seen alive."""

    record: WorkerRecord
    descriptor: int
    seen_ns: int = 0


class LocalWorkers:
    """A handle to an agent on this machine and its workers.

    The agent itself would give the peers of a failed worker up to 30 s; so the workers' processes and
    records are watched directly, and the first failure ends all of them at once.
    """

    def __init__(self, agent: Agent, launch: Launch, logged: int, output: Output) -> None:
        self._agent = agent
        self._logged = logged
        self._output = output
        self._paths = launch.paths
        self._attempt = launch.attempt
        self._node = launch.seat.node
        self._log = launch.paths.node_log(launch.seat.node)
        self._ranks = launch.ranks
        self._watched: dict[int, _Watch] = {}
        self._ended: dict[int, End] = {}
        self._finished: set[int] = set()
        self._all_finished_at: float | None = None
        self._stopping = False
        self._told: set[int] = set()

    def poll(self) -> int | None:
        """Return None while all is well.

        Otherwise ends everything and returns the exit code.
        """
        self._output.poll()
        self._adopt()
        self._wait()
        self._reap()
        code = self._agent.poll()
        if len(self._finished) == len(self._ranks) or (code is None and self._lingering()):
            code = 0
        if code is None and not self._failed():
            return None
        if code:
            self._await_ends()
        self._find_unseen()
        if code is None:
            code = self._agent.own_end()
        if self._node == 0:  # the others report to node 0
            write_ends(self._paths, self._attempt, self._ended)
        self.kill()
        return code if code is not None else 1

    @property
    def ends(self) -> dict[int, End]:
        """Return how those workers ended that ended without a request."""
        return self._ended

    @property
    def port(self) -> int | None:
        """Return the port of this attempt's store, on node 0 of several.

        Returns None until it listens.
        """
        return self._agent.port

    def nudge(self) -> None:
        """Send each running worker the signal for a request."""
        for watch in self._watched.values():
            process.send(watch.record, REQUEST_SIGNAL)

    def stop(self, reason: str) -> None:  # noqa: ARG002 - it stands in the attempt's requests
        """Send SIGTERM to each worker, now or as soon as it has started."""
        self._stopping = True
        self._tell()

    def kill(self) -> None:
        """Kill every recorded group and every stray process of the attempt.

        Waits until all are gone. The signal is SIGKILL.
        """
        self._agent.halt()
        for record in self._records().values():
            process.kill_group(record)
        process.clear(self._paths.root, spared=self._agent.session, node=self._node)
        self._output.close()
        self._close()

    def _records(self) -> dict[int, WorkerRecord]:
        return read_records(self._paths, self._attempt, self._ranks)

    def _adopt(self) -> None:
        """Begin to watch the workers that have written their first record."""
        for rank in self._ranks:
            if rank in self._watched or rank in self._ended or rank in self._finished:
                continue
            record = read_record(self._paths, self._attempt, rank)
            if record is not None:
                self._watch(record)
        self._tell()

    def _watch(self, record: WorkerRecord) -> None:
        try:
            descriptor = os.pidfd_open(record.pid)
        except ProcessLookupError:
            self._note_end(record, None, 0)
            return
        if process.start_time(record.pid) == record.start_time:
            self._watched[record.rank] = _Watch(record, descriptor)
        else:
            os.close(descriptor)
            self._note_end(record, None, 0)

    def _tell(self) -> None:
        for rank, watch in self._watched.items():
            if self._stopping and rank not in self._told:
                process.send(watch.record, signal.SIGTERM)
                self._told.add(rank)

    def _wait(self) -> None:
        poller = select.poll()
        for watch in self._watched.values():
            poller.register(watch.descriptor, select.POLLIN)
        poller.poll(_WAIT * 1000)

    def _reap(self) -> None:
        for rank, watch in list(self._watched.items()):
            code, running = _state(watch)
            if running:
                watch.seen_ns = time.monotonic_ns()
                continue
            os.close(self._watched.pop(rank).descriptor)
            self._note_end(watch.record, code, watch.seen_ns)

    def _await_ends(self) -> None:
        """Wait for ends that only the agent knows of so far.

        Such an end is that of a fork server, with which its workers are dying.
        """
        deadline = time.monotonic() + _EVIDENCE
        while self._watched and not self._failed() and time.monotonic() < deadline:
            self._wait()
            self._reap()

    def _note_end(self, record: WorkerRecord, code: int | None, seen_ns: int) -> None:
        # The record is read again after the end: a worker writes its last one just before it leaves.
        last = read_record(self._paths, self._attempt, record.rank) or record
        if last.phase == "finished":
            self._finished.add(record.rank)
        else:
            # The parent may be a zombie: the process that started it waits for its end later.
            orphaned = record.parent > 0 and not process.running(record.parent)
            self._ended[record.rank] = End(record.rank, code, seen_ns, orphaned and code in {None, -signal.SIGKILL})

    def _failed(self) -> bool:
        if self._ended:
            return True
        return any(record.error is not None for record in self._records().values()) or bool(self._reported())

    def _lingering(self) -> bool:
        """Return whether the agent is late to leave after its workers.

        All workers have been done for a while then.
        """
        records = self._records()
        if len(records) < len(self._ranks) or any(record.phase != "finished" for record in records.values()):
            return False
        self._all_finished_at = self._all_finished_at or time.monotonic()
        return time.monotonic() - self._all_finished_at > _LINGER

    def _find_unseen(self) -> None:
        """Learn from the agent's log how an unseen worker ended.

        Such a worker was gone before it could be watched or looked at.
        """
        # An error may have been read that is the consequence of an end since the last look at the processes.
        self._adopt()
        self._reap()
        if any(end.code is None for end in self._ended.values()):
            self._ask_agent()
        unknown = [end for end in self._ended.values() if end.code is None]
        deadline = time.monotonic() + _EVIDENCE
        while unknown and not self._reported() and self._agent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        for rank, code in self._reported().items():
            seen = self._ended.get(rank)
            # Those that are still watched were running just now: we have killed them since.
            if rank not in self._finished | self._watched.keys() and (seen is None or seen.code is None):
                self._ended[rank] = End(rank, code, seen.seen_ns if seen else 0)

    def _ask_agent(self) -> None:
        """Get exit codes from a warm agent.

        It reports them when all workers are gone, so the workers are killed first.
        """
        records = self._records()
        if self._agent.session is None:
            return
        for record in records.values():
            process.kill_group(record)
        codes = self._agent.ends(_ACCOUNT)
        for rank, end in self._ended.items():
            if end.code is None and rank in records:
                self._ended[rank] = replace(end, code=codes.get(records[rank].pid))

    def _reported(self) -> dict[int, int]:
        with suppress(OSError):
            found = _AGENT_SAYS.findall(_tail(self._log, self._logged))
            return {self._ranks[int(local)]: int(code) for code, local in found if int(local) < len(self._ranks)}
        return {}

    def _close(self) -> None:
        while self._watched:
            os.close(self._watched.popitem()[1].descriptor)


def _state(watch: _Watch) -> tuple[int | None, bool]:
    """Return exit code and whether the process runs.

    The exit code is given as far as it can still be read.
    """
    poller = select.poll()
    poller.register(watch.descriptor, select.POLLIN)
    if not poller.poll(0):
        return None, True
    return process.exit_code(watch.record.pid, watch.record.start_time), False


def _tail(path: Path, start: int, size: int = 64 * 1024) -> bytes:
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - size))
        return file.read()
