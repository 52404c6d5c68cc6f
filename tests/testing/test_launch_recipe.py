from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainrun import UsageError, hookimpl
from trainrun.testing import HookRecorder, LaunchRecipe, RunRecipe
from trainrun.testing.targets import importable_target

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 2, batch_size = 16, log_every = 1, clip_grad_norm = 1.0 }
"""


class Greeter:
    @hookimpl
    def on_train_start(self, run: Any) -> None:
        sys.stdout.write(f"hello from {run.world.rank} of {run.world.size}\n")


class Breaker:
    @hookimpl
    def on_step_start(self) -> None:
        raise ValueError("broken as planned")


def test_two_workers_run_what_is_passed(launch_recipe: LaunchRecipe, hook_recorder: type[HookRecorder]) -> None:
    result = launch_recipe(RECIPE, Greeter, hook_recorder)
    assert result.outcome.ok
    assert [result.output(rank).strip() for rank in range(2)] == ["hello from 0 of 2", "hello from 1 of 2"]
    assert list(result.series("train/loss")) == [1, 2]
    assert result.hooks(0) == result.hooks(1)
    assert result.hooks(None)[0] == "on_launch_start"
    assert result.hooks(None)[-1] == "on_launch_end"


def test_a_failed_run_says_so_in_its_outcome(launch_recipe: LaunchRecipe) -> None:
    result = launch_recipe(RECIPE, Breaker)
    assert result.outcome.state == "failed"
    assert "broken as planned" in result.outcome.reason


def test_what_workers_cannot_import_is_refused(launch_recipe: LaunchRecipe) -> None:
    class Inner: ...

    with pytest.raises(UsageError, match="define it at the top"):
        launch_recipe(RECIPE, Inner)
    with pytest.raises(UsageError, match="pass the class"):
        launch_recipe(RECIPE, Greeter())


def test_the_recorder_sees_the_loop(run_recipe: RunRecipe, hook_recorder: type[HookRecorder]) -> None:
    result = run_recipe(RECIPE, hook_recorder, overrides=["checkpoint.at_end=true"])
    counts = Counter(result.hooks())
    once = {
        "on_worker_start", "build_model", "parallelize_model", "build_optimizer", "build_scheduler",
        "on_train_start", "on_epoch_start", "on_evaluation_start", "evaluation_metrics", "on_evaluation_end",
        "on_evaluated", "on_epoch_end", "on_checkpoint_start", "on_checkpoint_saved", "on_train_end", "on_completed",
        "on_worker_end",
    }  # fmt: skip
    twice = {
        "build_dataset", "build_dataloader", "on_step_start", "on_batch_fetched", "on_microbatch_start",
        "training_step", "on_forward_end", "backward", "on_backward_end", "on_gradients_ready", "should_skip_update",
        "clip_gradients", "on_gradients_clipped", "optimizer_step", "on_update_end", "on_step_end",
        "should_evaluate", "should_checkpoint", "should_stop",
    }  # fmt: skip
    assert {hook for hook, count in counts.items() if count == 1} == once
    assert {hook for hook, count in counts.items() if count == 2} == twice
    assert set(counts) - once - twice == {
        "collate", "move_batch", "on_log", "evaluation_step", "on_evaluation_batch_start", "on_evaluation_batch_end"
    }  # fmt: skip


def test_recorded_arguments_are_plain(run_recipe: RunRecipe, hook_recorder: type[HookRecorder]) -> None:
    calls = {call.hook: call for call in run_recipe(RECIPE, hook_recorder).calls}
    assert calls["on_step_end"].arguments == {"step": 2, "epoch": 1, "loss": "Tensor", "metrics": {}}
    assert calls["build_model"].arguments == {"answer": "Sequential"}
    assert calls["on_evaluation_start"].arguments == {"split": "eval"}
    assert calls["on_completed"].rank == 0


def test_exceptions_are_recorded(run_recipe: RunRecipe, hook_recorder: type[HookRecorder]) -> None:
    class Broken:
        @hookimpl
        def on_train_start(self) -> None:
            raise ValueError("no")

    result = run_recipe(RECIPE, Broken, hook_recorder, fails=True)
    assert result.hooks()[-2:] == ["on_exception", "on_worker_end"]


def test_a_class_in_a_folder_that_is_no_package_is_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest may have the folder on its path, where workers would not find it."""
    file = tmp_path / "folder" / "thing.py"
    file.parent.mkdir()
    file.write_text("class Thing: ...\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    thing = importlib.import_module("folder.thing").Thing
    assert importable_target(thing) == f"{file}:Thing"
