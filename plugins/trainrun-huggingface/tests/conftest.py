from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.testing.tracked import TrackedRun, wait_until

HERE = Path(__file__).parent
PACKAGES = Path(sys.prefix, "trackers", "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")


class Hub:
    """The fake hub in a process of its own, which can be stopped and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(HERE / "fake_hub.py"), str(self.folder), str(self._port)]
        self._process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None
            assert time.monotonic() < deadline, "the fake hub did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def file(self, name: str, repo: str = "someone/digits") -> Path:
        return self.folder / repo / name

    @property
    def notes(self) -> list[dict[str, Any]]:
        path = self.folder / "commits.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def commits(self) -> list[dict[str, Any]]:
        return [note for note in self.notes if "files" in note]

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has not been started; whoever asks the hub's package asks it, with a token that it takes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hub = Hub(tmp_path / "hub", port)
    hub.folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    yield hub
    hub.stop()


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for a condition, and fails when it does not come."""
    return wait_until


@pytest.fixture
def make_run(tmp_path: Path, hub: Hub) -> Iterator[Callable[..., TrackedRun]]:
    made: list[TrackedRun] = []

    def make(**options: Any) -> TrackedRun:
        made.append(TrackedRun(tmp_path / "runs" / "run-1", "trainrun_huggingface:HuggingFace", options))
        return made[-1]

    yield make
    for run in made:
        run.close()
