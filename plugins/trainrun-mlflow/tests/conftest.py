from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.testing.tracked import TrackedRun, wait_until

PACKAGES = Path(sys.prefix, "trackers", "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")

SERVE = """
import os, sys
folder, port = sys.argv[1:]
os.environ.update(
    _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{folder}/mlflow.db",
    _MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/",
    _MLFLOW_SERVER_ARTIFACT_DESTINATION=f"{folder}/artifacts",
    _MLFLOW_SERVER_SERVE_ARTIFACTS="true",
    MLFLOW_DISABLE_TELEMETRY="true",
)
from mlflow.server import app
from werkzeug.serving import make_server
make_server("127.0.0.1", int(port), app, threaded=True).serve_forever()
"""

READ = """
import json, os, sys
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
def files(run, folder):
    found = client.list_artifacts(run, folder)
    return sorted(path for one in found for path in (files(run, one.path) if one.is_dir else [one.path]))

answer = []
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        found = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        answer.append({
            "experiment": experiment.name, "name": run.info.run_name, "status": run.info.status,
            "params": run.data.params, "tags": run.data.tags,
            "metrics": {key: sorted([m.step, m.timestamp, m.value] for m in rows) for key, rows in found.items()},
            "artifacts": files(run.info.run_id, None),
        })
print(json.dumps(answer))
"""


class Server:
    """MLflow's own tracking server on a database, which can be stopped and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-c", SERVE, str(folder), str(port)]
        self._log = (folder / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=with_packages(), stdout=self._log, stderr=self._log, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self._log.close()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def with_packages() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGES)}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow for the processes that a test starts, and to be found from this one."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that has not been started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder, port)
    yield server
    server.close()


@pytest.fixture
def read() -> Callable[[str], list[dict[str, Any]]]:
    """Reads every run with MLflow's own client, in a process of its own."""

    def read_all(uri: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-c", READ, uri]
        done = subprocess.run(command, env=with_packages(), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    return read_all


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
