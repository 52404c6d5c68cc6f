from __future__ import annotations

import io
import sys

import pytest

from trainrun.builtin import display
from trainrun.builtin.display import Line, Live, Rate, describe

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
    assert describe(STATUS, 75.0) == (
        "step 120/400  epoch 3  train/loss 0.1235  eval/accuracy 0.95  train/grad_norm 1  12,346 samples/s  1:15 left"
    )


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({"state": "setup", "step": 0, "steps": None}, "setup  step 0"),
        ({"state": "evaluation", "step": 5, "steps": 10}, "evaluation  step 5/10"),
        ({}, "starting  step 0"),
        ({"state": "training", "step": 1, "metrics": {"train/loss": "nan"}}, "step 1  train/loss nan"),
    ],
)
def test_whatever_is_missing_is_left_out(status: dict[str, object], line: str) -> None:
    assert describe(status) == line


def test_time_left_needs_two_looks() -> None:
    rate = Rate()
    assert rate.seconds_left({"step": 10, "steps": 100, "updated": 5.0}) is None
    assert rate.seconds_left({"step": 20, "steps": 100, "updated": 6.0}) == 8.0
    assert rate.seconds_left({"step": 20, "updated": 6.0}) is None


def test_plain_lines_come_an_interval_apart_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    line = Line(5.0)
    for step in range(13):
        now[0] = float(step)
        line.show({"state": "training", "step": step, "steps": 100})
    line.close()
    line.close()
    shown = capsys.readouterr().err.splitlines()
    assert [text.split("/")[0] for text in shown] == ["step 1", "step 6", "step 11", "step 12"]


def test_live_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    live = Live()
    live.show(STATUS)
    sys.stderr.write("above the line\n")
    live.show({**STATUS, "step": 400, "steps": None})
    live.close()
    assert "step 120/400" in terminal.getvalue()
    assert "step 400" in terminal.getvalue()
    assert "above the line" in terminal.getvalue()
    assert sys.stderr is terminal
