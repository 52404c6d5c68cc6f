from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import Manifest, begin, digest, publish, sync
from trainrun.launch.handle import Launch
from trainrun.launch.local import LocalWorkers, start
from trainrun.recipe import Recipe
from trainrun.rundir import RunPaths, create, process

HERE = Path(__file__).parent
PATIENCE = 10.0
FAKE = [sys.executable, str(HERE / "fake_worker.py")]

Files = Callable[..., Mapping[str, bytes]]
Start = Callable[..., tuple[Launch, LocalWorkers]]

RECIPE = {"task": {"use": "x"}, "train": {"steps": 10, "batch_size": 64}}


def make_launch(paths: RunPaths, *, workers: int = 2, attempt: int = 1, **tables: Mapping[str, Any]) -> Launch:
    data = {**RECIPE, **tables}
    resolved: Any = None
    return Launch(Recipe.from_data(data), paths, (), resolved, workers, attempt=attempt)


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[RunPaths]:
    made = create(tmp_path / "runs", "test")
    yield made
    assert process.members(made.root) == [], "processes were left behind"


@pytest.fixture
def make() -> Callable[..., Launch]:
    """Make a `Launch` for a run directory."""
    return make_launch


@pytest.fixture
def launched(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start fake workers: `launched({"1": "kill:9"})` answers with the launch and the handle."""
    handles: list[LocalWorkers] = []

    def begin(plan: Mapping[str, str] | None = None, *, workers: int = 2) -> tuple[Launch, LocalWorkers]:
        monkeypatch.setenv("FAKE", json.dumps(plan or {}))
        launch = make_launch(paths, workers=workers)
        handles.append(start(FAKE, launch))
        return launch, handles[-1]

    yield begin
    for handle in handles:
        handle.kill()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds, with a deadline."""

    def wait(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < deadline, "it did not come to that"
            threading.Event().wait(0.01)

    return wait


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def recipe(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose workers are fake."""
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(cache))
    path = tmp_path / "train.toml"
    path.write_text(f"""
[run]
dir = "{tmp_path}/runs"
[task]
use = "{HERE}/fake_backend.py:Task"
[launch]
workers = 2
backend = "fake"
max_restarts = 0
[train]
steps = 10
[plugins.fake]
use = "{HERE}/fake_backend.py:Fake"
""")
    return path


@pytest.fixture
def write_checkpoint(checkpoint_files: Files) -> Callable[..., Path]:
    """Publish a made-up checkpoint of a step in a folder of checkpoints."""
    return partial(published, checkpoint_files)


def published(
    checkpoint_files: Files, checkpoints: Path, step: int, *, states: Mapping[str, str] | None = None, **changes: Any
) -> Path:
    """Publish a checkpoint. states: of plugins, the content of their files; changes: of the manifest."""
    checkpoints.parent.mkdir(parents=True, exist_ok=True)
    temp = begin(checkpoints, step, attempt=1)
    plugins = {f"plugins/{name}.pt": text for name, text in (states or {}).items()}
    contents = checkpoint_files(step, {"training.pt": {}, **plugins})
    for name, data in contents.items():
        (temp / name).write_bytes(data)
        sync(temp / name)
    known = {"run": checkpoints.parent.name, "attempt": 1, "epoch": 1, "samples_seen": 64 * step, "world_size": 2}
    about: dict[str, Any] = {"created": time.time(), "recipe": RECIPE, "finite": True}
    about["files"] = {name: digest(temp / name) for name in contents}
    return publish(temp, Manifest(step=step, **{**known, **about, **changes}))


@pytest.fixture
def damage() -> Callable[[Path], None]:
    """Flip the weights of a checkpoint, leaving their size as it was."""
    return flip


def flip(checkpoint: Path) -> None:
    file = checkpoint / "state" / "__0_0.distcp"
    file.write_bytes(bytes(reversed(file.read_bytes())))
