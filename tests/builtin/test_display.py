from __future__ import annotations

import io
import re
import sys

import pytest

from trainrun.builtin import display
from trainrun.builtin.display import Line, Live, describe

STATUS = {
    "state": "training",
    "step": 120,
    "steps": 400,
    "epoch": 3,
    "metrics": {"train/grad_norm": 1.0, "eval/accuracy": 0.95, "train/loss": 0.12345, "train/samples_per_second": 9.0},
    "samples_per_second": 12345.6,
    "updated": 100.0,
}


def test_line_for_a_status() -> None:
    assert describe(STATUS, left=75.0) == (
        "step 120/400  1:15 left  12,346 samples/s  epoch 3  train/loss 0.1235  eval/accuracy 0.95  train/grad_norm 1"
    )


@pytest.mark.parametrize(
    ("status", "doing", "line"),
    [
        ({"state": "setup", "step": 0, "steps": None}, None, "setup  step 0"),
        ({"state": "setup", "step": 0}, "building the model", "building the model"),
        ({"state": "training", "step": 5, "steps": 10}, "evaluating 4/10", "evaluating 4/10  step 5/10"),
        ({}, None, "starting  step 0"),
        ({"state": "training", "step": 1, "metrics": {"train/loss": "nan"}}, None, "step 1  train/loss nan"),
    ],
)
def test_whatever_is_missing_is_left_out(status: dict[str, object], doing: str | None, line: str) -> None:
    assert describe(status, doing) == line


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the display sees."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_an_interval_apart_and_at_the_end(
    capsys: pytest.CaptureFixture[str], now: list[float]
) -> None:
    line = Line(5.0)
    for step in range(13):
        now[0] = float(step)
        line.show({"state": "training", "step": step, "steps": 100})
    line.close()
    line.close()
    shown = capsys.readouterr().err.splitlines()
    assert [text.split("/")[0] for text in shown] == ["step 1", "step 6", "step 11", "step 12"]


def test_plain_lines_tell_once_of_what_takes_a_second(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    line, status = Line(5.0), {"state": "training", "step": 3, "steps": 9}
    for tenth, doing in enumerate(
        ["starting 2 workers"] * 15 + ["setting up"] * 5 + [None] * 3 + ["evaluating 1/9"] * 40
    ):
        now[0] = tenth / 10
        line.show(status if doing is None or "eval" in doing else {}, doing)
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["starting 2 workers", "step 3/9", "evaluating 1/9  step 3/9"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns as stderr; a fixture would be too early, because capturing begins after it."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def shown(terminal: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_live_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    live = Live()
    live.show(STATUS)
    sys.stderr.write("above the line\n")
    live.show({**STATUS, "step": 400, "steps": None})
    live.close()
    assert "step 400" in shown(terminal)
    assert "above the line" in shown(terminal)
    assert sys.stderr is terminal


def test_live_line_shows_step_time_and_rate_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    live = Live()
    live.show({**STATUS, "step": 12_000, "steps": 40_000}, "evaluating 12/456", left=86_399.0)
    live._live.refresh()
    (last,) = [line for line in re.split(r"[\r\n]+", shown(terminal)) if "step" in line][-1:]
    assert "evaluating 12/456  step 12000/40000  23:59:59 left  12,346 samples/s" in last
    assert len(last) <= 80
    live.close()


def test_live_line_ends_without_what_was_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    live = Live()
    live.show(STATUS, "ending", left=0.0)
    live._live.refresh()
    live.close()
    last = [line for line in re.split(r"[\r\n]+", shown(terminal)) if "step" in line][-1]
    assert last.strip(" ━╸╺").startswith("step 120/400  12,346 samples/s")


@pytest.mark.parametrize("status", [{}, {"state": "failed", "step": 0}])
def test_nothing_is_left_of_a_run_without_a_step(
    status: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line(5.0)
    line.show(status, "starting 1 worker")
    line.close()
    assert capsys.readouterr().err == ""
    terminal = terminal_of(monkeypatch)
    live = Live()
    live.show(status, "starting 1 worker")
    live._live.refresh()
    live.close()
    assert "\x1b[2K" in terminal.getvalue().rpartition("starting 1")[2]  # the line is erased
