"""Running checks in another process, and living on when that one hangs or dies."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from trainrun.doctor.finding import Finding, Settings, skipped
from trainrun.rundir.process import PYTHON

_CHILD = "from trainrun.doctor.process import main; main()"
_AFTERLIFE = 1.0  # seconds for faulthandler to write the place at which the process hangs
_LEAVE = 3.0  # seconds for a killed process to be gone
_KEPT = 20_000  # characters of its output that are searched for the place at which it hung
_FRAME = re.compile(r'^ *File "([^<][^"]*)", line (\d+)', re.MULTILINE)  # as faulthandler writes it, innermost first
_REPORT = "this is a bug in trainrun: please report it with the lines below"


class Examination(NamedTuple):
    """A check: what it reports on, in this order, and the function that does it as `module:function`.

    `fresh`: in a process of its own, started as a launch starts its agents, because it imports what others must not
    see. `needs`: checks without whose success this one has no meaning. `hint`: what to do if it never ends.
    """

    names: tuple[str, ...]
    target: str
    fresh: bool = False
    needs: tuple[str, ...] = ()
    hint: str = "find out why that hangs, or give it more time with --timeout"


class Examiner:
    """Runs examinations one after another, as long as it can in one process. To be closed, or used by `with`."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and all that it has started."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def findings(self, examination: Examination, settings: Settings) -> Iterator[Finding]:
        """Yield a finding for each name of the examination, also after failures.

        Each comes within `settings.timeout` seconds.
        """
        names = list(examination.names)
        if examination.fresh:
            self.close()
        try:
            yield from self._ask(examination, settings, names)
        except OSError as error:
            self.close()
            yield from _broken(names, f"no process could be started for it: {error.strerror or error}", _REPORT)
        if examination.fresh:
            self.close()

    def _ask(self, examination: Examination, settings: Settings, names: list[str]) -> Iterator[Finding]:
        child = self._child = self._child or _Child(settings)
        child.send(
            {
                "target": examination.target,
                "settings": settings._asdict(),
                # A launch's agent finds modules as a bare interpreter does; a command that reads as this process does.
                "path": None if examination.fresh else sys.path,
            }
        )
        while names:
            begun = time.monotonic()
            answer = child.answer(settings.timeout)
            if isinstance(answer, Finding):
                names.remove(answer.check)
                yield answer._replace(seconds=round(time.monotonic() - begun, 3))
                continue
            if answer.fatal:
                self.close()
            yield from _broken(names, answer.how, answer.advice or examination.hint)
            return
        child.answer(settings.timeout)  # `done`: the process is ready for the next job


def unexamined(names: Sequence[str], cause: str) -> Iterator[Finding]:
    """Yield findings for checks that were not done because `cause` failed."""
    return (skipped(name, f"not examined, because {cause} failed") for name in names)


def _broken(names: Sequence[str], how: str, advice: str) -> Iterator[Finding]:
    yield Finding(names[0], "failed", how, advice)
    yield from unexamined(names[1:], names[0])


class _End(NamedTuple):
    """In place of a finding: the check is over. `fatal`: so is its process. Without advice, the check's hint counts."""

    how: str = ""
    advice: str = ""
    fatal: bool = False


class _Child:
    def __init__(self, settings: Settings) -> None:
        reader, writer = os.pipe()
        self._channel = reader
        # In memory: the temporary directory may be one of the things that are broken.
        self._output: IO[bytes] = os.fdopen(os.memfd_create("doctor"), "w+b")
        self._doing = ""
        self._made: list[str] = []
        self._buffer = b""
        try:
            self._popen = subprocess.Popen(
                [*PYTHON, "-X", "faulthandler", "-c", _CHILD, str(writer), str(os.getpid())],
                env=_environment(settings),
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(writer,),
                start_new_session=True,
            )
        except OSError:
            os.close(reader)
            self._output.close()
            raise
        finally:
            os.close(writer)

    def send(self, job: Mapping[str, Any]) -> None:
        assert self._popen.stdin is not None
        self._doing = ""
        with suppress(BrokenPipeError):  # it is gone, which the next reply shows
            self._popen.stdin.write(json.dumps(job).encode() + b"\n")
            self._popen.stdin.flush()

    def answer(self, seconds: float) -> Finding | _End:
        """Return the next finding, or how the check ended."""
        deadline = time.monotonic() + seconds
        while True:
            message = self._message(deadline, seconds)
            if isinstance(message, _End):
                return message
            if "doing" in message:
                self._doing = message["doing"]
            elif "made" in message:
                self._made.append(message["made"])
            elif "finding" in message:
                return Finding(**message["finding"])
            else:
                what = message.get("error", "it said nothing")
                return _End(f"it cannot be examined: {what}", _advice(what))

    def end(self) -> None:
        """Kill the process and all that it started; remove what it made.

        A process that does not die is left.
        """
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)  # a session of its own: this is also what it started
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_LEAVE)
        assert self._popen.stdin is not None
        with suppress(OSError):
            self._popen.stdin.close()
        os.close(self._channel)
        self._output.close()
        if self._made:
            _remove(self._made)

    def _message(self, deadline: float, seconds: float) -> Any:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return self._hangs(seconds)
            data = os.read(self._channel, 1 << 16)
            if not data:
                return self._died()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _hangs(self, seconds: float) -> _End:
        self._popen.send_signal(signal.SIGABRT)  # has faulthandler write the place at which it hangs
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_AFTERLIFE)
        return _End(f"{self._doing or 'it'} takes longer than {seconds:g} s{self._where()}", fatal=True)

    def _died(self) -> _End:
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_LEAVE)
        code = self._popen.returncode
        how = "ended Python" if code is None else f"ended Python with exit code {code}"
        if code is not None and code < 0:
            how = f"crashed Python: {_signal(-code)}"
        return _End(
            f"{self._doing or 'the check'} {how}{self._where()}", "take out or reinstall what crashes", fatal=True
        )

    def _where(self) -> str:
        self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, self._output.tell() - _KEPT))
        said = self._output.read().decode(errors="replace")
        frame = _FRAME.search(said.rpartition("Current thread")[2])  # other threads come before it
        return f", in {frame[1]}, line {frame[2]}" if frame else ""


def _remove(folders: Sequence[str]) -> None:
    """Remove folders in another process.

    On a file system that does not respond, this one would wait forever.
    """
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.Popen(["rm", "-rf", "--", *folders], stdin=subprocess.DEVNULL).wait(_LEAVE)


def _environment(settings: Settings) -> dict[str, str]:
    """Return what a launch gives its workers, and a limit per plugin.

    Several plugins together can stay below the limit.
    """
    limit = f"{settings.timeout / 3:g}"
    return {"OMP_NUM_THREADS": settings.threads, "TRAINRUN_DESCRIBE_TIMEOUT": limit, **os.environ}


def _advice(error: str) -> str:
    if error.startswith("ModuleNotFoundError"):
        return "install what is missing, as `packages` says"
    return _REPORT


def _signal(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
