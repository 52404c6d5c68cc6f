from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.main import run
from trainrun.rundir import Lease, Outcome, RunPaths, create
from trainrun.rundir.files import append_line, write_json

PATIENCE = 30.0


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    made = create(tmp_path / "runs", "logs")
    record(made, 0, "all well", step=1, note="two words", where={"a": 1})
    record(made, 1, "all well")
    record(made, 1, "odd", "warning", exception="Traceback:\n  \x1b[31mline")
    made.rank_output(0).write_bytes(b"10%\r100%\nred \x1b[31mtext\n")
    made.rank_output(1).write_text("of rank 1\n")
    made.agent_log.write_text("of the agent\n")
    append_line(made.client_log, {"time": time.time(), "event": "launch_start"})
    return made


def record(paths: RunPaths, rank: int, event: str, level: str = "info", *, age: float = 0.0, **fields: Any) -> None:
    stamp = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    append_line(paths.rank_log(rank), {"event": event, "level": level, "timestamp": stamp, "rank": rank, **fields})


@pytest.fixture
def logs(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines of one call, without their times."""

    def call(*arguments: str) -> list[str]:
        assert run(["logs", str(paths.root), *arguments]) == 0
        return [line.partition(" ")[2] if line[:2].isdigit() else line for line in capsys.readouterr().out.splitlines()]

    return call


def test_rank_zero_and_what_is_serious(logs: Callable[..., list[str]]) -> None:
    shown = logs()
    assert 'rank 0 info  all well  step=1  note="two words"  where="{\\"a\\": 1}"' not in shown
    assert 'rank 0 info  all well  step=1  note="two words"  where={"a": 1}' in shown
    assert "client info  the launch begins" in shown
    assert "rank 0 | 100%" in shown
    assert "rank 0 | red text" in shown
    at = shown.index("rank 1 warning  odd")
    assert shown[at + 1 : at + 3] == ["    Traceback:", "      line"]
    assert len(shown) == 7


def test_one_rank(logs: Callable[..., list[str]]) -> None:
    assert {line for line in logs("--rank", "1") if not line.startswith(" ")} == {
        "rank 1 info  all well",
        "rank 1 warning  odd",
        "rank 1 | of rank 1",
    }


def test_all_ranks_and_one_source(logs: Callable[..., list[str]]) -> None:
    assert sorted(logs("--rank", "all", "--source", "output")) == [
        "rank 0 | 100%",
        "rank 0 | red text",
        "rank 1 | of rank 1",
    ]
    assert logs("--source", "agent") == ["agent | of the agent"]


def test_output_of_one_rank_is_shown_as_it_was_printed(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", str(paths.root), "--source", "output", "--rank", "0"]) == 0
    assert capsys.readouterr().out == "100%\nred text\n"


def test_tail_and_since(paths: RunPaths, logs: Callable[..., list[str]]) -> None:
    record(paths, 2, "long ago", "error", age=3600.0)
    assert logs("-n", "1", "--source", "output") == ["red text"]
    assert "rank 2 error  long ago" in logs()
    assert "rank 2 error  long ago" not in logs("--since", "5m")
    assert "rank 2 error  long ago" in logs("--since", "1h30m")
    moment = (datetime.now() - timedelta(minutes=5)).isoformat(timespec="seconds")
    assert "rank 2 error  long ago" not in logs("--since", moment)


def test_another_day_is_shown_with_its_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = create(tmp_path, "old")
    record(paths, 0, "old", age=200_000.0)
    assert run(["logs", str(paths.root), "--source", "records"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert datetime.fromisoformat(first[:19]) < datetime.now() - timedelta(days=2)


def test_json(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", str(paths.root), "--json", "--rank", "1"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["version"] for entry in entries} == {1}
    assert {(entry["source"], entry["level"]) for entry in entries} == {
        ("records", "info"),
        ("records", "warning"),
        ("output", "info"),
    }
    assert all(datetime.fromisoformat(entry["time"]).tzinfo for entry in entries)


@pytest.mark.parametrize("wrong", [("--rank", "one"), ("--rank", "-1"), ("--since", "soon"), ("--source", "stdout")])
def test_wrong_options(paths: RunPaths, wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", str(paths.root), *wrong]) == 2
    assert wrong[1] in capsys.readouterr().err


def test_run_without_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = create(tmp_path, "bare")
    assert run(["logs", str(paths.root)]) == 0
    os.utime(paths.root, (1.0, 1.0))
    assert run(["logs", "-f", str(paths.root)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "died" in shown.err


# --- following ---


@contextmanager
def following(paths: RunPaths, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "trainrun", "logs", "-f", str(paths.root), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[RunPaths, Lease]]:
    """A run with one line of output, held by this process."""
    paths = create(tmp_path, "running")
    lease = Lease.acquire(paths)
    paths.rank_output(0).write_text("begin\n")
    yield paths, lease
    lease.release()


def test_follow_goes_on_over_a_renaming_until_the_run_ends(running: tuple[RunPaths, Lease]) -> None:
    paths, lease = running
    with following(paths, "--source", "output") as process:
        assert line_of(process) == "begin"
        with paths.rank_output(0).open("a") as file:
            file.write("more\n")
        assert line_of(process) == "more"
        paths.rank_output(0).replace(paths.rank_output_old(0))
        paths.rank_output(0).write_text("new file\nthe end")
        assert line_of(process) == "new file"
        write_json(paths.outcome, Outcome("finished", 0, "all steps are done", run=str(paths.root)).to_json())
        lease.release()
        rest, told = process.communicate(timeout=PATIENCE)
        assert rest == "the end\n"
        assert told == f"{paths.run_id}: finished: all steps are done\n"
        assert process.returncode == 0


def test_follow_ends_with_a_client_that_died(running: tuple[RunPaths, Lease]) -> None:
    paths, lease = running
    with following(paths, "--source", "output") as process:
        assert line_of(process) == "begin"
        # As a dead owner leaves it.
        write_json(paths.lease / "2", {"version": 1, **lease.info.to_json(), "start_time": 1})
        rest, told = process.communicate(timeout=PATIENCE)
        assert rest == ""
        assert "died" in told
        assert process.returncode == 0


def test_ctrl_c_ends_it_quietly(running: tuple[RunPaths, Lease]) -> None:
    with following(running[0], "--source", "output") as process:
        assert line_of(process) == "begin"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == ("", "\n"), "a line's end after the terminal's ^C"
        assert process.returncode == 130


def test_reader_that_has_seen_enough(running: tuple[RunPaths, Lease]) -> None:
    paths, _ = running
    with following(paths, "--source", "output") as process:
        assert line_of(process) == "begin"
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        with paths.rank_output(0).open("a") as file:
            file.write("more\n" * 10)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""
