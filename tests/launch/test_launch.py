from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tomli

from trainrun.errors import EnvironmentProblem, ExitCode, RecipeError, TrainrunError, UsageError
from trainrun.launch import busy
from trainrun.launch import launch as module
from trainrun.launch.launch import launch
from trainrun.plugin.targets import load
from trainrun.recipe import Recipe
from trainrun.rundir import Outcome, RunPaths, held
from trainrun.rundir.files import read_json, read_lines
from trainrun.rundir.process import members

PLUGINS = Path(__file__).with_name("client_plugins.py")

Run = Callable[..., Outcome]


@pytest.fixture
def run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Launch the recipe with fake workers that do as `plan` says."""

    def go(plan: dict[str, str] | None = None, *overrides: str, quiet: bool = False) -> Outcome:
        monkeypatch.setenv("FAKE", json.dumps(plan or {}))
        workers = 2 if plan and "1" in plan else 1
        outcome = launch(recipe, [f"launch.workers={workers}", *overrides], quiet=quiet)
        assert members(Path(outcome.run)) == []
        assert held(RunPaths(Path(outcome.run))) is None
        return outcome

    return go


def recorder(tmp_path: Path, kind: str = "Recorder", **options: object) -> list[str]:
    table = {"use": f"{PLUGINS}:{kind}", "log": str(tmp_path / "log"), **options}
    return [f"plugins.recorder.{key}={json.dumps(value)}" for key, value in table.items()]


def seen(tmp_path: Path) -> list[dict[str, Any]]:
    return read_lines(tmp_path / "log")[0]


def test_run_directory_tells_the_whole_story(run: Run, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run()
    paths = RunPaths(Path(outcome.run))
    assert (outcome.state, outcome.exit_code, outcome.attempt) == ("finished", 0, 1)
    assert Outcome.from_json(read_json(paths.outcome) or {}) == outcome
    manifest = read_json(paths.manifest)
    assert manifest is not None
    assert [one["name"] for one in manifest["instances"]][-1] == "fake"
    assert manifest["environment"]["OMP_NUM_THREADS"]
    assert manifest["versions"]["torch"]
    assert manifest["workers"] == 1
    assert "steps = 10" in paths.recipe.read_text()
    events = [event["event"] for event in read_lines(paths.events)[0]]
    assert events == ["attempt_start", "attempt_end", "outcome"]
    journal = [event["event"] for event in read_lines(paths.client_log)[0]]
    assert journal[0] == "launch_start"
    assert journal[-1] == "launch_end"
    assert {path.name for path in paths.source.rglob("*.py")} >= {"fake_backend.py"}
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "[rank 0] hello from rank 0" in shown.err
    assert "[rank 1]" not in shown.err
    assert "plugins: fake" in shown.err
    assert "step 3/10" in shown.err
    assert "\x1b" not in shown.err


def test_output_of_all_ranks(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(recipe, ranks="all")
    assert "[rank 1] hello from rank 1" in capsys.readouterr().err


def test_quiet_is_quiet(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(quiet=True).ok
    assert capsys.readouterr().err == ""


def test_first_failure_is_the_cause(run: Run) -> None:
    outcome = run({"0": "late:1", "1": "raise:the cause"})
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert outcome.reason == "rank 1 raised ValueError at step 3: the cause"
    assert outcome.first_failure is not None
    assert outcome.first_failure.traceback is not None
    assert "Traceback of rank 1" in outcome.first_failure.traceback


def test_killed_worker_is_the_cause_and_not_its_peers_error(run: Run) -> None:
    outcome = run({"0": "late:1", "1": "kill:9"})
    assert outcome.reason == "rank 1 was killed by SIGKILL at step 3"


def test_vote(run: Run) -> None:
    outcome = run({"0": "vote", "1": "vote"})
    assert (outcome.state, outcome.exit_code) == ("stopped", 0)


def test_nothing_is_created_for_a_wrong_recipe(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        run({}, "train.stepz=3")
    assert not (tmp_path / "runs").exists()


def test_missing_backend(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="plugin 'fake' is not installed"):
        run({}, "plugins.fake.enabled=false")
    assert not (tmp_path / "runs").exists()


def test_backend_that_does_not_answer(run: Run, tmp_path: Path) -> None:
    outcome = run({}, "launch.backend=recorder", *recorder(tmp_path))
    assert outcome.exit_code == ExitCode.ENVIRONMENT
    assert "no enabled plugin starts workers for 'recorder'" in outcome.reason


def test_cuda_without_a_gpu(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EnvironmentProblem, match="no NVIDIA GPU"):
        run({}, "train.device=cuda", "launch.backend=local")
    assert not (tmp_path / "runs").exists()


def test_client_hooks_fire_in_order(run: Run, tmp_path: Path) -> None:
    outcome = run({}, *recorder(tmp_path))
    assert outcome.ok
    told = seen(tmp_path)
    # `on_status` comes with each status that the client happens to see: its own first one, and those of rank 0.
    assert [hook for hook, _ in groupby(one["hook"] for one in told)] == [
        "check_recipe",
        "on_launch_start",
        "on_package_start",
        "on_package_end",
        "on_attempt_start",
        "on_status",
        "on_attempt_end",
        "on_completed",
        "on_launch_end",
    ]
    by_hook = {one["hook"]: one for one in told}
    assert {one["pid"] for one in told} == {os.getpid()}
    assert by_hook["on_launch_start"]["frozen"]
    assert by_hook["on_status"]["step"] == 3
    assert by_hook["on_completed"]["locus"] == "client"
    assert by_hook["on_launch_end"]["written"]
    assert "client_plugins.py" in by_hook["on_package_end"]["files"]


def test_ending_hooks_fire_after_a_failure(run: Run, tmp_path: Path) -> None:
    run({"0": "raise:no"}, *recorder(tmp_path))
    ends = {one["hook"]: one["state"] for one in seen(tmp_path) if "state" in one}
    assert ends == {"on_attempt_end": "failed", "on_completed": "failed", "on_launch_end": "failed"}


def test_veto_shows_every_problem_and_creates_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        run({}, "train.steps=13", *recorder(tmp_path))
    assert [problem.what for problem in caught.value.problems] == ["no thirteen", "really not"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("hook", ["on_launch_start", "on_package_start", "on_attempt_start", "on_status"])
def test_plugin_that_raises_fails_the_run(run: Run, tmp_path: Path, hook: str) -> None:
    outcome = run({"0": "hang"}, *recorder(tmp_path, fail_in=hook))
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert f"plugin 'recorder' raised ValueError in {hook}: raised on purpose in {hook}" in outcome.reason
    assert outcome.first_failure is not None
    assert "client_plugins.py" in (outcome.first_failure.traceback or "")
    assert [one["hook"] for one in seen(tmp_path)][-2:] == ["on_completed", "on_launch_end"]


@pytest.mark.parametrize("hook", ["on_attempt_end", "on_completed", "on_launch_end"])
def test_plugin_that_raises_at_the_end_fails_a_good_run(run: Run, tmp_path: Path, hook: str) -> None:
    outcome = run({}, *recorder(tmp_path, fail_in=hook))
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert read_json(RunPaths(Path(outcome.run)).outcome) == outcome.to_json()


def test_ctrl_c_before_the_workers_start(run: Run, tmp_path: Path) -> None:
    outcome = run({}, *recorder(tmp_path, interrupt_in="on_launch_start"))
    assert (outcome.state, outcome.exit_code) == ("interrupted", 130)
    assert outcome.reason == "stopped before the workers were started"
    assert [one["hook"] for one in seen(tmp_path)][-1] == "on_launch_end"


@pytest.mark.parametrize(
    "hook",
    ["check_recipe", "on_package_start", "on_package_end", "on_launch_start", "on_attempt_start", "on_launch_end"],
)
def test_the_command_says_which_plugin_it_waits_for(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    monkeypatch.setattr(busy, "_PLAIN", 0.05)
    outcome = run({}, *recorder(tmp_path, slow_in=hook))
    assert outcome.ok
    assert f"waiting for {hook} of plugin recorder" in capsys.readouterr().err


@pytest.mark.parametrize("hook", ["on_launch_start", "on_status"])
def test_ctrl_c_twice_breaks_into_a_plugin_that_hangs(run: Run, tmp_path: Path, hook: str) -> None:
    outcome = run({"0": "hang"}, *recorder(tmp_path, interrupt_in=hook, presses=2))
    assert (outcome.state, outcome.exit_code) == ("interrupted", 130)
    assert outcome.reason == "stopped at once, because Ctrl-C was pressed again"
    assert [one["hook"] for one in seen(tmp_path)][-1] == "on_launch_end"


def test_plugin_that_raises_at_the_end_does_not_hide_the_cause(run: Run, tmp_path: Path) -> None:
    assert run({"0": "raise:the cause"}, *recorder(tmp_path, fail_in="on_launch_end")).reason.endswith("the cause")


def test_observer_that_raises_is_turned_off_and_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run({}, *recorder(tmp_path, kind="Lasting", fail_in="on_launch_start"))
    assert outcome.ok
    assert [one["hook"] for one in seen(tmp_path)] == ["check_recipe", "on_launch_start"]
    event = next(event for event in read_lines(RunPaths(Path(outcome.run)).events)[0] if event["event"] == "fault")
    assert (event["plugin"], event["hook"], event["action"]) == ("recorder", "on_launch_start", "disable")
    assert "client_plugins.py" in event["traceback"]
    assert "warning: plugin recorder failed in on_launch_start (disable): ValueError" in capsys.readouterr().err


def test_secrets_reach_workers_and_no_file(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "plugins.hush.token=hunter2"
    monkeypatch.setattr(sys, "argv", ["trainrun", "launch", "-o", secret])
    monkeypatch.setattr(module, "prepare", _with_secret(module.prepare))
    outcome = run({}, f"plugins.hush.use={PLUGINS.with_name('fake_backend.py')}:Hush", secret)
    texts = [path.read_bytes() for path in Path(outcome.run).rglob("*") if path.is_file()]
    assert not any(b"hunter2" in text for text in texts)


def _with_secret(prepare: Callable[..., Any]) -> Callable[..., Any]:
    def prepared(recipe: Any, resolved: Any, *rest: Any, **options: Any) -> Any:
        made = prepare(recipe, resolved, *rest, **options)
        assert "hunter2" in made.environment["TRAINRUN_SECRETS"]
        return made

    return prepared


def test_bug_in_trainrun_leaves_a_report_and_an_outcome(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainrun.launch import client

    monkeypatch.setattr(client, "judge", lambda *_, **__: {}["missing"])
    with pytest.raises(TrainrunError, match="a bug in trainrun: KeyError") as caught:
        run()
    assert caught.value.exit_code == ExitCode.BUG
    paths = RunPaths(next((tmp_path / "runs").glob("2*")))
    assert "KeyError" in paths.crash_log.read_text()
    assert (read_json(paths.outcome) or {})["exit_code"] == ExitCode.BUG
    assert members(paths.root) == []


def test_bug_whose_report_cannot_be_written_is_told_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainrun.launch import client

    def remove(launch: Any, *_: object) -> NoReturn:
        shutil.rmtree(launch.paths.root)
        raise KeyError("missing")

    monkeypatch.setattr(client, "judge", remove)
    with pytest.raises(
        TrainrunError, match=r"(?s)a bug in trainrun: KeyError: 'missing'; the report is here.*Traceback"
    ):
        run()


def test_recipe_and_task_made_in_python(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAKE", "{}")
    monkeypatch.chdir(tmp_path)
    data = tomli.loads(recipe.read_text())
    task = load(data["task"].pop("use"))
    first = launch(data, ["train.steps=10"], task=task, quiet=True)
    assert (first.state, first.step) == ("finished", 10)
    frozen = tomli.loads(RunPaths(Path(first.run)).recipe.read_text())
    assert frozen["task"]["use"].endswith("fake_backend.py:Task")
    typed = Recipe.from_data({**data, "task": {"use": frozen["task"]["use"]}})
    assert launch(typed, quiet=True).state == "finished"


@pytest.mark.parametrize(
    ("recipe_made", "message"),
    [
        ({"task": {"use": object()}}, "recipe: TOML cannot hold object"),
        ({"task": {"use": "x"}, "extends": "y"}, "recipe: extends: only a file can extend another"),
        ({"train": {"steps": 1}}, "task: is missing"),
    ],
)
def test_recipe_made_in_python_that_is_wrong(recipe_made: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        launch(recipe_made)


def test_task_that_no_worker_could_import(recipe: Path) -> None:
    class Local:
        """It is in a function."""

    with pytest.raises(UsageError, match="Local is in no file, and workers are processes of their own"):
        launch(recipe, task=Local)
    with pytest.raises(UsageError, match="expected a class or a module, got"):
        launch(recipe, task=Local())
