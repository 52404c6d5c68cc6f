"""The worker as a process: its record, its log, its tie to the one that started it."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.errors import EnvironmentProblem, ExitCode, HookFailed, TrainingError
from trainrun.rundir import Outcome, RunPaths, Stop
from trainrun.rundir.files import read_json
from trainrun.rundir.process import start_time
from trainrun.worker.logs import make_logger
from trainrun.worker.main import Record, _traceback
from trainrun.worker.parent import die_with_parent
from trainrun.worker.signals import Terminated


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def recorded(paths: RunPaths, rank: int = 0) -> dict[str, Any]:
    found = read_json(paths.worker_record(1, rank))
    assert isinstance(found, dict)
    return found


def test_a_record_says_who_and_where(paths: RunPaths) -> None:
    record = Record(paths, 1, 3)
    record.update("training", 5)
    record.update("evaluation")
    found = recorded(paths, 3)
    assert (found["pid"], found["pgid"], found["start_time"]) == (os.getpid(), os.getpgid(0), start_time(os.getpid()))
    assert (found["rank"], found["phase"], found["step"]) == (3, "evaluation", 5)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome("finished", 0, "all 5 steps were made", step=5), None),
        (
            Outcome("stopped", 0, "stopped", step=5, stop=Stop("", "a: b", "request")),
            {"reason": "", "source": "a: b", "origin": "request"},
        ),
    ],
)
def test_the_completion_record(paths: RunPaths, outcome: Outcome, expected: Any) -> None:
    Record(paths, 1, 0).finish(outcome)
    found = recorded(paths)
    assert (found["phase"], found["step"]) == ("finished", 5)
    assert found["stop"] == expected


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_hooks_error_is_recorded_with_its_own_traceback(paths: RunPaths) -> None:
    cause = raised(ValueError("broken"))
    failed = HookFailed("mine", "on_log", cause, "-p no:mine")
    failed.__cause__ = cause
    assert Record(paths, 1, 0).fail(raised(failed)) == ExitCode.TRAINING_FAILED
    error = recorded(paths)["error"]
    assert (error["type"], error["instance"], error["hook"], error["exit_code"]) == ("HookFailed", "mine", "on_log", 1)
    assert "ValueError: broken" in error["traceback"]
    assert "HookFailed" not in error["traceback"]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(EnvironmentProblem("no GPU"), 4, False), (RuntimeError("odd"), 1, True), (KeyboardInterrupt(), 1, True)],
)
def test_other_errors_keep_their_exit_code(paths: RunPaths, error: BaseException, code: int, told: bool) -> None:
    assert Record(paths, 1, 0).fail(raised(error)) == code
    assert bool(recorded(paths)["error"]["traceback"]) is told


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OutOfMemoryError(Exception):
    """Called as torch's, and another."""


@pytest.mark.parametrize(
    ("error", "kind", "memory"),
    [
        (Mute(), "raised", False),
        (OutOfMemoryError("mine"), "raised", False),
        (torch.OutOfMemoryError("torch's"), "raised", True),
        (type("Terminated", (Exception,), {})("mine"), "raised", False),
        (type("HookFailed", (Exception,), {})("mine"), "raised", False),
        (Terminated("sat in backward", None, None), "told_to_stop", False),
        (TrainingError("complete"), "explained", False),
    ],
)
def test_errors_are_told_apart_by_what_they_are(paths: RunPaths, error: BaseException, kind: str, memory: bool) -> None:
    Record(paths, 1, 0).fail(raised(error))
    found = recorded(paths)["error"]
    assert (found["type"], found["kind"], found["out_of_memory"]) == (type(error).__name__, kind, memory)
    if isinstance(error, Mute):
        assert found["message"] == "(no message: its __str__ raised RuntimeError)"


def test_each_log_record_is_a_line_of_json_and_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    before = len(list(Path("/proc/self/fd").iterdir()))
    logger = make_logger(path, run="r", rank=0)
    try:
        raise ValueError("two\nlines \udcff")
    except ValueError:
        logger.bind(plugin="p").exception("it failed", value=Path("x"))
    logger.info("and on")
    logger.debug("not this")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["event"], first["plugin"], first["level"], first["value"]) == ("it failed", "p", "error", "x")
    assert "ValueError: two" in first["exception"]
    assert (second["event"], second["rank"], "plugin" in second) == ("and on", 0, False)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- the tie to the parent: forked processes, watched through a pipe that closes when the last of them is gone ---


def status_of(parent: int | None) -> int:
    """How a child ends that ties itself to `parent`."""
    pid = os.fork()
    if pid == 0:
        die_with_parent(parent)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_of_the_right_parent_lives() -> None:
    assert status_of(os.getpid()) == 7


def test_a_child_whose_parent_has_gone_ends_at_once() -> None:
    assert status_of(1) == -signal.SIGKILL, "another process has taken it over"


def test_a_parent_may_be_the_first_process_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert status_of(1) == 7
    assert status_of(None) == -signal.SIGKILL


def test_the_child_dies_with_its_parent() -> None:
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent = os.getpid()
        if os.fork() == 0:
            die_with_parent(parent)
            os.write(writer, b"tied")
            signal.pause()
        signal.pause()
    os.close(writer)
    assert os.read(reader, 4) == b"tied"
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    assert select.select([reader], [], [], 20)[0]
    assert os.read(reader, 1) == b"", "nobody holds the pipe any more"
    os.close(reader)


def test_a_traceback_begins_in_the_users_code(training: Any, regression: Any) -> None:
    class Broken:
        @hookimpl
        def on_step_end(self) -> None:
            raise ValueError("broken on purpose")

    with pytest.raises(HookFailed) as failed:
        training(regression, Broken, train={"steps": 1, "batch_size": 4})
    trace = _traceback(failed.value)
    assert "<hook " not in trace
    assert trace.count("on_step_end") == 1
    assert trace.endswith("ValueError: broken on purpose\n")
