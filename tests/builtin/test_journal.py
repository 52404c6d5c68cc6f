from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainrun.builtin.journal import Journal
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.files import read_lines


def test_every_phase_is_a_line(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.logs.mkdir()
    launch: Any = SimpleNamespace(paths=paths, workers=2)
    journal, outcome = Journal(), Outcome("failed", 1, "why")
    journal.on_launch_start(launch)
    journal.on_package_start(launch)
    journal.on_package_end(launch, "source")
    journal.on_attempt_start(launch, 1)
    journal.on_attempt_end(launch, 1, outcome)
    journal.on_completed(launch, outcome, "client")
    journal.on_completed(None, outcome, "worker")
    journal.on_launch_end(launch, outcome)
    lines = read_lines(paths.client_log)[0]
    assert [line["event"] for line in lines] == [
        "launch_start",
        "package_start",
        "package_end",
        "attempt_start",
        "attempt_end",
        "completed",
        "launch_end",
    ]
    assert (lines[-1]["state"], lines[-1]["exit_code"], lines[-1]["reason"]) == ("failed", 1, "why")
