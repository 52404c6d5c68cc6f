from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.main import run
from trainrun.errors import BadCheckpoint
from trainrun.launch import resume as module
from trainrun.rundir import Outcome, RunPaths, create


@pytest.fixture(autouse=True)
def restore_sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return create(tmp_path / "runs", "digits")


def answer(monkeypatch: pytest.MonkeyPatch, outcome: Outcome | Exception) -> list[tuple[Any, ...]]:
    """Have `resume` answer so; answers with what it is called with."""
    calls: list[tuple[Any, ...]] = []

    def resume(name: str, overrides: tuple[str, ...], plugins: tuple[str, ...], **options: Any) -> Outcome:
        calls.append((name, overrides, plugins, options))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(module, "resume", resume)
    return calls


def test_arguments_are_passed_on(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, Outcome("finished", 0, "done", run=str(paths.root)))
    line = "resume brave -o a=1 -p no:y --dir elsewhere --from 300 --allow-changes --trust-checkpoint --nodes 2 -q"
    assert run(line.split()) == 0
    [(name, overrides, plugins, options)] = calls
    assert (name, overrides, plugins) == ("brave", ("a=1", "launch.nodes=2"), ("no:y",))
    assert options == {
        "dir": Path("elsewhere"),
        "start": "300",
        "allow_changes": True,
        "trust_checkpoint": True,
        "ranks": "zero",
        "quiet": True,
        "refresh": False,
        "node_rank": None,
        "rdzv_endpoint": None,
    }


def test_latest_run_is_meant_where_none_is_named(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, Outcome("finished", 0, "done", run=str(paths.root)))
    assert run(["resume"]) == 0
    assert (calls[0][0], calls[0][3]["dir"], calls[0][3]["start"]) == ("latest", Path("runs"), None)


@pytest.mark.parametrize("code", [0, 1, 75, 93, 130])
def test_exit_code_is_that_of_the_outcome(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    answer(monkeypatch, Outcome("failed", code, "so", run=str(paths.root)))
    assert run(["resume", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code


def test_no_good_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer(monkeypatch, BadCheckpoint("here: none of the checkpoints is good\n    step-000005: it is torn"))
    assert run(["resume"]) == 4
    assert "step-000005: it is torn" in capsys.readouterr().err
