"""The commands that look at a run and stop it, while it really goes on and after its launching process was killed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir.files import read_json

PATIENCE = 60.0
FOREVER = 10_000_000  # steps

Wait = Callable[[Callable[[], object]], None]


@pytest.fixture
def launched(project: Any, wait_for: Wait) -> Iterator[subprocess.Popen[str]]:
    """A launch whose workers train and would do so for hours."""
    command = project.start_launch(train__steps=FOREVER, launch__grace=20)
    try:
        status = project.folder / "runs" / "latest" / "status.json"
        wait_for(lambda: command.poll() is not None or (read_json(status) or {}).get("step", 0) > 2)
        assert command.poll() is None, command.stderr.read()
        yield command
    finally:
        command.kill()
        command.communicate()


def call(project: Any, *arguments: str) -> tuple[int, str, str]:
    """A command beside the launch."""
    command = project.start(*arguments)
    stdout, stderr = command.communicate(timeout=PATIENCE)
    return command.returncode, stdout, stderr


def state(project: Any) -> dict[str, Any]:
    code, stdout, _ = call(project, "ps", "--json")
    assert code == 0
    (run,) = json.loads(stdout)["runs"]
    return dict(run)


def test_stop_after_the_step(project: Any, launched: subprocess.Popen[str], wait_for: Wait) -> None:
    running = state(project)
    assert (running["state"], running["attempt"]) == ("training", 1)
    assert f"process {launched.pid} on " in running["owner"]
    workers = json.loads(call(project, "status", "--json")[1])["workers"]
    assert [worker["pulse"]["phase"] for worker in workers] == ["training", "training"]
    following = project.start("logs", "-f")
    try:
        code, stdout, stderr = call(project, "stop", "--reason", "enough of it")
        assert code == 0, stderr
        assert f"asked process {launched.pid} on " in stderr
        assert stdout.startswith("stopped at step ")
        assert "by trainrun stop: enough of it (" in stdout
        followed, told = following.communicate(timeout=PATIENCE)
        assert following.returncode == 0
        assert "client info  the launch has ended  state=stopped" in followed
        assert "stopped at step" in told
    finally:
        following.kill()
        following.communicate()
    ended = project.finish(launched)
    assert (ended.code, ended.outcome["state"]) == (0, "stopped")
    code, _, stderr = call(project, "stop")
    assert code == 2
    assert "is not running: stopped" in stderr
    assert not (ended.run / "control" / "stop.json").exists()


def test_stop_now(project: Any, launched: subprocess.Popen[str]) -> None:
    code, stdout, stderr = call(project, "stop", "--now")
    assert code == 0, stderr
    ended = project.finish(launched)
    assert ended.outcome["state"] != "finished"
    assert stdout.startswith(f"{ended.outcome['state']}: ")


def test_refused_requests_do_not_disturb_the_run(project: Any, launched: subprocess.Popen[str], wait_for: Wait) -> None:
    run = project.folder / "runs" / "latest"
    control = Path(run / "control")
    control.mkdir(mode=0o700)
    for content in (b"\0" * 60_000, b"{", b'{"now": "yes"}'):
        (control / "part").write_bytes(content)
        (control / "part").rename(control / "stop.json")
        wait_for(lambda: not (control / "stop.json").exists())
    (control / "stop.json").symlink_to("/dev/zero")
    wait_for(lambda: not (control / "stop.json").is_symlink())
    assert launched.poll() is None
    assert state(project)["state"] == "training"
    assert call(project, "stop", "--now")[0] == 0
    project.finish(launched)
    assert call(project, "why")[1].count("was refused") == 4


def test_launching_process_is_killed(project: Any, launched: subprocess.Popen[str], wait_for: Wait) -> None:
    following = project.start("logs", "-f")
    try:
        launched.send_signal(signal.SIGKILL)
        launched.wait(PATIENCE)
        following.communicate(timeout=PATIENCE)
        assert following.returncode == 0
    finally:
        following.kill()
        following.communicate()
    dead = state(project)
    assert (dead["state"], dead["owner"]) == ("died", None)
    assert f"its launcher (pid {launched.pid} on " in dead["reason"]
    code, stdout, _ = call(project, "watch")
    assert code == 0
    assert ": died: its launcher" in stdout
    code, _, stderr = call(project, "stop")
    assert code == 2
    assert "is not running: died" in stderr
    wait_for(lambda: project.left() == [])
