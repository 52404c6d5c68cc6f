from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from trainrun.cli.main import run
from trainrun.cli.screen import Screen
from trainrun.rundir import Lease, Outcome, RunPaths, WorkerRecord, create
from trainrun.rundir.files import append_line, write_json
from trainrun.rundir.view import Viewer

PATIENCE = 30.0

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\^_])")


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run in its second attempt, with two workers, one of which has failed."""
    made = create(tmp_path / "runs", "watched")
    cost = [{"instance": "slow", "hook": "on_log", "calls": 3, "total_seconds": 0.5, "max_seconds": 0.2}]
    status = {"state": "training", "attempt": 2, "step": 5, "steps": 9, "epoch": 1, "samples_per_second": 64.0}
    write_json(made.status, {**status, "updated": time.time(), "metrics": {"train/loss": 0.125}, "cost": cost})
    made.attempt(2).mkdir()
    error = {"type": "ValueError", "message": "bad \x1b[31mbatch\nmore"}
    for rank, text in enumerate(("training", "failed")):
        record = WorkerRecord(1, 1, 1, rank, text, step=5, instance="slow", hook="on_log").to_json()
        write_json(made.worker_record(2, rank), {**record, "error": error if rank else None})
    for event in (
        {"event": "attempt_start", "time": 1.0, "attempt": 1, "workers": 2},
        {"event": "attempt_end", "time": 2.0, "attempt": 1, "state": "failed", "reason": "rank 0 broke\nmore"},
        {"event": "restart", "time": 2.0, "attempt": 1, "reason": "rank 0 broke", "why": "restart 1 of 3"},
        {"event": "attempt_start", "time": 3.0, "attempt": 2, "workers": 2},
    ):
        append_line(made.events, event)
    return made


@pytest.fixture
def lease(paths: RunPaths) -> Iterator[Lease]:
    held = Lease.acquire(paths)
    yield held
    held.release()


def finish(paths: RunPaths, lease: Lease) -> None:
    write_json(paths.outcome, Outcome("finished", 0, "9/9 steps", step=9, run=str(paths.root)).to_json())
    lease.release()


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *arguments: str, size: tuple[int, int] = (24, 80)) -> None:
        self._main, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainrun", *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - so that ^C is a signal
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(inner)
        self.shown = ""

    def press(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def wait_for(self, text: str) -> str:
        """What was shown since the start, once `text` is there."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.plain:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.plain!r}"
            assert self._read(), f"ended without {text!r}: {self.plain!r}"
        return self.plain

    def wait(self) -> int:
        """The exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    @property
    def plain(self) -> str:
        return ESCAPES.sub("", self.shown)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._main], [], [], PATIENCE)
        assert ready, f"nothing more came after {self.plain!r}"
        with suppress(OSError):  # EIO is the end of a terminal
            data = os.read(self._main, 65536)
            self.shown += data.decode(errors="replace")
            return bool(data)
        return False


@pytest.fixture
def terminal(paths: RunPaths) -> Iterator[Terminal]:
    opened = Terminal("watch", str(paths.root))
    yield opened
    opened.close()


@pytest.mark.usefixtures("lease")
def test_live_until_the_end(paths: RunPaths, lease: Lease, terminal: Terminal) -> None:
    shown = terminal.wait_for("ValueError: bad batch")
    for text in (paths.run_id, "training", "attempt 2", "step 5/9", "train/loss 0.125", "rank 0 broke", "on_log"):
        assert text in shown
    assert "\x1b[?1049h" in terminal.shown, "the other screen"
    status = json.loads(paths.status.read_text())
    write_json(paths.status, {**status, "step": 6})
    terminal.wait_for("step 6/9")
    finish(paths, lease)
    assert terminal.wait() == 0
    after = ESCAPES.sub("", terminal.shown.rpartition("\x1b[?1049l")[2])
    assert "finished: 9/9 steps" in after
    assert "details: trainrun why" in after
    assert "\x1b[?25h" in terminal.shown, "the cursor is back"


@pytest.mark.usefixtures("lease")
def test_ctrl_c_leaves_the_run_alone(paths: RunPaths, terminal: Terminal) -> None:
    terminal.wait_for("step 5/9")
    before = sorted(path.name for path in paths.root.rglob("*"))
    terminal.press(b"\x03")
    assert terminal.wait() == 130
    assert "\x1b[?1049l" in terminal.shown, "the terminal is as it was"
    assert sorted(path.name for path in paths.root.rglob("*")) == before
    assert not paths.control.exists()


def test_client_dies_while_watched(paths: RunPaths, lease: Lease, terminal: Terminal) -> None:
    terminal.wait_for("step 5/9")
    # As a dead owner leaves it.
    write_json(paths.lease / "2", {"version": 1, **lease.info.to_json(), "start_time": 1})
    assert terminal.wait() == 0
    assert f"{paths.run_id}: died: its launcher" in terminal.plain


def test_dead_run_is_shown_once(paths: RunPaths) -> None:
    terminal = Terminal("watch", str(paths.root))
    try:
        os.utime(paths.root, (1.0, 1.0))
        assert terminal.wait() == 0
        assert "died" in terminal.plain
        assert "1049h" not in terminal.shown
    finally:
        terminal.close()


@pytest.mark.usefixtures("lease")
def test_without_a_terminal_one_snapshot(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", str(paths.root)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{paths.run_id}: training")
    assert "attempt 1 failed: rank 0 broke (restart 1 of 3)" in shown
    assert "\x1b" not in shown


def test_ended_run(paths: RunPaths, lease: Lease, capsys: pytest.CaptureFixture[str]) -> None:
    finish(paths, lease)
    assert run(["watch", str(paths.root)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("9/9 steps") == 1
    assert "details: trainrun why" in shown


@pytest.mark.usefixtures("lease")
def test_json(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", str(paths.root), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["version"] == 1
    assert [event["event"] for event in answer["events"]][-1] == "attempt_start"
    assert [attempt["restart"] for attempt in answer["attempts"]] == ["restart 1 of 3", None]
    assert answer["workers"][1]["error"]["type"] == "ValueError"


# --- what fits on a screen ---


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10), (20, 5)])
@pytest.mark.parametrize("ranks", [2, 64])
@pytest.mark.usefixtures("lease")
def test_never_more_than_the_terminal_holds(paths: RunPaths, width: int, height: int, ranks: int) -> None:
    for rank in range(ranks):
        error = {"type": "ValueError", "message": "x" * 500} if rank == 33 else None
        record = WorkerRecord(1, 1, 1, rank, "training", step=5).to_json()
        write_json(paths.worker_record(2, rank), {**record, "error": error})
    for number in range(100):
        append_line(paths.events, {"event": "decision", "time": 1.0, "step": number, "decision": "stop", "reason": "y"})
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Screen(console).render(Viewer(paths).look(), height))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "watched" in lines[0]
    if height >= 24:
        assert len(lines) <= height
        assert any("step 99" in line for line in lines), "the last event"
        assert ranks < 64 or any(line.startswith("33 ") for line in lines), "the rank that stands out"


def test_nothing_is_known_yet(tmp_path: Path) -> None:
    bare = create(tmp_path, "bare")
    for path in (bare.status, bare.events):
        path.write_bytes(b"\xff garbage")
    console = Console(width=80, height=24, force_terminal=True)
    with console.capture() as capture:
        console.print(Screen(console).render(Viewer(bare).look(), 24))
    assert "bare" in capture.get()


def test_signal_that_ends_it_gives_the_terminal_back(paths: RunPaths, lease: Lease, terminal: Terminal) -> None:
    assert lease.info.pid == os.getpid()
    terminal.wait_for("step 5/9")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.wait() == 143
    assert "\x1b[?1049l" in terminal.shown
    assert not paths.control.exists()
