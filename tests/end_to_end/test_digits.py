"""The first thing that anybody does with trainrun."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from trainrun.rundir import process
from trainrun.rundir.files import read_json, read_lines

Start = Callable[..., Any]


def test_two_workers_learn_digits(start: Start) -> None:
    client = start("-o", "train.steps=60", "-o", "train.log_every=10", "-o", "evaluate.every=30")
    assert client.wait(120) == 0, client.text
    paths = client.paths
    assert process.members(paths.root) == []
    assert "finished: 60/60 steps" in client.text
    assert "best: eval/accuracy" in client.text
    assert f"details: trainrun why {paths.run_id}" in client.text
    status = read_json(paths.status) or {}
    assert (status["state"], status["step"], status["steps"]) == ("finished", 60, 60)
    assert any(row["instance"] == "task" and row["calls"] for row in status["cost"])
    records = read_lines(paths.metrics)[0]
    assert [record["step"] for record in records if "train/loss" in record] == [10, 20, 30, 40, 50, 60]
    assert [record["step"] for record in records if "eval/accuracy" in record] == [30, 60]
    assert all(client.worker(rank)["phase"] == "finished" for rank in (0, 1))


def test_live_line_on_a_terminal(start: Start) -> None:
    os.environ.setdefault("TERM", "xterm")
    client = start("-o", "train.steps=20", terminal=True)
    assert client.wait(120) == 0, client.text
    assert "\x1b[" in client.text
    assert "step 20/20" in client.text


def test_json_answer(start: Start) -> None:
    client = start("-o", "train.steps=1", "-o", "launch.workers=1", "--json", "--quiet")
    assert client.wait(120) == 0, client.text
    answer = json.loads(client.text)
    assert (answer["version"], answer["state"], answer["exit_code"], answer["step"]) == (1, "finished", 0, 1)
