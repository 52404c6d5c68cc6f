"""Tasks, data, devices and processes that go wrong while a run goes on, and what is said of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from trainrun import EnvironmentProblem, ExitCode, RecipeError, TrainingError, TrainrunError
from trainrun.testing import RunRecipe


def test_error_on_one_rank(project: Any) -> None:
    ended = project.launch(task__fault="raises")
    assert ended.code == 1
    assert "rank 1 failed at step 3" in ended.verdict
    assert "raised ValueError in training_step: the task's mistake" in ended.verdict
    assert ended.tracebacks == 1
    assert ended.stderr.count("ValueError: the task's mistake") == 1
    failure = ended.outcome["first_failure"]
    assert (failure["rank"], failure["step"], failure["kind"]) == (1, 3, "error")
    assert "connection" not in (ended.stdout + ended.stderr).lower()


@pytest.mark.long
def test_worker_that_leaves_without_a_word(project: Any) -> None:
    ended = project.launch(task__fault="leaves")
    assert ended.code == 1
    assert ended.verdict.startswith("failed: rank 1 left with exit code 0 before it had finished")
    assert ended.tracebacks == 0


@pytest.mark.long
def test_killed_worker(project: Any, wait_for: Callable[[Callable[[], object]], None]) -> None:
    command = project.start("launch", "train.toml", "-o", "task.fault=waits")
    ready = project.folder / "ready"
    wait_for(lambda: command.poll() is not None or (ready.exists() and ready.read_text()))
    worker = int(ready.read_text())
    assert worker in project.left()
    os.kill(worker, signal.SIGKILL)
    ended = project.finish(command)
    assert ended.code == 1
    assert ended.verdict.startswith("failed: rank 1 was killed by SIGKILL")
    assert ended.outcome["first_failure"]["signal"] == "SIGKILL"
    assert ended.tracebacks == 0
    assert ended.seconds < 30


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no_loss", "training_step returned a mapping with ['accuracy']; return a scalar loss, or"),
        ("no_answer", "training_step returned None; return a scalar loss, or"),
        ("wide_loss", "training_step returned a tensor of shape (8,); return a scalar loss, or"),
        ("empty_loader", "the train loader gave no batch in a whole epoch"),
    ],
)
def test_task_that_returns_no_loss(run_recipe: RunRecipe, project: Any, fault: str, message: str) -> None:
    error = fails(run_recipe, project, f"task.fault={fault}")
    assert message in str(error)
    assert error.exit_code == ExitCode.USAGE


def test_missing_loss_is_told_in_one_line(project: Any) -> None:
    ended = project.launch(task__fault="no_loss")
    assert ended.code == 2
    assert "failed at step 1: training_step returned a mapping with ['accuracy']" in ended.verdict
    assert ended.tracebacks == 0


def test_loss_that_is_no_number(project: Any) -> None:
    ended = project.launch(task__fault="nan_loss")
    assert ended.code == 1
    assert "failed at step 4: train/loss is nan at step 4 (mean of steps 3 to 4); " in ended.verdict
    assert 'set train.nonfinite = "warn"' in ended.verdict
    assert ended.tracebacks == 0


def test_loss_that_is_no_number_and_may_be(run_recipe: RunRecipe, project: Any) -> None:
    overrides = ["task.fault=nan_loss", "train.nonfinite=warn"]
    result = run_recipe(project.recipe, overrides=overrides)
    assert result.outcome.ok
    assert result.outcome.step == 8
    assert "train/loss is nan at step 4" in result.paths.rank_log(0).read_text()


def test_evaluation_without_a_step(run_recipe: RunRecipe, project: Any) -> None:
    with pytest.raises(RecipeError, match="has no evaluation_step, but evaluate"):
        fails(run_recipe, project, 'evaluate.splits=["eval"]')


@pytest.mark.long
def test_less_data_than_workers(project: Any) -> None:
    ended = project.launch(task__samples=1)
    assert ended.code == 2
    assert "the train dataset has 1 samples for 2 workers; use fewer workers or more data" in ended.verdict
    assert ended.tracebacks == 0


def test_no_data(run_recipe: RunRecipe, project: Any) -> None:
    assert "the train dataset has 0 samples" in str(fails(run_recipe, project, "task.samples=0"))


def test_cuda_where_there_is_none(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ended = project.launch(train__device="cuda")
    assert ended.code == 4
    [message] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert message == (
        'error: train.device: "cuda" is asked for, and this machine shows no NVIDIA GPU; use "auto" or "cpu"'
    )
    assert ended.tracebacks == 0
    assert not ended.runs.exists()


@pytest.mark.long
def test_worker_that_prints_without_measure(project: Any) -> None:
    ended = project.launch(task__fault="prints")
    assert ended.code == 0, ended.verdict
    assert len(ended.stderr) < 20_000_000
    assert "\x1b" not in ended.stderr
    assert "\x00" not in ended.stderr
    assert "bytes are not shown; what is kept of them: " in ended.stderr
    assert (ended.run / "logs" / "rank-0.out").stat().st_size > 8 * 1_000_000


def fails(run_recipe: RunRecipe, project: Any, *overrides: str) -> TrainrunError:
    """What a run in this process ends with."""
    error = run_recipe(project.recipe, overrides=overrides, fails=True).error
    assert isinstance(error, TrainingError | EnvironmentProblem)
    return error
