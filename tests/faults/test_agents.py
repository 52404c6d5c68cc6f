"""Agents that die early, or stand still: the run goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOON = 5.0  # seconds: nobody waits for its account of what happened

Wait = Callable[[Callable[[], object]], None]


def read(path: str) -> bytes:
    """Empty where the process is gone by now."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def agents(client: int) -> list[int]:
    """The client's children that are an agent."""
    children = map(int, read(f"/proc/{client}/task/{client}/children").split())
    return [pid for pid in children if b"trainrun.agent" in read(f"/proc/{pid}/cmdline")]


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.long)])
def test_agent_that_is_killed_before_it_has_started_anything(project: Any, wait_for: Wait, start: str) -> None:
    client = project.start_launch(launch__start=start, launch__max_restarts=1)
    wait_for(lambda: client.poll() is not None or agents(client.pid))
    os.kill(agents(client.pid)[0], signal.SIGKILL)
    ended = project.finish(client)
    assert ended.code == 0, ended.stderr
    assert len(ended.attempts) == 2
    assert "the workers' agent was killed by SIGKILL" in ended.attempts[0]


@pytest.mark.long
def test_agent_that_stands_still_is_no_obstacle(project: Any, wait_for: Wait) -> None:
    client = project.start_launch(task__fault="waits", launch__max_restarts=1)
    ready = project.folder / "ready"
    wait_for(lambda: client.poll() is not None or (ready.exists() and ready.read_text()))
    [agent] = agents(client.pid)
    os.kill(agent, signal.SIGSTOP)
    worker = int(ready.read_text())
    ready.unlink()
    os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: client.poll() is not None or (ready.exists() and ready.read_text()))
    assert client.poll() is None
    assert time.monotonic() - began < SOON
    os.kill(int(ready.read_text()), signal.SIGKILL)
    ended = project.finish(client)
    assert ended.code == 1
    assert len(ended.attempts) == 2
    assert all("killed by SIGKILL" in reason for reason in ended.attempts)
    assert not Path(f"/proc/{agent}").exists()
