"""Faults while a run goes on: a tiny task, plugins that go wrong, and the command line as its users call it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import process
from trainrun.rundir.files import read_lines
from trainrun.testing import DistributionInstaller

INSTALLED = Path(__file__).with_name("installed")
INJECT = "trainrun.builtin.inject:Inject"

# Makes the terminal on stdin the session's own, so that Ctrl-C typed there reaches the client and nobody else.
OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
PATIENCE = 150  # seconds for one command: a launch takes a few, on a machine that does nothing else

RECIPE = """\
[run]
name = "faults"

[task]
use = "faulty_tasks:Task"

[train]
steps = 8
batch_size = 8
log_every = 2
device = "cpu"

[optimizer]
name = "sgd"
lr = 0.1

[evaluate]
splits = []

[launch]
workers = 2
max_restarts = 0

[checkpoint]
at_end = false
"""


@dataclass(frozen=True)
class Ended:
    """One command that is over."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    runs: Path

    @property
    def run(self) -> Path:
        """The folder of the run that it made."""
        return (self.runs / "latest").resolve()

    @property
    def verdict(self) -> str:
        """The line that says how the run ended: the first of stdout."""
        return self.stdout.partition("\n")[0]

    @property
    def tracebacks(self) -> int:
        """How many tracebacks were shown."""
        return self.stderr.count("Traceback (most recent call last)") + self.stdout.count("Traceback")

    @property
    def outcome(self) -> dict[str, Any]:
        """What the run directory says of the end."""
        found: dict[str, Any] = json.loads((self.run / "outcome.json").read_text())
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was recorded of the run, in order."""
        return read_lines(self.run / "events.jsonl")[0]

    @property
    def attempts(self) -> list[str]:
        """How each attempt ended."""
        return [event["reason"] for event in self.events if event["event"] == "attempt_end"]

    def calls(self, name: str) -> list[tuple[int, int]]:
        """Rank and step of each call that the plugin instance `name` noted, in the order they were made."""
        path = self.run / f"calls-{name}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(rank), int(step)) for rank, step in (line.split() for line in lines)]


class Project:
    """A folder with a recipe, in which the command line is called."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.recipe = folder / "train.toml"
        self.recipe.write_text(RECIPE)
        self._started: list[subprocess.Popen[str]] = []
        self._environment = {"TRAINRUN_CACHE_DIR": str(cache), "COLUMNS": "200", "NO_COLOR": "1"}

    def start(self, *arguments: str, terminal: int | None = None, screen: int | None = None) -> subprocess.Popen[str]:
        """Start a command in the folder. terminal, screen: the descriptor of one, for its stdin or its stderr."""
        own = [sys.executable, "-c", OWN_TERMINAL] if terminal is not None else []
        command = subprocess.Popen(
            [*own, sys.executable, "-m", "trainrun", *arguments],
            cwd=self.folder,
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if screen is None else screen,
            text=True,
            start_new_session=True,
        )
        self._started.append(command)
        return command

    def finish(self, command: subprocess.Popen[str]) -> Ended:
        """Wait for a command, and make sure that it has left nothing running."""
        started = time.monotonic()
        try:
            stdout, stderr = command.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
            command.wait(PATIENCE)
        ended = Ended(command.returncode, stdout, stderr, time.monotonic() - started, self.folder / "runs")
        assert self.left() == []
        return ended

    def __call__(self, *arguments: str) -> Ended:
        """Call the command line and wait for its end."""
        return self.finish(self.start(*arguments))

    def launch(self, *plugins: str, **overrides: object) -> Ended:
        """`trainrun launch` with these plugins enabled, and overrides whose dots are written as `__`."""
        return self.finish(self.start_launch(*plugins, **overrides))

    def start_launch(
        self, *plugins: str, terminal: int | None = None, screen: int | None = None, **overrides: object
    ) -> subprocess.Popen[str]:
        """Start what `launch` waits for."""
        named = [part for name in plugins for part in ("-p", name)]
        settings = [part for key, value in overrides.items() for part in ("-o", f"{key.replace('__', '.')}={value}")]
        return self.start("launch", "train.toml", *named, *settings, terminal=terminal, screen=screen)

    def inject(self, *faults: str, plugins: Sequence[str] = (), **overrides: object) -> Ended:
        """`launch`, with faults."""
        table = {"plugins__inject__use": INJECT, "plugins__inject__faults": json.dumps(faults)}
        return self.launch(*plugins, **table, **overrides)

    def events(self) -> list[dict[str, Any]]:
        """What `trainrun why` knows of the last run."""
        answer = self("why", "--json")
        assert answer.code == 0, answer.stderr
        events: list[dict[str, Any]] = json.loads(answer.stdout)["events"]
        return events

    def left(self) -> list[int]:
        """Processes of runs in this folder, zombies too: a zombie shows no environment, but it is somebody's child."""
        mark = f"{process.RUN_DIR_VARIABLE}={self.folder}".encode()
        return [pid for pid in _pids() if mark in _read(pid, "environ") or _is_own_zombie(pid)]

    def sweep(self) -> None:
        """End what a failing test has left."""
        for command in self._started:
            if command.returncode is None:
                command.kill()
                command.communicate()
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and int(entry.name) > 1]


def _read(pid: int, name: str) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def _is_own_zombie(pid: int) -> bool:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return len(fields) > 1 and fields[0] == b"Z" and int(fields[1]) == os.getpid()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One place for the distribution, so that its task is imported once to be described, and not in each test."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture
def faulty(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installs the distribution `faulty-plugins` 1.2: each class of `installed/faulty_plugins.py` is a plugin of it."""
    sources = {path.name: path.read_text() for path in INSTALLED.glob("*.py")}
    names = re.findall(r"^class (\w+)\(Faulty\)", sources["faulty_plugins.py"], re.MULTILINE)
    plugins = {name.lower(): f"faulty_plugins:{name}" for name in names}
    installer = DistributionInstaller(site, monkeypatch)
    installer("faulty-plugins", sources, plugins, version="1.2")
    yield
    installer.remove()


@pytest.fixture
def project(tmp_path: Path, faulty: None, trainrun_cache: Path) -> Iterator[Project]:
    """A project whose recipe trains, for plugins and a task that do not let it."""
    folder = tmp_path / "project"
    folder.mkdir()
    made = Project(folder.resolve(), trainrun_cache)
    yield made
    made.sweep()


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object]], None]:
    """Wait until a question has an answer, for a bounded time."""

    def wait(question: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not question():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    return wait
