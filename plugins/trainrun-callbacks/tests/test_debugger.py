from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
from trainrun_callbacks.debugger import Debugger, DebuggerOptions

from trainrun import EnvironmentProblem, RecipeError
from trainrun.testing import LaunchRecipe


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


LISTEN = """
import logging, sys
from types import SimpleNamespace
from trainrun_callbacks.debugger import Debugger, DebuggerOptions

logger = SimpleNamespace(info=lambda event, **rest: None)
run = SimpleNamespace(world=SimpleNamespace(rank=3, local_rank=1), logger=logger)
Debugger(DebuggerOptions(port=int(sys.argv[1]))).on_worker_start(run)
sys.stdin.read()
"""


def test_a_debugger_can_connect_to_the_worker_that_says_so() -> None:
    """With a real debugpy, in a process of its own: it cannot be told to stop listening."""
    port = free_port()
    command = [sys.executable, "-Xfrozen_modules=off", "-c", textwrap.dedent(LISTEN), str(port - 1)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"rank 3: connect a debugger to 127.0.0.1:{port} (debugpy, attach)\n"
        assert told_by_adapter(port)["event"] == "output"
    finally:
        process.kill()
        process.communicate()


def told_by_adapter(port: int) -> Any:
    """The first message of the debug adapter protocol."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as lines:
        length = int(lines.readline().split(b":")[1])
        lines.readline()
        return json.loads(lines.read(length))


def test_a_port_that_is_taken_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(address: tuple[str, int]) -> None:
        assert address == ("127.0.0.1", 7001)
        raise RuntimeError("Address already in use")

    monkeypatch.setitem(sys.modules, "debugpy", SimpleNamespace(listen=listen))
    run: Any = SimpleNamespace(world=SimpleNamespace(rank=1, local_rank=1))
    with pytest.raises(EnvironmentProblem, match=r"rank 1 cannot listen on 127.0.0.1:7001 \(Address already in use\)"):
        Debugger(DebuggerOptions(port=7000)).on_worker_start(run)


def test_only_chosen_ranks_listen_and_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    module = SimpleNamespace(listen=calls.append, wait_for_client=lambda: calls.append("waited"))
    monkeypatch.setitem(sys.modules, "debugpy", module)
    plugin = Debugger(DebuggerOptions(port=7000, ranks=[1], wait=True))
    for rank in range(3):
        run: Any = SimpleNamespace(
            world=SimpleNamespace(rank=rank, local_rank=rank), logger=SimpleNamespace(info=lambda event, **rest: None)
        )
        plugin.on_worker_start(run)
    assert calls == [("127.0.0.1", 7001), "waited"]


def test_the_client_says_where_to_connect(capsys: pytest.CaptureFixture[str]) -> None:
    launch: Any = SimpleNamespace(quiet=False, ranks=range(2, 4))
    Debugger(DebuggerOptions(ranks=[3])).on_attempt_start(launch)
    assert capsys.readouterr().err == "rank 3: connect a debugger to 127.0.0.1:5679 (debugpy, attach)\n"
    launch.quiet = True
    Debugger(DebuggerOptions()).on_attempt_start(launch)
    assert capsys.readouterr().err == ""


def test_what_would_go_wrong_vetoes_the_launch(launch_recipe: LaunchRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = 'task.use = "digits"\ntrain.steps = 1\nplugins.debugger.wait = true\n'
    with pytest.raises(RecipeError, match=r"launch.timeout = 600 s ends a run that waits .*; set launch.timeout = 0"):
        launch_recipe(recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given: Any = SimpleNamespace(launch=SimpleNamespace(timeout=0.0))
    assert Debugger(DebuggerOptions(wait=True)).check_recipe(given) == [
        "debugpy is not installed; run: pip install 'trainrun-callbacks[debug]'"
    ]
