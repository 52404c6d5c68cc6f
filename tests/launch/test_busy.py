"""A command that imports something slow says so, and leaves nothing of it on the screen."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainrun.launch import busy
from trainrun.launch.busy import Busy


class Screen(io.StringIO):
    """Collects what is written, and says when a text was."""

    def __init__(self, awaited: str, *, terminal: bool) -> None:
        super().__init__()
        self.seen = threading.Event()
        self._awaited = awaited
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        if self._awaited in text:
            self.seen.set()
        return count


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PATIENCE", "_PLAIN", "_FRAME"):
        monkeypatch.setattr(busy, name, 0.01)


def test_a_spinner_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    screen = Screen("importing tasks/slow.py", terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    with Busy() as show:
        show.importing(f"{tmp_path}/tasks/slow.py:Task")
        assert screen.seen.wait(20)
    assert screen.getvalue().endswith("\r\x1b[K")


def test_one_line_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen("importing package.module", terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    with Busy(plain=True) as show:
        show.importing("package.module:Task")
        assert screen.seen.wait(20)
        show(None)
    assert screen.getvalue() == "importing package.module\n"


def test_nothing_of_commands_that_print_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen("", terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    with Busy() as show:
        show.importing("package.module:Task")
    assert screen.getvalue() == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_nothing_of_what_is_quick_or_quiet(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    screen = Screen("", terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(busy, "_PATIENCE", 60.0)
    with Busy(quiet=quiet) as show:
        show("something")
    assert screen.getvalue() == ""


def test_a_command_is_busy_until_each_item_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen("comparing", terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)

    def items() -> Iterator[int]:
        assert screen.seen.wait(20)
        yield 1
        screen.seen.clear()
        assert screen.seen.wait(20)

    for _ in busy.during("comparing", items()):
        shown = screen.getvalue()
        assert shown.endswith("\r\x1b[K"), "the line is free for the item"
    assert screen.getvalue() > shown
