"""The process between client and workers: torchrun for one attempt, or a warm agent that is kept for all attempts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from trainrun.launch.handle import Launch
from trainrun.rundir import process, scratch

_KILL = 10.0  # seconds to wait for a killed process to be gone
_EVIDENCE = 0.5  # seconds for the last thread of an agent to follow its first
_SETTLE = 5.0  # seconds that a warm agent has to notice that its workers are gone
_PACE = 0.005
_PORT = 16  # bytes that a port has at most


class Agent(Protocol):
    """What starts the workers of one attempt and sees them end."""

    @property
    def session(self) -> int | None:
        """Return the session of the processes that outlive the attempt.

        Returns None if none do.
        """

    @property
    def port(self) -> int | None:
        """Return the port of the attempt's store, on node 0 of several.

        Returns None until it listens.
        """

    def poll(self) -> int | None:
        """Return the exit code of the attempt.

        Returns None until the agent has seen all of its workers end.
        """

    def own_end(self) -> int | None:
        """Return the exit code of an agent that the workers died with.

        Returns None for an agent that still runs.
        """

    def ends(self, seconds: float) -> Mapping[int, int]:
        """Return how workers ended that are gone, by pid.

        The value is an exit code or minus a signal. Waits no longer than `seconds`.
        """

    def halt(self) -> None:
        """Prepare for the end of the workers, which are about to be killed."""


class ColdAgent:
    """One torchrun for one attempt."""

    session = None

    def __init__(self, started: subprocess.Popen[bytes], ports: int | None = None) -> None:
        """Keep the process.

        ports: a pipe into which the process writes the port of its store.
        """
        self._process = started
        self._ports = ports
        self._port: int | None = None

    @property
    def port(self) -> int | None:
        """Return the port that torchrun's process has written."""
        if self._ports is not None and self._port is None:
            with suppress(BlockingIOError):
                self._port = int(os.read(self._ports, _PORT) or 0) or None
        return self._port

    def poll(self) -> int | None:
        """Return the exit code of torchrun."""
        return self._process.poll()

    def own_end(self) -> int | None:
        """Return the exit code of torchrun."""
        return _own_end(self._process)

    def ends(self, seconds: float) -> Mapping[int, int]:  # noqa: ARG002 - torchrun does not say
        """Return nothing: torchrun reports exit codes in its log only."""
        return {}

    def halt(self) -> None:
        """End torchrun first.

        It would start to end the workers in its own, slower way.
        """
        _kill(self._process)
        if self._ports is not None:
            os.close(self._ports)
            self._ports = None


class WarmAgent:
    """An agent with a fork server, kept for all attempts of a run.

    To be started from the main thread: the agent asks the kernel to be killed with the thread that started it.
    """

    def __init__(self, launch: Launch) -> None:
        ours, theirs = socket.socketpair()
        with ExitStack() as opened, theirs:
            opened.callback(ours.close)
            self._process = spawn(
                launch,
                [
                    *(*process.PYTHON, "-c", "from trainrun.agent.warm import main; main()", str(os.getpid())),
                    *(str(launch.paths.root), str(launch.workers), str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
            )
            opened.pop_all()
        self._root, self._node = launch.paths.root, launch.seat.node
        self._channel = ours
        self._answers = b""
        self._attempt = 0
        self._ends: Mapping[int, int] = {}
        self._code: int | None = None
        self._port: int | None = None
        self._runner: tuple[int, int] | None = None  # pid and start time, once it has reported them

    @property
    def port(self) -> int | None:
        """Return the port that the agent has reported."""
        self.poll()
        return self._port

    @property
    def session(self) -> int | None:
        """Return the session of agent, fork server and runner.

        Each worker has a session of its own.
        """
        return self._process.pid if self._process.poll() is None else None

    def begin(self, launch: Launch) -> None:
        """Have the workers of one attempt started."""
        self._code, self._port, self._attempt, self._ends = None, None, launch.attempt, {}
        command = {"attempt": launch.attempt, "environment": environment(launch), **seat(launch)}
        with suppress(BrokenPipeError):  # the agent is gone, which poll() will show
            self._channel.sendall(json.dumps(command).encode() + b"\n")

    def poll(self) -> int | None:
        """Return the exit code that the agent reported, or its own."""
        if self._code is None:
            with suppress(BlockingIOError, ConnectionResetError):
                self._answers += self._channel.recv(4096, socket.MSG_DONTWAIT)
            *lines, self._answers = self._answers.split(b"\n")
            for answer in map(json.loads, lines):
                self._take(answer)
            if self._code is None:
                self._code = self._process.poll()
        return self._code

    def _take(self, answer: Mapping[str, Any]) -> None:
        if "runner" in answer:
            self._runner = (int(answer["runner"]), int(answer["started"]))
        elif answer["attempt"] == self._attempt and "port" in answer:
            self._port = int(answer["port"])
        elif answer["attempt"] == self._attempt:
            self._code = int(answer["code"])
            self._ends = {int(pid): int(code) for pid, code in answer["ends"].items() if code is not None}

    def own_end(self) -> int | None:
        """Return the exit code of the agent.

        The agent dies with its runner; fork server and workers die with it.
        """
        return _own_end(self._process)

    def ends(self, seconds: float) -> Mapping[int, int]:
        """Return the exit codes that elastic has seen.

        The agent reports them when all workers of the attempt are gone.
        """
        self._await(seconds)
        return self._ends

    def halt(self) -> None:
        """Do nothing.

        The agent would not end the workers, and it is needed again.
        """

    def free(self) -> bool:
        """Have the agent give up the former attempt.

        Returns whether it can take another. The workers of that attempt are gone. Elastic waits for return values,
        which workers that have left by `os._exit` do not send: a signal ends that.
        """
        if self._attempt and self.poll() is None:
            self._give_up()
        if self._process.poll() is None and (self._code is not None or not self._attempt):
            # A worker that was only being forked when the others were killed was in the agent's session until now.
            process.clear(self._root, spared=self._process.pid, node=self._node)
            return True
        self.close()
        return False

    def _give_up(self) -> None:
        """End elastic's wait.

        Does nothing if there is no runner yet: there is no use in waiting for it then.
        """
        if self._runner is not None and process.alive(*self._runner):
            with suppress(ProcessLookupError):
                os.kill(self._runner[0], signal.SIGTERM)
            self._await(_SETTLE)

    def _await(self, seconds: float) -> None:
        """Wait for the agent's message.

        If the agent is stopped, there will be none.
        """
        deadline = time.monotonic() + seconds
        while self.poll() is None and not self._stands_still() and time.monotonic() < deadline:
            time.sleep(_PACE)

    def _stands_still(self) -> bool:
        # The agent only waits for the runner's end; if there is a runner, it is the runner that reports.
        if self._runner is not None and process.alive(*self._runner):
            return process.stopped(self._runner[0])
        return process.stopped(self._process.pid)

    def close(self) -> None:
        """End the agent, its fork server and the runner."""
        self._channel.close()
        _kill(self._process)


def environment(launch: Launch) -> dict[str, str]:
    """Return the environment of an agent and its workers.

    That is the client's environment, and what marks them as members of the run.
    """
    return {
        **os.environ,
        **launch.environment,
        process.RUN_ID_VARIABLE: launch.run_id,
        process.RUN_DIR_VARIABLE: str(launch.paths.root),
        process.NODE_VARIABLE: str(launch.seat.node),
        scratch.VARIABLE: str(scratch.make()),
        process.PRELOAD_VARIABLE: json.dumps(_preload(launch)),
    }


def seat(launch: Launch) -> dict[str, dict[str, str | int]]:
    """Return what an agent must know of the other nodes.

    Empty if there are none.
    """
    if launch.seat.nodes == 1:
        return {}
    return {"seat": {**launch.seat._asdict(), "timeout": max(1, int(launch.recipe.launch.node_timeout))}}


def _preload(launch: Launch) -> dict[str, list[str]]:
    """Return what the fork server imports, and from which folder.

    The folder is that of the recipe, which is the one for the modules of a task too.
    """
    modules = launch.recipe.launch.preload
    return {"modules": modules, "path": [str(launch.resolved.document.path.parent.resolve())] if modules else []}


def spawn(launch: Launch, command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start an agent in a session of its own.

    Its output goes into the run directory.
    """
    with launch.paths.node_log(launch.seat.node).open("ab") as log:
        return subprocess.Popen(
            command,
            env=environment(launch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )


def _own_end(started: subprocess.Popen[bytes]) -> int | None:
    # Its children die with its first thread. It can be waited for only when its last one is gone, a moment later.
    began = process.start_time(started.pid)
    if began is not None and not process.alive(started.pid, began):
        with suppress(subprocess.TimeoutExpired):
            started.wait(_EVIDENCE)
    return started.poll()


def _kill(started: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        started.wait(_KILL)
