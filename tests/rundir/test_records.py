from __future__ import annotations

import json

from trainrun.rundir import Failure, Outcome, Stop, WorkerRecord


def test_outcome_round_trip() -> None:
    failure = Failure(rank=1, message="rank 1 was killed by SIGKILL", kind="signal", signal="SIGKILL", step=7)
    outcome = Outcome("failed", 1, "why", step=7, first_failure=failure, metrics={"eval/loss": 0.5}, run="runs/x")
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    assert not outcome.ok
    assert Outcome("stopped", 0, "a vote").ok


def test_worker_record_round_trip() -> None:
    record = WorkerRecord(
        pid=1, pgid=2, start_time=3, rank=0, phase="finished", step=9, stop=Stop("flat", "es", "request")
    )
    assert WorkerRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_records_of_a_newer_version_are_read() -> None:
    data = {**Outcome("finished", 0, "done").to_json(), "colour": "green"}
    assert Outcome.from_json(data) == Outcome("finished", 0, "done")
