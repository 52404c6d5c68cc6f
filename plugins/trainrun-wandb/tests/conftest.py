from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import RunPaths
from trainrun.testing.tracked import TrackedRun, wait_until

PACKAGES = Path(sys.prefix, "trackers", "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")

# W&B's offline file is a log of LevelDB: blocks of 32 KiB, each record in one or more chunks with a header of 7 bytes.
READ = """
import json, struct, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2 as pb

def records(path):
    data, place, parts = path.read_bytes(), 7, []
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place:place + 7])
        parts.append(data[place + 7:place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield pb.Record.FromString(b"".join(parts))
            parts = []

def values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}

answer = []
for path in sorted(Path(sys.argv[1]).glob("wandb/*run-*/*.wandb")):
    one = {"rows": [], "config": {}, "summary": {}, "exit": None, "run": {}, "files": [], "code": []}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            one["rows"].append(values(record.history.item))
        elif kind == "run":
            run = record.run
            one["run"] = {"id": run.run_id, "project": run.project, "group": run.run_group, "tags": list(run.tags)}
            one["run"]["name"] = run.display_name
            one["config"] |= values(run.config.update)
        elif kind == "config":
            one["config"] |= values(record.config.update)
        elif kind == "summary":
            one["summary"] |= values(record.summary.update)
        elif kind == "exit":
            one["exit"] = record.exit.exit_code
        elif kind == "artifact":
            one["code"] += [entry.path for entry in record.artifact.manifest.contents]
        elif kind == "files":
            one["files"] += sorted(item.path for item in record.files.files)
    answer.append(one)
print(json.dumps(answer))
"""


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B for the processes that a test starts, and to be found from here. Its own files go to the test folder."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def read() -> Callable[[RunPaths], list[dict[str, Any]]]:
    """Reads what W&B has written into a run's folder, one part for each time that it was opened."""

    def read_parts(paths: RunPaths) -> list[dict[str, Any]]:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
        command = [sys.executable, "-c", READ, str(paths.root)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    return read_parts


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for a condition, and fails when it does not come."""
    return wait_until


@pytest.fixture
def make_run(tmp_path: Path, packages: None) -> Iterator[Callable[..., TrackedRun]]:
    made: list[TrackedRun] = []

    def make(use: str, **options: Any) -> TrackedRun:
        made.append(TrackedRun(tmp_path / "runs" / "run-1", use, options))
        return made[-1]

    yield make
    for run in made:
        run.close()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, packages: None) -> Iterator[Any]:
    """The stand-in for W&B's server, not started, and W&B's client told to use it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = runpy.run_path(str(Path(__file__).with_name("stand_in.py")))["StandIn"](port)
    monkeypatch.setenv("WANDB_BASE_URL", found.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield found
    found.stop()
