"""Workers that run and do nothing: found from outside, with stacks, and the plugin that they sit in is named."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_json
from trainrun.rundir.pulse import read_pulse

OTHERS = "rank 0 waits in backward of plugin providers at step 3"


def hang(project: Any, plugin: str, **settings: object) -> Any:
    """Launch with a plugin that strikes rank 1 at step 3."""
    given = {
        f"plugins.{plugin}.use": f"hanging_plugins:{plugin.capitalize()}",
        "launch__timeout": 2,
        "launch__max_restarts": 0,
        **settings,
    }
    return project.launch(plugin, **given)


@pytest.mark.parametrize(
    ("plugin", "where"),
    [
        ("sleepy", "rank 1 sits in on_step_start of plugin sleepy at step 3"),
        pytest.param("spinning", "rank 1 sits in on_step_start of plugin spinning at step 3", marks=pytest.mark.long),
        pytest.param("holding", "rank 1 sits in on_step_start of plugin holding at step 3", marks=pytest.mark.long),
        pytest.param(
            "stopped", "rank 1 is stopped in on_step_start of plugin stopped at step 3", marks=pytest.mark.long
        ),
    ],
)
def test_a_hang_is_found_and_explained(project: Any, plugin: str, where: str) -> None:
    ended = hang(project, plugin)
    assert ended.code == 1
    assert ended.verdict == f"failed: no rank advanced for 2 s: {where}; {OTHERS}; stacks: attempts/1/stacks-*.txt"
    failure = ended.outcome["first_failure"]
    assert (failure["kind"], failure["rank"], failure["step"]) == ("hang", 1, 3)
    assert (failure["instance"], failure["hook"]) == (plugin, "on_step_start")
    paths = RunPaths(ended.run)
    assert failure["log"] == str(paths.stacks(1, 1))
    assert "in strike" in paths.stacks(1, 1).read_text()
    assert "in backward" in paths.stacks(1, 0).read_text()


def test_a_rank_that_waits_for_data_is_told_so(project: Any) -> None:
    ended = project.launch(task__loading="sleeps", data__workers=1, data__shuffle="false", launch__timeout=2)
    assert ended.code == 1
    assert ended.verdict.startswith("failed: no rank advanced for 2 s: rank 1 waits for data in training at step 1; ")


def test_what_a_dataset_raises_in_its_process_ends_the_run_at_once(project: Any) -> None:
    ended = project.launch(task__loading="raises", data__workers=1, data__shuffle="false", launch__timeout=600)
    assert ended.code == 1
    assert (
        "micro-batch 1 after 0 samples of the epoch, dataset indices 4, 5, 6, 7): Lost: 'sample seven is lost'"
        in ended.verdict
    )


@pytest.mark.long
@pytest.mark.parametrize("start", ["warm", "cold"])
def test_a_hang_uses_up_a_restart(project: Any, start: str) -> None:
    ended = hang(project, "sleepy", launch__max_restarts=1, launch__start=start)
    assert ended.code == 1
    assert ended.stderr.count("no rank advanced for 2 s") >= 2
    assert (ended.run / "attempts/2/stacks-1.txt").stat().st_size > 0


@pytest.mark.parametrize(
    ("plugin", "trace"), [pytest.param("killer", False, marks=pytest.mark.long), ("crashing", True)]
)
def test_who_dies_in_a_hook_names_the_plugin(project: Any, plugin: str, trace: bool) -> None:
    ended = hang(project, plugin, launch__timeout=600)
    assert ended.code == 1
    assert ended.verdict.startswith("failed: rank 1 ")
    assert ended.verdict.endswith(f" at step 3 in on_step_start of plugin {plugin}")
    assert ("Segmentation fault" in (ended.run / "logs/rank-1.out").read_text(errors="replace")) is trace


@pytest.mark.long
def test_a_worker_that_cannot_stop_says_where_it_sits(project: Any, wait_for: Any) -> None:
    """Told to stop by somebody else than the client, while the main thread is in a plugin."""
    settings = [
        "launch.timeout=600",
        "launch.max_preemptions=0",
        "launch.grace=0.1",
        "plugins.sleepy.use=hanging_plugins:Sleepy",
    ]
    command = project.start("launch", "train.toml", *(part for key in settings for part in ("-o", key)))
    try:
        record = sleeping(project, wait_for)
        os.kill(record["pid"], signal.SIGTERM)
    finally:
        ended = project.finish(command)
    assert ended.code == 143
    assert ended.verdict == (
        "terminated: rank 1 failed at step 3: it did not stop in time, and was still in on_step_start of plugin sleepy"
        " at step 3"
    )


def sleeping(project: Any, wait_for: Any) -> dict[str, Any]:
    """The record of rank 1 when it sits in the plugin."""

    def sits() -> bool:
        run = project.folder / "runs/latest"
        beat = read_pulse(RunPaths(run).pulse(1, 1))
        return beat is not None and beat.instance == "sleepy"

    wait_for(sits)
    found = read_json(RunPaths(project.folder / "runs/latest").worker_record(1, 1))
    assert found is not None
    return found
