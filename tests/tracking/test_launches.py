"""Real launches: outages, dead workers and clients, and `trainrun sync`."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun import Recipe
from trainrun.cli.main import run as command
from trainrun.plugin.inspecting import describe_object
from trainrun.plugin.targets import load
from trainrun.rundir.files import read_lines
from trainrun.rundir.paths import RunPaths
from trainrun.testing import LaunchRecipe
from trainrun.tracking import TrackerPlugin

HERE = Path(__file__).parent
RECIPE = """
task = {{ use = "digits", channels = 2, hidden = 8 }}
train = {{ steps = 12, batch_size = 16, log_every = 1 }}
evaluate = {{ every = 4, batch_size = 359 }}
checkpoint = {{ every = 2, background = false }}

[plugins.to-file]
use = "{here}/file_tracker.py:ToFile"
folder = "{folder}"
interval = 0.1

[plugins.chaos]
use = "{here}/chaos.py:Chaos"
folder = "{folder}"
"""

STEPS = [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]  # each evaluation is a record of its own


@pytest.fixture
def recipe(server: Any) -> str:
    return RECIPE.format(here=HERE, folder=server.folder)


def sync(paths: RunPaths, *options: str) -> int:
    return command(["sync", paths.run_id, "--dir", str(paths.root.parent), *options])


@pytest.mark.long
def test_training_goes_on_while_a_tracker_never_comes_back(
    launch_recipe: LaunchRecipe, recipe: str, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.set("down")
    result = launch_recipe(recipe)
    assert (result.outcome.state, len(result.metrics)) == ("finished", 15)
    told = [event["event"] for event in result.events if event["event"] in {"tracker_outage", "tracker_back"}]
    assert told == ["tracker_outage"]
    (warning,) = [event["reason"] for event in result.events if event["event"] == "warning"]
    assert warning.startswith("to-file: 15 of 15 records could not be sent (ConnectionError: the server is down)")
    assert warning.endswith(f"; trainrun sync {result.paths.run_id} sends the rest")

    assert sync(result.paths, "--timeout", "0.5") == 4
    assert "to-file: not everything could be sent" in capsys.readouterr().err
    server.set("down", on=False)
    assert sync(result.paths) == 0
    assert server.steps == STEPS
    assert server.lines("ended")[0]["state"] == "finished"
    capsys.readouterr()
    assert sync(result.paths, "--json") == 0  # nothing is left, so nothing is started
    (answer,) = json.loads(capsys.readouterr().out)["trackers"]
    assert (answer["name"], answer["sent"], answer["left"], answer["complete"]) == ("to-file", 15, 0, True)
    assert len(server.lines("opened")) == 1
    assert sync(result.paths, "--tracker", "other") == 2
    assert "has these trackers: to-file" in capsys.readouterr().err


def test_an_outage_midway_and_a_dead_worker_lose_nothing_and_double_nothing(
    launch_recipe: LaunchRecipe, recipe: str, server: Any
) -> None:
    chaos = ["plugins.chaos.down=3", "plugins.chaos.kill=7", "plugins.chaos.up=9"]
    result = launch_recipe(recipe, overrides=[*chaos, "launch.max_restarts=1"])
    assert (result.outcome.state, result.outcome.attempt) == ("finished", 2)
    assert server.steps == STEPS
    told = [event["event"] for event in result.events if event["event"] in {"tracker_outage", "tracker_back"}]
    assert told in (["tracker_outage", "tracker_back"], [])  # the outage may be over before anything was due
    assert [line["state"] for line in server.lines("ended")] == ["finished"]
    assert len(server.lines("opened")) <= 2


@pytest.mark.long
def test_a_killed_client_and_a_resume_go_on_with_the_same_curve(
    recipe: str, server: Any, tmp_path: Path, until: Callable[..., None]
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe)
    trainrun = [sys.executable, "-m", "trainrun"]
    settings = ["-o", "launch.workers=1", "-o", "train.device=cpu"]
    launch = [*trainrun, "launch", str(path), *settings, "-o", "plugins.chaos.kill_client=7", "--dir", "runs"]
    client = subprocess.Popen(launch, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (server.folder / "client").write_text(str(client.pid))
    assert client.wait(120) == -9
    until(lambda: len(server.steps) >= 8)
    resume = [*trainrun, "resume", "latest", "--dir", "runs", "-q"]
    assert subprocess.run(resume, cwd=tmp_path, check=False, timeout=120, capture_output=True).returncode == 0
    assert server.steps == STEPS
    assert [line["resumed"] for line in server.lines("opened")] == [False, True]
    assert [line["state"] for line in server.lines("ended")] == ["finished"]


@pytest.mark.long
def test_a_failed_run_says_so_and_a_tracker_that_hangs_costs_only_its_deadline(
    launch_recipe: LaunchRecipe, recipe: str, server: Any
) -> None:
    bad = ["train.nonfinite=fail", "optimizer.lr=1e30"]
    result = launch_recipe(recipe, overrides=bad)
    assert result.outcome.state == "failed"
    assert server.lines("ended")[0]["state"] == "failed"
    assert server.lines("ended")[0]["metrics"].keys() >= {"train/loss"}
    server.set("hangs")
    result = launch_recipe(recipe, overrides=["plugins.to-file.deadline=0.5"])
    assert result.outcome.state == "finished"
    assert read_lines(result.paths.events)[0][-2]["reason"].endswith("sends the rest")


def test_workers_know_nothing_of_a_tracker() -> None:
    target = f"{HERE}/file_tracker.py:ToFile"
    description = describe_object(target, load(target))
    assert {impl.hook for impl in description.impls} == {
        "check_recipe",
        "on_completed",
        "on_launch_start",
        "on_launch_end",
    }


def veto(recipe: str) -> str:
    data = tomllib.loads(recipe)
    plugin = load(data["plugins"]["to-file"]["use"])
    table = {key: value for key, value in data["plugins"]["to-file"].items() if key != "use"}
    return "; ".join(plugin(plugin.Options.from_table(table)).check_recipe(Recipe.from_data(data)))


def test_two_instances_may_not_write_to_one_place(recipe: str, server: Any) -> None:
    again = f'[plugins.again]\nuse = "{HERE}/file_tracker.py:ToFile"\nfolder = "{server.folder}"\n'
    assert veto(recipe) == ""
    assert veto(recipe + again).startswith("to-file and again would both write to the folder")
    assert veto(recipe + again + "enabled = false") == ""
    assert veto(recipe + again.replace("server", "elsewhere")) == ""


def test_the_metrics_plugin_must_be_on(recipe: str) -> None:
    assert "built-in plugin metrics writes, and that is turned off" in veto(
        recipe + "[plugins.metrics]\nenabled = false"
    )


def test_a_missing_package_is_told_with_what_brings_it(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrackerPlugin, "needs", {"no_such_package": "no-such-distribution"})
    assert veto(recipe) == "the package no_such_package is not installed; pip install no-such-distribution"
