"""Import plugins in a process of their own, which is given up when it dies or hangs."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from trainrun.rundir.process import PYTHON

TIMEOUT_VARIABLE = "TRAINRUN_DESCRIBE_TIMEOUT"
_DEFAULT_TIMEOUT = 60.0
_AFTERLIFE = 1.0  # seconds for faulthandler to write the stack of a process that hangs
_OUTPUT_KEPT = 4000
_FRAME = re.compile(r'^ *File "([^<][^"]*)", line (\d+)', re.MULTILINE)  # as faulthandler writes it, innermost first


@dataclass(frozen=True)
class Died:
    """In place of a result: how the process ended at a job, and the interpreter's message."""

    how: str
    output: str = ""


def answers(
    jobs: Sequence[Mapping[str, Any]], timeout: float | None, tell: Callable[[str], None] | None = None
) -> Iterator[Any]:
    """Yield the result of each job.

    After a job that kills the process, another process continues with the rest.

    tell: called with the target of each job when it begins.
    """
    seconds = _timeout() if timeout is None else timeout
    left = list(jobs)
    while left:
        with _process(left) as process:
            for _ in range(len(left)):
                job = left.pop(0)
                if tell is not None:
                    tell(str(job["target"]))
                answer = process.answer(seconds)
                yield answer
                if isinstance(answer, Died):
                    break


def _timeout() -> float:
    try:
        return float(os.environ.get(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT))
    except ValueError:
        return _DEFAULT_TIMEOUT


class _Process:
    def __init__(self, popen: subprocess.Popen[str], channel: int, output: IO[bytes]) -> None:
        self._popen = popen
        self._channel = channel
        self._output = output
        self._buffer = b""

    def answer(self, seconds: float) -> Any:
        """Wait for the next result and return it."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._line(deadline)
            if isinstance(line, Died):
                return line
            if "answer" in line:
                return line["answer"]

    def _line(self, deadline: float) -> Any:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return self._hangs()
            data = os.read(self._channel, 1 << 16)
            if not data:
                return self._died(_ending(self._popen.wait()))
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _hangs(self) -> Died:
        """Have the process that hangs write its stack.

        SIGABRT makes faulthandler do so.
        """
        self._popen.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_AFTERLIFE)
        return self._died("importing it takes longer than the time limit")

    def _died(self, how: str) -> Died:
        self._output.seek(0)
        said = self._output.read()[-_OUTPUT_KEPT:].decode(errors="replace").strip()
        frame = _FRAME.search(said)
        return Died(f"{how}, in {frame[1]}, line {frame[2]}" if frame else how, said)


def _ending(code: int) -> str:
    if code < 0:
        return f"importing it crashed Python: {signal.Signals(-code).name}"
    return f"importing it ended the process with exit code {code}"


@contextmanager
def _process(jobs: Sequence[Mapping[str, Any]]) -> Iterator[_Process]:
    reader, writer = os.pipe()
    command = [*PYTHON, "-X", "faulthandler", "-m", "trainrun.plugin.describe_process", str(writer)]
    with tempfile.TemporaryFile() as output, os.fdopen(reader, "rb"):
        popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            pass_fds=(writer,),
            start_new_session=True,
            text=True,
        )
        os.close(writer)
        try:
            _request(popen, jobs)
            yield _Process(popen, reader, output)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)  # its own session: this is the plugin's children too
            popen.wait()


def _request(popen: subprocess.Popen[str], jobs: Sequence[Mapping[str, Any]]) -> None:
    assert popen.stdin is not None
    with suppress(BrokenPipeError), popen.stdin as stdin:
        json.dump({"path": sys.path, "jobs": list(jobs)}, stdin)
