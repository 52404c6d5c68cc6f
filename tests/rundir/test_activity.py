"""What is said of an attempt while it runs, and how long it will take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import RunPaths
from trainrun.rundir.activity import activity, seconds_left
from trainrun.rundir.files import append_line
from trainrun.rundir.pulse import Pulse


@pytest.fixture
def pulse() -> Pulse:
    return Pulse()


def say(tmp_path: Path, pulse: Pulse | None) -> str | None:
    return activity(RunPaths(tmp_path), 1, 2, None if pulse is None else pulse.read())


def test_from_the_start_to_the_end(tmp_path: Path, pulse: Pulse) -> None:
    assert say(tmp_path, None) == "starting 2 workers"
    assert activity(RunPaths(tmp_path), 1, 1, None) == "starting 1 worker"
    assert say(tmp_path, pulse) == "starting 2 workers"
    pulse.enter("setup")
    assert say(tmp_path, pulse) == "setting up"
    pulse.slots[4] = pulse.crumb("task", "build_model")
    assert say(tmp_path, pulse) == "building the model"
    pulse.slots[4] = 0
    pulse.enter("training")
    assert say(tmp_path, pulse) == "loading the first batch"
    pulse.begin_step(1)
    pulse.end_step()
    assert say(tmp_path, pulse) is None
    pulse.enter("evaluation")
    pulse.count(4, 10)
    assert say(tmp_path, pulse) == "evaluating 4/10"
    pulse.count(4, 0)
    assert say(tmp_path, pulse) == "evaluating"
    pulse.enter("saving")
    assert say(tmp_path, pulse) == "saving step 1"
    pulse.enter("ending")
    assert say(tmp_path, pulse) == "ending"


def test_a_stop_that_was_asked_for(tmp_path: Path, pulse: Pulse) -> None:
    pulse.enter("training")
    requests = RunPaths(tmp_path).requests(1)
    requests.parent.mkdir(parents=True)
    append_line(requests, {"request": "checkpoint"})
    assert say(tmp_path, pulse) == "loading the first batch"
    append_line(requests, {"request": "stop"})
    assert say(tmp_path, pulse) == "stopping"


CLOCK = {"steps": 30, "training": 3.0, "evaluations": 1, "evaluation": 10.0, "evaluate_every": 30}


@pytest.mark.parametrize(
    ("status", "left"),
    [
        ({"step": 30, "steps": 60, "clock": CLOCK}, 3.0 + 10.0),
        ({"step": 530, "steps": 560, "clock": CLOCK}, 3.0 + 10.0 * 2),  # after a resume: 540 and the end
        ({"step": 30, "steps": 60, "clock": {**CLOCK, "evaluate_every": None}}, 3.0 + 10.0),
        ({"step": 30, "steps": 90, "clock": {**CLOCK, "evaluate_every": "epoch"}}, 6.0 + 20.0),
        ({"step": 30, "steps": 60, "clock": {**CLOCK, "evaluations": 0, "evaluation": 0.0}}, 3.0),
        ({"step": 60, "steps": 60, "clock": CLOCK}, 0.0),
        ({"step": 30, "steps": 60, "clock": {**CLOCK, "steps": 0}}, None),
        ({"step": 30, "steps": None, "clock": CLOCK}, None),
        ({"step": 30, "steps": 60}, None),
        ({"step": 30, "steps": 60, "clock": CLOCK, "state": "training"}, 3.0 + 10.0),
        ({"step": 30, "steps": 60, "clock": CLOCK, "state": "failed"}, None),
        ({"step": 30, "steps": 60, "clock": CLOCK, "state": "stopped"}, None),
    ],
)
def test_time_left(status: dict[str, Any], left: float | None) -> None:
    assert seconds_left(status) == (left if left is None else pytest.approx(left))


def test_time_left_counts_down_within_an_evaluation_and_knows_how_far_it_is(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse.begin_step(30)
    pulse.enter("evaluation")
    pulse.count(4, 10)
    beat = pulse.read()
    monkeypatch.setattr("trainrun.rundir.activity.time.monotonic_ns", lambda: beat.moved_ns + 4_000_000_000)
    first = {"step": 30, "steps": 60, "clock": {**CLOCK, "evaluations": 0, "evaluation": 0.0}}
    assert seconds_left(first, beat) == pytest.approx(3.0 + 10.0 + 6.0)
    assert seconds_left({**first, "clock": CLOCK}, beat) == pytest.approx(3.0 + 10.0 + 6.0)
