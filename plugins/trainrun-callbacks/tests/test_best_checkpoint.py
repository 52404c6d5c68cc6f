from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainrun_callbacks.best_checkpoint import BestCheckpoint, BestCheckpointOptions
from trainrun_callbacks.links import point_ranked
from trainrun_callbacks.ranking import Ranking, Scored

from trainrun import HookFailed, Recipe, hookimpl
from trainrun.testing import ForkRecipe, Result, RunRecipe

RECIPE = """
train = { steps = 12, batch_size = 4, log_every = 4 }
evaluate = { every = 2, splits = ["eval"] }
optimizer = { name = "sgd", lr = 0.01 }
checkpoint = { keep = 2, at_end = false }

[task]
use = "unused"

[plugins.best-checkpoint]
monitor = "eval/score"
mode = "max"
"""
VALUES = {2: 0.5, 4: 0.4, 6: 0.7, 8: 0.7, 10: 0.6, 12: math.nan}


class Scripted:
    """A model that learns a little, and whose score is what the table says for each step."""

    values: Mapping[int, float] = VALUES

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(3, 1)

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return torch.arange(48.0).sin().reshape(16, 3)

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: Any) -> Any:
        return model(batch).square().mean()

    @hookimpl
    def evaluation_step(self, run: Any, model: torch.nn.Module, batch: Any) -> Mapping[str, Any]:
        model(batch)
        return {"score": self.values[run.step], "other": 1.0}


def scripted(**values: float) -> type[Scripted]:
    return type("Scripted", (Scripted,), {"values": {int(step[1:]): value for step, value in values.items()}})


def links(result: Result, folder: str = "checkpoints") -> dict[str, str]:
    there = (result.paths.root / folder).iterdir()
    return {path.name: str(path.readlink()) for path in sorted(there) if path.is_symlink()}


def steps(result: Result) -> list[str]:
    return sorted(path.name for path in result.paths.checkpoints.iterdir() if not path.is_symlink())


def wishes(result: Result) -> list[str]:
    return [event["reason"] for event in result.events if event.get("hook") == "request_checkpoint"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_best_is_kept_and_linked(run_recipe: RunRecipe, fork_recipe: ForkRecipe, workers: int) -> None:
    run: Any = run_recipe if workers == 1 else fork_recipe
    result = run(RECIPE, task=Scripted)
    assert links(result) == {"best": "step-000006"}
    assert steps(result) == ["step-000002", "step-000006"]
    assert wishes(result) == [
        "eval/score is 0.5 at step 2, the best so far",
        "eval/score is 0.7 at step 6, the best so far",
    ]
    (decision, _) = [event for event in result.events if event.get("hook") == "request_checkpoint"]
    assert (decision["plugin"], decision["ranks"]) == ("best-checkpoint", [0])


def test_as_many_as_asked_for_are_kept_in_their_order_whatever_retention_does(run_recipe: RunRecipe) -> None:
    overrides = ["plugins.best-checkpoint.top_k=3", "checkpoint.every=1"]
    result = run_recipe(RECIPE, task=Scripted, overrides=overrides)
    assert links(result) == {"best": "step-000006", "best-2": "step-000008", "best-3": "step-000010"}
    assert steps(result) == ["step-000006", "step-000008", "step-000010", "step-000011", "step-000012"]
    assert "the best but 1 so far" in wishes(result)[1]


def test_smaller_may_be_better_and_infinity_is_not(run_recipe: RunRecipe) -> None:
    task = scripted(s2=-math.inf, s4=3.0, s6=2.0, s8=math.nan, s10=2.5, s12=-math.inf)
    result = run_recipe(RECIPE, task=task, overrides=["plugins.best-checkpoint.mode=min"])
    assert links(result) == {"best": "step-000006"}


def test_other_splits_and_names_do_not_count(run_recipe: RunRecipe) -> None:
    overrides = ['evaluate.splits=["eval", "test"]', 'plugins.best-checkpoint.link="winner"']
    assert links(run_recipe(RECIPE, task=Scripted, overrides=overrides)) == {"winner": "step-000006"}


def test_epochs_are_saved_with_the_weights_that_were_evaluated(run_recipe: RunRecipe) -> None:
    task = scripted(s4=0.5, s8=0.7, s12=0.6)
    result = run_recipe(RECIPE, task=task, overrides=['evaluate.every="epoch"'])
    assert links(result) == {"best": "step-000008"}


def test_a_step_that_was_saved_already_is_linked_at_once(run_recipe: RunRecipe) -> None:
    task = scripted(s4=0.5, s8=0.7, s12=0.6)
    overrides = ['evaluate.every="epoch"', "checkpoint.every=4", "checkpoint.background=false", "checkpoint.keep=9"]
    result = run_recipe(RECIPE, task=task, overrides=overrides)
    assert links(result) == {"best": "step-000008"}
    assert wishes(result) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_weights_alone(fork_recipe: ForkRecipe, strategy: str) -> None:
    overrides = ["plugins.best-checkpoint.weights_only=true", "plugins.best-checkpoint.top_k=2"]
    overrides += [f'parallel.strategy="{strategy}"']
    result = fork_recipe(RECIPE, task=Scripted, overrides=overrides)
    folder = result.paths.root / "weights"
    assert links(result, "weights") == {
        "best-2.safetensors": "best-step-000008.safetensors",
        "best.safetensors": "best-step-000006.safetensors",
    }
    assert len(list(folder.iterdir())) == 4, "nothing else is left"
    assert not result.paths.checkpoints.exists()
    weights = load_file(folder / "best.safetensors")
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == {"weight": [1, 3], "bias": [1]}


class Swaps:
    """Evaluates with other weights, as a moving average does, and takes them back as early as it can."""

    @hookimpl(mutates=True, tryfirst=True)
    def on_evaluation_start(self, run: Any) -> None:
        self.kept = run.module.bias.detach().clone()
        with torch.no_grad():
            run.module.bias.fill_(7.0)

    @hookimpl(mutates=True, tryfirst=True)
    def on_evaluation_end(self, run: Any) -> None:
        with torch.no_grad():
            run.module.bias.copy_(self.kept)


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_weights_are_those_that_were_evaluated(run_recipe: RunRecipe, order: str) -> None:
    overrides = ["plugins.best-checkpoint.weights_only=true", f'plugins.best-checkpoint.{order}=["swaps"]']
    result = run_recipe(RECIPE, Swaps, task=Scripted, overrides=overrides)
    weights = load_file(result.paths.root / "weights" / "best.safetensors")
    assert weights["bias"].item() == 7.0


def test_it_goes_on_where_it_was(fork_recipe: ForkRecipe) -> None:
    first = fork_recipe(RECIPE, task=Scripted, overrides=["train.steps=8", "checkpoint.at_end=true"])
    assert links(first) == {"best": "step-000006"}
    second = fork_recipe(RECIPE, task=Scripted, after=first)
    assert links(second) == {"best": "step-000006"}
    assert len(wishes(second)) == 2, "no later one was better"


def test_links_are_repaired_where_an_older_checkpoint_is_gone_on_from(fork_recipe: ForkRecipe) -> None:
    overrides = ["plugins.best-checkpoint.top_k=2", "checkpoint.every=2", "checkpoint.keep=9"]
    first = fork_recipe(RECIPE, task=Scripted, overrides=overrides)
    assert links(first) == {"best": "step-000006", "best-2": "step-000008"}
    for step in (6, 8, 10, 12):
        shutil.rmtree(first.paths.checkpoints / f"step-{step:06}")

    class Look:
        @hookimpl(trylast=True)
        def on_train_start(self, run: Any) -> None:
            if run.world.rank == 0:
                folder = run.paths.checkpoints
                found = {path.name: str(path.readlink()) for path in folder.iterdir() if path.is_symlink()}
                (run.paths.root / "seen").write_text(str(sorted(found.items())))

    task = scripted(s6=0.1, s8=0.45, s10=0.1, s12=0.1)
    second = fork_recipe(RECIPE, Look, task=task, overrides=overrides, after=first)
    assert (first.paths.root / "seen").read_text() == "[('best', 'step-000002'), ('best-2', 'step-000004')]"
    assert links(second) == {"best": "step-000002", "best-2": "step-000008"}


def test_weights_of_later_steps_are_put_aside_where_an_older_checkpoint_is_gone_on_from(
    fork_recipe: ForkRecipe,
) -> None:
    overrides = ["plugins.best-checkpoint.weights_only=true", "checkpoint.every=4", "checkpoint.keep=9"]
    first = fork_recipe(RECIPE, task=Scripted, overrides=overrides)
    for step in (8, 12):
        shutil.rmtree(first.paths.checkpoints / f"step-{step:06}")
    second = fork_recipe(RECIPE, task=scripted(s6=math.nan, s8=0.6, s10=0.1, s12=0.1), overrides=overrides, after=first)
    assert links(second, "weights") == {"best.safetensors": "best-step-000008.safetensors"}
    there = sorted(path.name for path in (first.paths.root / "weights").iterdir())
    assert there == ["best-step-000008.safetensors", "best.safetensors", "superseded-best-step-000006.safetensors"]


@pytest.mark.parametrize("change", ['monitor="eval/other"', 'mode="min"'])
def test_weights_that_were_best_by_another_metric_are_put_aside(fork_recipe: ForkRecipe, change: str) -> None:
    overrides = ["plugins.best-checkpoint.weights_only=true"]
    first = fork_recipe(RECIPE, task=Scripted, overrides=[*overrides, "train.steps=6", "checkpoint.at_end=true"])
    late = [f"plugins.best-checkpoint.{change}", "evaluate.every=99", "train.steps=7"]
    fork_recipe(RECIPE, task=scripted(s7=math.nan), overrides=[*overrides, *late], after=first)
    there = sorted(path.name for path in (first.paths.root / "weights").iterdir())
    assert "superseded-best-step-000006.safetensors" in there


def test_a_link_that_cannot_be_made_is_tried_again_and_fails_nothing(
    run_recipe: RunRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.symlink_to
    tries: list[str] = []

    def symlink_to(self: Path, target: str) -> None:
        tries.extend([target] if str(target).startswith("step-") else [])
        if tries == ["step-000002"]:
            raise OSError(28, "No space left on device")
        original(self, target)

    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    task = scripted(s2=0.5, s4=0.4, s6=0.4, s8=0.4, s10=0.4, s12=0.4)
    result = run_recipe(RECIPE, task=task)
    assert links(result) == {"best": "step-000002"}
    assert tries == ["step-000002", "step-000002"]
    assert "the links to the best were not made" in result.paths.rank_log(0).read_text()


class FullDisk:
    """The disk is full while the checkpoint of step 6 is written."""

    def reach_stage(self, stage: str, step: int, run: Any) -> None:
        if (stage, step) == ("write", 6):
            raise OSError(28, "No space left on device")


def test_a_save_that_failed_is_not_linked_and_the_next_better_one_is_tried(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, FullDisk, task=Scripted, overrides=["checkpoint.background=false"])
    assert any(event.get("decision") == "unsaved" for event in result.events)
    assert links(result) == {"best": "step-000008"}


def test_weights_that_could_not_be_written_do_not_count(run_recipe: RunRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainrun.worker.run import Run

    original = Run.save_weights

    def save(self: Any, path: Path) -> None:
        if self.step == 6:
            raise OSError(28, "No space left on device")
        original(self, path)

    monkeypatch.setattr(Run, "save_weights", save)
    result = run_recipe(RECIPE, task=Scripted, overrides=["plugins.best-checkpoint.weights_only=true"])
    assert links(result, "weights") == {"best.safetensors": "best-step-000008.safetensors"}
    log = result.paths.rank_log(0).read_text()
    assert "the best weights were not saved" in log


# --- the metric ---


class Unread(Scripted):
    """Its metrics cannot be read in its source."""

    @hookimpl
    def evaluation_step(self, run: Any, model: torch.nn.Module, batch: Any) -> Mapping[str, Any]:
        return dict(super().evaluation_step(run, model, batch))


def test_an_unknown_metric_is_an_error_at_the_first_evaluation(run_recipe: RunRecipe) -> None:
    wrong = RECIPE.replace("eval/score", "eval/scor")
    with pytest.raises(HookFailed, match=r"no such metric; this evaluation has: eval/other, eval/score; if it comes"):
        run_recipe(wrong, task=Unread)


class Late(Scripted):
    """The score is there from step 6 on."""

    @hookimpl
    def evaluation_step(self, run: Any, model: torch.nn.Module, batch: Any) -> Mapping[str, Any]:
        found = super().evaluation_step(run, model, batch)
        return found if run.step >= 6 else {"other": found["other"]}


def test_a_metric_may_come_later(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, task=Late, overrides=['plugins.best-checkpoint.must_exist="later"'])
    assert links(result) == {"best": "step-000006"}


def test_a_metric_that_never_came_is_an_error_at_the_end(run_recipe: RunRecipe) -> None:
    wrong = RECIPE.replace("eval/score", "eval/scor")
    result = run_recipe(wrong, task=Unread, overrides=['plugins.best-checkpoint.must_exist="later"'], fails=True)
    assert "no evaluation had it; the last one had: eval/other, eval/score" in str(result.error)
    assert list(result.series("eval/other")) == [2, 4, 6, 8, 10, 12]


def plugin(**options: Any) -> BestCheckpoint:
    return BestCheckpoint(BestCheckpointOptions(**{"monitor": "eval/loss", **options}))


def recipe(**plugins: Any) -> Recipe:
    table = {"task": {"use": "digits"}, "train": {"steps": 1}, "plugins": plugins}
    return Recipe.from_data(table)


def test_what_is_known_to_be_wrong_vetoes_the_launch() -> None:
    assert plugin().check_recipe(recipe()) == []
    (split,) = plugin(monitor="train/loss").check_recipe(recipe())
    assert split == "monitor = 'train/loss' names no evaluated split; there is eval/NAME"
    (link,) = plugin(link="step-000100").check_recipe(recipe())
    assert "could be taken for a checkpoint" in link
    (place,) = plugin(link="best-2").check_recipe(recipe())
    assert "could be taken for a place in a ranking" in place
    other = {"use": "best-checkpoint", "monitor": "eval/f1"}
    tables = {"best-checkpoint": {"monitor": "eval/loss"}, "second": other}
    (clash,) = plugin().check_recipe(recipe(**tables))
    assert clash == "several tables make the link checkpoints/best; give each another link"
    last = {"last-checkpoint": {"link": "best"}, "best-checkpoint": {"monitor": "eval/loss"}}
    assert plugin().check_recipe(recipe(**last)) == [clash]
    assert plugin().check_recipe(recipe(**last | {"last-checkpoint": {}})) == []
    for harmless in ({"weights_only": True}, {"enabled": False}, {"link": "other"}):
        assert plugin().check_recipe(recipe(**tables | {"second": {**other, **harmless}})) == []


def test_numbers_of_another_metric_are_forgotten() -> None:
    one = plugin()
    one._ranking.add(Scored(3, 0.5))
    for options, steps in (({}, [3]), ({"mode": "max"}, []), ({"monitor": "eval/f1"}, [])):
        other = plugin(**options)
        other.load_state_dict(one.state_dict())
        assert other._ranking.steps == steps


# --- ranking and links ---


def test_ties_keep_the_older() -> None:
    ranking = Ranking(2, "min")
    for step, value in enumerate([1.0, 1.0, 1.0], 1):
        ranking.add(Scored(step, value))
    assert ranking.steps == [1, 2]
    assert ranking.place(Scored(9, 1.0)) is None


def test_a_step_that_is_evaluated_again_has_its_last_value() -> None:
    ranking = Ranking(2, "max")
    for step, value in ((1, 0.5), (2, 0.4), (2, 0.6)):
        ranking.add(Scored(step, value))
    assert ranking.entries == [Scored(2, 0.6), Scored(1, 0.5)]


def test_what_moves_down_is_never_without_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_ranked(tmp_path, "best", ["a", "b", "c"])
    kept: list[set[str]] = []
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        moved = original(self, target)
        kept.append({str(path.readlink()) for path in tmp_path.iterdir()})
        return moved

    monkeypatch.setattr(Path, "replace", replace)
    point_ranked(tmp_path, "best", ["new", "a", "b"])
    assert len(kept) == 3
    assert all({"a", "b"} <= targets for targets in kept)
    point_ranked(tmp_path, "best", ["new"])
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_only_links_are_removed(tmp_path: Path) -> None:
    (tmp_path / "best-2").mkdir()
    (tmp_path / "best-of").symlink_to("x")
    (tmp_path / "best-3").symlink_to("x")
    point_ranked(tmp_path, "best", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-2", "best-of"]
