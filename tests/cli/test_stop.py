from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainrun.cli import stop
from trainrun.cli.main import run
from trainrun.rundir import Lease, Outcome, RunPaths, create
from trainrun.rundir.files import write_json
from trainrun.rundir.requests import StopRequest, take_stop

PATIENCE = 20.0


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return create(tmp_path / "runs", "stop")


def ends_well(paths: RunPaths, request: StopRequest) -> None:
    outcome = Outcome("stopped", 0, f"{request.reason} now={request.now}", step=7, run=str(paths.root))
    write_json(paths.outcome, outcome.to_json())


def gives_up(paths: RunPaths, request: StopRequest) -> None:
    """The client dies without an outcome."""


@contextmanager
def client(paths: RunPaths, answer: Callable[[RunPaths, StopRequest], None] = ends_well) -> Iterator[None]:
    """Owns the run until it is asked to stop, as a real one does."""
    lease, over = Lease.acquire(paths), threading.Event()

    def work() -> None:
        while not over.wait(0.01):
            request = take_stop(paths)
            if request is not None:
                answer(paths, request)
                break
        lease.release()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)


def test_asks_and_waits(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    with client(paths):
        assert run(["stop", "--dir", str(paths.root.parent), "--reason", "enough"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("stopped: enough now=False\nrun: ")
    assert f"to stop {paths.run_id} after this step" in shown.err


def test_now_and_json(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    with client(paths):
        assert run(["stop", str(paths.root), "--now", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], answer["run"], answer["ended"]) == (1, paths.run_id, True)
    assert answer["outcome"]["reason"] == " now=True"


def test_no_wait(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    lease = Lease.acquire(paths)
    try:
        assert run(["stop", str(paths.root), "--no-wait"]) == 0
        assert paths.stop_request.exists()
        assert capsys.readouterr().out == ""
    finally:
        lease.release()


def test_client_that_is_gone_without_an_outcome(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    with client(paths, gives_up):
        assert run(["stop", str(paths.root)]) == 0
    assert capsys.readouterr().out.startswith("died: ")


def test_client_that_does_not_answer(
    paths: RunPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "_SLACK", 0.2)
    paths.recipe.write_text("[launch]\ngrace = 0.1\n")
    lease = Lease.acquire(paths)
    try:
        started = time.monotonic()
        assert run(["stop", str(paths.root)]) == 1
        assert time.monotonic() - started < PATIENCE
        assert "has not ended yet" in capsys.readouterr().err
    finally:
        lease.release()


@pytest.mark.parametrize(("text", "seconds"), [('"1m30s"', 90.0), ("5", 5.0), ('"soon"', 30.0), ("[]", 30.0)])
def test_grace_is_the_recipes(paths: RunPaths, text: str, seconds: float) -> None:
    paths.recipe.write_text(f"[launch]\ngrace = {text}\n")
    assert stop._grace(paths) == seconds


def test_run_that_has_ended(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(paths.outcome, Outcome("failed", 1, "rank 1 broke", run=str(paths.root)).to_json())
    assert run(["stop", str(paths.root)]) == 2
    assert "is not running: failed, rank 1 broke" in capsys.readouterr().err
    assert not paths.control.exists()


def test_run_whose_client_died(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    lease = Lease.acquire(paths)
    # As a dead owner leaves it.
    write_json(paths.lease / "2", {"version": 1, **lease.info.to_json(), "start_time": 1})
    assert run(["stop", str(paths.root)]) == 2
    assert "is not running: died, its launcher (pid" in capsys.readouterr().err
    lease.release()
