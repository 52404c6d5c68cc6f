"""What a launch shows of the texts of the user's code: what it prints, logs and raises."""

from __future__ import annotations

import os
import pty
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SIZE = 50_000_000

PLUGIN = rf"""
from trainrun import hookimpl

EVIL = "\x1b]0;OWNED\x07 \x9b31m\u202e\x7f"


class Evil:
    @hookimpl
    def on_step_end(self, run, step):
        print("printed" + EVIL)
        run.log("evil" + EVIL, 1.0)
        if step == 3:
            raise ValueError("bad sample " + EVIL + "x" * {SIZE} + "\nlast words" + EVIL)
"""


@pytest.fixture
def evil(project: Any) -> Any:
    (project.folder / "evil.py").write_text(PLUGIN)
    return {"plugins__evil__use": "evil.py:Evil", "train__log_every": 1}


def test_an_exception_of_50_mb_is_cut_and_nothing_is_obeyed(project: Any, evil: Any) -> None:
    ended = project.launch(**evil, launch__workers=1, launch__max_restarts=0)
    assert ended.code == 1, ended.stderr[-5000:]
    assert "printed" in ended.stderr
    assert ended.tracebacks == 1
    for text in (ended.stdout, ended.stderr):
        assert CONTROLS.findall(text) == []
        assert len(text) < 30_000
    assert "bad sample \\u001b]0;OWNED\\u0007" in ended.verdict
    assert "ValueError: bad sample" in ended.stderr
    (whole,) = set(re.findall(r"… all of it: (.*)", ended.stderr))
    text = Path(whole).read_text()
    assert len(text) > SIZE
    assert "last words\x1b]0;OWNED" in text
    assert Path(whole).with_name("rank-0.json").stat().st_size < 5_000_000
    for name in ("outcome.json", "events.jsonl"):  # and so what hooks, other nodes and trackers are given is short
        assert (ended.run / name).stat().st_size < 100_000
    for command, size in (("why", 30_000), ("logs", 300_000)):
        answer = project(command, "latest")
        assert answer.code == 0, answer.stderr
        assert CONTROLS.findall(answer.stdout) == []
        assert len(answer.stdout) < size


def test_the_live_line_of_a_terminal_is_escaped(project: Any, evil: Any) -> None:
    """A terminal gets what moves the line that is rewritten, and nothing of the task's."""
    near, far = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):
            while data := os.read(near, 65536):
                shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        ended = project.finish(project.start_launch(screen=far, train__steps=2, **evil, launch__workers=1))
    finally:
        os.close(far)
        reader.join()
        os.close(near)
    assert ended.code == 0, bytes(shown)
    text = shown.decode()
    assert "\\u001b]0;OWNED\\u0007" in text
    assert "OWNED\x07" not in text
    assert not set(re.findall("[\x07\x7f-\x9f\u202e]", text))
