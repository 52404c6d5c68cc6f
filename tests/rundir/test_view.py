from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import Lease, RunPaths, WorkerRecord, create
from trainrun.rundir.files import append_line, write_json
from trainrun.rundir.pulse import Pulse
from trainrun.rundir.view import Viewer, tell, workers


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    made = create(tmp_path, "view")
    made.attempt(1).mkdir()
    return made


def record(paths: RunPaths, rank: int, phase: str, **more: Any) -> None:
    values = WorkerRecord(1, 1, 1, rank, phase, step=3, instance="slow", hook="on_log").to_json()
    write_json(paths.worker_record(1, rank), {**values, **more})


def test_pulse_is_newer_than_the_record(paths: RunPaths) -> None:
    record(paths, 0, "setup")
    pulse = Pulse.create(paths.pulse(1, 0))
    pulse.enter("training")
    pulse.begin_step(7)
    pulse.slots[4] = pulse.crumb("fast", "on_step_start")
    lease = Lease.acquire(paths)
    (one,) = workers(paths, live=True)
    assert (one.phase, one.step, one.doing) == ("training", 7, "in on_step_start of fast")
    assert one.quiet is not None
    assert 0 <= one.quiet < 60
    pulse.slots[4] = 0
    pulse.pause()
    assert workers(paths, live=True)[0].doing == "with the other ranks"
    lease.release()
    assert workers(paths, live=False)[0].quiet is None


def test_record_has_the_last_word(paths: RunPaths) -> None:
    Pulse.create(paths.pulse(1, 0)).begin_step(7)
    record(paths, 0, "failed", error={"type": "ValueError", "message": "one\ntwo"})
    (one,) = workers(paths, live=True)
    assert (one.phase, one.step, one.doing, one.quiet) == ("failed", 7, "ValueError: one", None)


def test_of_a_dead_run_the_record_tells_where_it_was(paths: RunPaths) -> None:
    record(paths, 0, "training")
    (one,) = workers(paths, live=False)
    assert (one.phase, one.doing) == ("training", "in on_log of slow")


def test_ranks_of_the_newest_attempt(paths: RunPaths) -> None:
    for rank in (0, 2, 10):
        record(paths, rank, "training")
    for name in ("pulse-3", "pulse-x", "stacks-1.txt", "rank-1.pipe", "exits.json"):
        (paths.attempt(1) / name).touch()
    assert [one.rank for one in workers(paths, live=True)] == [0, 2, 3, 10]
    paths.attempt(2).mkdir()
    assert workers(paths, live=True) == []


def test_only_new_events_are_read(paths: RunPaths) -> None:
    viewer = Viewer(paths)
    assert viewer.look().events == []
    append_line(paths.events, {"event": "attempt_start", "time": 1.0, "attempt": 1, "workers": 2})
    assert len(viewer.look().events) == 1
    for step in range(300):
        append_line(paths.events, {"event": "decision", "step": step})
    seen = viewer.look()
    assert [event["step"] for event in seen.events[-2:]] == [298, 299]
    assert len(seen.events) == 200
    assert [attempt.number for attempt in seen.attempts] == [1], "also when its event is long past"


EVENTS = [
    (
        {"event": "decision", "step": 4, "decision": "stop", "plugin": "early-stopping", "reason": "flat\nmore"},
        "step 4: stop by early-stopping: flat",
    ),
    (
        {"event": "fault", "plugin": "slow", "hook": "on_log", "action": "disable", "reason": "ValueError: x"},
        "plugin slow failed in on_log (disable): ValueError: x",
    ),
    ({"event": "attempt_start", "attempt": 2, "workers": 4}, "attempt 2 with 4 workers"),
    ({"event": "attempt_end", "attempt": 2, "state": "failed", "reason": "x"}, "attempt 2 failed: x"),
    ({"event": "restart", "reason": "x", "why": "restart 1 of 3"}, "starting again: restart 1 of 3"),
    (
        {"event": "lease_takeover", "former": "process 7 on a", "reason": "it died"},
        "taken over from process 7 on a: it died",
    ),
    ({"event": "request_refused", "file": "f", "reason": "it is no JSON"}, "f was refused: it is no JSON"),
    ({"event": "outcome", "state": "finished", "reason": "all done"}, "finished: all done"),
    ({"event": "warning", "step": 3, "reason": "loss is nan"}, "warning step 3 - loss is nan"),
    ({"event": "straggler", "rank": 3, "reason": "rank 3 is slow"}, "rank 3 is slow"),
    ({"event": "some_thing", "rank": 0}, "some thing rank 0"),
    (
        {"event": "resume", "attempt": 2, "step": 5, "checkpoint": "/r/checkpoints/step-000005"},
        "attempt 2 resumes from step 5 (step-000005)",
    ),
    (
        {"event": "quarantine", "checkpoint": "/r/checkpoints/bad-step-000005", "reasons": ["'a' is missing", "b"]},
        "bad-step-000005 is damaged and was skipped: 'a' is missing",
    ),
    (
        {"event": "set_aside", "checkpoint": "/r/checkpoints/superseded-step-000005"},
        "superseded-step-000005 was moved aside",
    ),
    (
        {"event": "trusted", "checkpoint": "/c", "reasons": ["it belongs to user 7"]},
        "/c was trusted, though it belongs to user 7",
    ),
    ({"event": "trusted", "checkpoint": "/c"}, "/c was trusted, though no reason is recorded"),
    ({}, "None"),
]


@pytest.mark.parametrize(("event", "text"), EVENTS, ids=[text for _, text in EVENTS])
def test_events_in_one_line(event: dict[str, Any], text: str) -> None:
    assert tell(event) == text
