"""Online, against a stand-in for W&B's server (`stand_in.py`): W&B's own client and process are the real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

USE = "trainrun_wandb:Wandb"
ONLINE = {"system": False, "timeout": 2.0, "project": "p"}


def steps(stand_in: Any) -> list[int]:
    return [stand_in.rows[place]["_step"] for place in sorted(stand_in.rows)]


def of_run(root: Path) -> list[int]:
    """The processes that have been started for a run, by their working files."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                links = [str(one.readlink()) for one in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(link.startswith(str(root)) for link in links) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def test_a_server_that_is_down_at_first_gets_everything(make_run: Any, stand_in: Any, until: Any) -> None:
    run = make_run(USE, **ONLINE)
    run.log(1, 2)
    run.start()
    until(lambda: run.events == ["tracker_outage"])
    stand_in.start()
    until(lambda: run.cursor.step == 1)
    run.log(3)
    assert run.end().complete
    assert run.events == ["tracker_outage", "tracker_back"]
    assert steps(stand_in) == [1, 2, 3]
    assert stand_in.exit_code == 0
    assert stand_in.summary["outcome"] == "finished"


def test_a_resume_goes_on_in_the_same_run(make_run: Any, stand_in: Any) -> None:
    stand_in.start()
    run = make_run(USE, **ONLINE)
    run.log(1, 2)
    run.start()
    assert run.end("failed", 1).complete
    assert (stand_in.exit_code, stand_in.summary["outcome"]) == (1, "failed")
    run.log(2, **{"eval/accuracy": 0.5})
    run.log(4, 5)
    run.start(resumed=True)
    assert run.end().complete
    assert steps(stand_in) == [1, 2, 3, 4, 5]  # the late evaluation has a row of its own
    assert stand_in.rows[2]["eval/accuracy"] == 0.5
    assert stand_in.summary["outcome"] == "finished"


def test_what_its_own_process_has_lost_is_sent_once_more(make_run: Any, stand_in: Any, until: Any) -> None:
    """The server goes while the run goes on, and is away when it ends."""
    stand_in.start()
    run = make_run(USE, **ONLINE)
    run.log(1, 2, 3)
    run.start(deadline=3.0)
    until(lambda: steps(stand_in) == [1, 2])
    stand_in.stop()
    run.log(4, 5, 6)
    until(lambda: run.cursor.step == 5)
    delivery = run.end()
    assert str(delivery) == "how the run ended could not be sent (there was no response in time)"
    until(lambda: of_run(run.paths.root) == [])
    stand_in.start()
    run.start()
    assert run.end().complete
    assert steps(stand_in) == [1, 2, 3, 4, 5, 6]
    assert stand_in.summary["outcome"] == "finished"
