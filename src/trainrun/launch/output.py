"""The client's side of what workers print: a named pipe for each, and a small process that reads them into files.

The client holds each pipe open too, so that no worker is ended by a broken pipe when the reading process dies. Nothing
that is in the pipe is lost: another process is started, and continues at the position of the first one.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainrun.launch.handle import Launch
from trainrun.rundir import process, secrets
from trainrun.rundir.paths import RunPaths

_SINK = Path(__file__).parents[1] / "agent" / "sink.py"
_MIB = 1024 * 1024
_PIPE = 1024 * 1024  # bytes that a pipe should hold: what a worker can print while no process reads
_PIPES = 16 * 1024 * 1024  # bytes for all of them: the kernel grants a user 64 MiB, then makes new pipes tiny
_PATIENCE = 7.0  # seconds for the reader to finish: more than it waits itself for what still holds a pipe
_QUICK = 1.0  # seconds: a reader that ends sooner than this will not work the next time either
_TRIES = 3  # readers that may end so, one after the other
_HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class Output:
    """What the workers `ranks` of this `node` print in one attempt.

    If no named pipe can be made, there is none, and the workers write into their files without a limit.

    limit: the bytes that are kept of each.
    """

    def __init__(self, paths: RunPaths, attempt: int, ranks: Sequence[int], limit: int, node: int = 0) -> None:
        self._paths = paths
        self._node = node
        self._attempt = attempt
        self._ranks = ranks
        self._limit = limit
        self._pipes: dict[int, int] = {}
        self._reader: _Reader | None = None
        self._failures = 0
        self._lost = dict.fromkeys(ranks, 0)

    @classmethod
    def of(cls, launch: Launch) -> Output:
        """Return the output of the attempt that is being made, already read."""
        limit = launch.recipe.launch.output_limit * _MIB
        made = cls(launch.paths, launch.attempt, launch.ranks, limit, launch.seat.node)
        made.start()
        return made

    @property
    def reader(self) -> int | None:
        """Return the pid of the process that reads.

        Returns None if there is none.
        """
        return self._reader.pid if self._reader and self._reader.code is None else None

    def start(self) -> None:
        """Make the pipes and begin to read. To be called before the workers start."""
        self._paths.attempt(self._attempt).mkdir(mode=0o700, parents=True, exist_ok=True)
        size = min(_PIPE, _PIPES // max(1, len(self._ranks)))
        try:
            for rank in self._ranks:
                _mark(self._paths.rank_output(rank), self._attempt)
                self._pipes[rank] = _make_pipe(self._paths.output_pipe(self._attempt, rank), size)
        except OSError:
            self._remove_pipes()
        self.poll()

    def poll(self) -> None:
        """Start the process that reads if there is none. Never waits."""
        if self._pipes and self._reader and self._reader.code is not None:
            self._failures = self._failures + 1 if self._reader.age < _QUICK else 0
            self._reader.finish()
            self._reader = None
        if self._pipes and self._reader is None and not self._given_up:
            self._begin()
        if self._given_up:
            self._discard()

    def close(self) -> None:
        """Wait for a bounded time until all output is in the files.

        To be called when the workers are gone. May be called again.
        """
        for _ in range(_TRIES):
            self.poll()
            if self._reader is None or self._reader.finish():
                break
        self._reader = None
        self._remove_pipes()
        self._tell_loss()

    @property
    def _given_up(self) -> bool:
        return self._failures >= _TRIES

    def _begin(self) -> None:
        try:
            marks = process.marks(self._paths.root, self._node)
            self._reader = _Reader([str(self._limit), *marks, *self._names()], self._paths.agent_log)
        except OSError:
            self._failures += 1

    def _names(self) -> Iterator[str]:
        for rank in self._pipes:
            yield str(self._paths.output_pipe(self._attempt, rank))
            yield str(self._paths.rank_output(rank))
            yield str(self._paths.rank_output_old(rank))

    def _discard(self) -> None:
        """Continue without a reader: what workers print is lost, but they run."""
        for rank, descriptor in self._pipes.items():
            with suppress(BlockingIOError):
                self._lost[rank] += len(os.read(descriptor, _PIPE))

    def _remove_pipes(self) -> None:
        while self._pipes:
            rank, descriptor = self._pipes.popitem()
            os.close(descriptor)
            with suppress(OSError):
                self._paths.output_pipe(self._attempt, rank).unlink()

    def _tell_loss(self) -> None:
        for rank, count in self._lost.items():
            if count:
                why = f"the process that keeps it did not work, see {self._paths.agent_log.name}"
                _append(self._paths.rank_output(rank), f"--- {count} bytes of output were dropped: {why} ---\n")
                self._lost[rank] = 0


class _Reader:
    """The process that reads the pipes.

    It is no member of the run: what ends all of the run's processes must spare it, or their last words were lost.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._began = time.monotonic()
        with log.open("ab") as errors, _signals_held_back():
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SINK), *arguments],
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age(self) -> float:
        return time.monotonic() - self._began

    @property
    def code(self) -> int | None:
        """Return None while it runs, then its exit code."""
        return self._process.poll()

    def finish(self) -> bool:
        """Report the end of the attempt to the reader and wait.

        Waits for the end of the reader. Returns False if it died before it had read all.
        """
        try:
            self._process.communicate(b"\n", timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return True
        return self._process.returncode == 0


def _make_pipe(path: Path, size: int) -> int:
    """Make a named pipe of about `size` bytes, held open for reading."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with suppress(OSError):  # more than this user may have: then it is a small pipe
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size)
    return descriptor


def _mark(path: Path, attempt: int) -> None:
    """Separate what this attempt prints from what was printed before."""
    if attempt > 1 and path.exists():
        _append(path, f"--- attempt {attempt} ---\n")


def _append(path: Path, line: str) -> None:
    with suppress(OSError), path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        starts_line = file.read(1) in {b"", b"\n"}
        file.write(("" if starts_line else "\n").encode() + line.encode())


def _environment() -> dict[str, str]:
    marks = {process.RUN_DIR_VARIABLE, process.RUN_ID_VARIABLE}
    known = secrets.forms(os.environ.get(secrets.SECRETS_VARIABLE, "{}"))
    told = {secrets.FORMS_VARIABLE: json.dumps(known)} if known else {}
    return {name: value for name, value in os.environ.items() if name not in marks} | told


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Hold these signals back from what is started meanwhile.

    The mask of blocked ones is inherited, also by a program.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
