from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import RunPaths, process
from trainrun.rundir.files import read_json

ROOT = Path(__file__).resolve().parents[2]
_ENDLESS = ("train.steps=1000000", "train.log_every=5", "launch.max_restarts=0", "evaluate.every=1000000")
LONG = [argument for setting in _ENDLESS for argument in ("-o", setting)]

# Makes the terminal on stdin the session's own, so that Ctrl-C typed there reaches the client and nobody else.
OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

Condition = Callable[[], Any]


def wait_for(condition: Condition, what: str, seconds: float = 60.0) -> Any:
    """The first true answer of `condition`; looks until it comes."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
    return answer


class Client:
    """A `trainrun launch` of the digits recipe in a process of its own, on a terminal if asked for."""

    def __init__(self, base: Path, arguments: Sequence[str], *, terminal: bool = False, deaf: bool = False) -> None:
        self.base = base
        self.output = b""
        own = [sys.executable, "-c", OWN_TERMINAL] if terminal else []
        command = [*own, sys.executable, "-m", "trainrun.cli.main", "launch", str(ROOT / "train.toml")]
        self._master, slave = pty.openpty() if terminal else os.pipe()
        self._started = subprocess.Popen(
            [*command, "--dir", str(base), *arguments],
            stdin=slave if terminal else subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        self.pid = self._started.pid
        os.close(slave)
        if deaf:  # whatever the client writes has no reader
            os.close(self._master)
            self._master = os.open(os.devnull, os.O_RDONLY)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def paths(self) -> RunPaths:
        found = wait_for(lambda: self._runs() or self._started.poll() is not None, "a run directory") and self._runs()
        assert found, self.text
        return RunPaths(found[0].resolve())

    @property
    def running(self) -> bool:
        return self._started.poll() is None

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    def _runs(self) -> list[Path]:
        return [path for path in self.base.glob("2*") if path.is_dir()]

    def step(self) -> int:
        return int((read_json(self.paths.status) or {}).get("step") or 0)

    def wait_for_step(self, step: int = 1) -> None:
        wait_for(lambda: self._started.poll() is not None or self.step() >= step, f"step {step}")
        assert self._started.poll() is None, self.text

    def worker(self, rank: int) -> dict[str, Any]:
        return wait_for(lambda: read_json(self.paths.worker_record(1, rank)), f"rank {rank}")

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def send(self, number: signal.Signals) -> None:
        self._started.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        code = self._started.wait(seconds)
        self._reader.join(10)
        return code

    def close(self) -> None:
        self._started.kill()
        self._started.wait()
        with suppress(AssertionError):
            process.sweep(self.paths.root)
        self._reader.join(10)
        os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # the terminal's end
            while data := os.read(self._master, 65536):
                self.output += data


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def begin(*arguments: str, terminal: bool = False, deaf: bool = False) -> Client:
        clients.append(Client(tmp_path / "runs", arguments, terminal=terminal, deaf=deaf))
        return clients[-1]

    yield begin
    for client in clients:
        client.close()


@pytest.fixture
def start_long(start: Callable[..., Client]) -> Callable[..., Client]:
    """A run that goes on until somebody ends it, and has made a step."""

    def begin(*arguments: str, terminal: bool = False) -> Client:
        client = start(*LONG, *arguments, terminal=terminal)
        client.wait_for_step()
        return client

    return begin


@pytest.fixture
def nothing_left() -> Callable[[RunPaths], None]:
    """Whatever was started is gone soon after the client."""

    def check(paths: RunPaths) -> None:
        wait_for(lambda: not process.members(paths.root), "the end of every process", seconds=2.0)

    return check
