from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from trainrun_callbacks.exception_checkpoint import ExceptionCheckpoint

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, Result, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 7, batch_size = 16, log_every = 4 }
evaluate = { splits = [] }
optimizer = { name = "adamw", lr = 0.001 }

[plugins.exception-checkpoint]
"""


class Fails:
    """Raises in step 3, on the last rank, where the table says."""

    place = "on_step_end"

    @hookimpl
    def on_step_start(self, run: Any) -> None:
        self.fail(run, "on_step_start")

    @hookimpl(trylast=True)
    def on_step_end(self, run: Any) -> None:
        self.fail(run, "on_step_end")

    @hookimpl(wrapper=True)
    def optimizer_step(self, run: Any) -> Any:
        answer = yield
        self.fail(run, "optimizer_step")
        return answer

    def fail(self, run: Any, place: str) -> None:
        if run.step == 3 and run.world.rank == run.world.size - 1 and place == self.place:
            raise ValueError("as asked")


def fails(place: str) -> type[Fails]:
    return type("Fails", (Fails,), {"place": place})


def failures(result: Result) -> list[str]:
    folder = result.paths.root / "failures"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def report(result: Result, name: str = "attempt-1-rank-0") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.paths.root / "failures" / name / "report.json").read_text())
    return found


@pytest.mark.parametrize(
    ("place", "state", "step"),
    [("on_step_start", "not begun", 2), ("optimizer_step", "may be incomplete", None), ("on_step_end", "complete", 3)],
)
def test_the_report_is_honest_about_the_update(run_recipe: RunRecipe, place: str, state: str, step: int | None) -> None:
    result = run_recipe(RECIPE, fails(place), fails=True)
    assert "as asked" in str(result.error)
    assert failures(result) == ["attempt-1-rank-0"]
    told = report(result)
    assert (told["update_of_this_step"], told["weights_of_step"], told["step"]) == (state, step, 3)
    assert told["phase"] == "training"
    assert told["not_finite"] == []
    assert "raised ValueError" in told["error"]
    assert "Traceback" in told["traceback"]
    assert "not a checkpoint" in told["what"]
    assert told["weights"] == "the whole model, as this rank has it"


class FailsWhileEvaluating:
    """Raises in the evaluation of step 3, and keeps the weights after each step in a file."""

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        torch.save(dict(run.module.state_dict()), run.paths.root / "weights.pt")

    @hookimpl
    def on_evaluation_batch_start(self, run: Any) -> None:
        raise ValueError("as asked")


def test_a_failure_in_an_evaluation_leaves_the_weights_and_not_their_average(run_recipe: RunRecipe) -> None:
    overrides = ['evaluate={every=3, splits=["eval"]}', "plugins.ema.decay=0.5"]
    result = run_recipe(RECIPE, FailsWhileEvaluating, overrides=overrides, fails=True)
    assert (report(result)["phase"], report(result)["weights_of_step"]) == ("evaluation", 3)
    weights = load_file(result.paths.root / "failures" / "attempt-1-rank-0" / "weights.safetensors")
    kept = torch.load(result.paths.root / "weights.pt", weights_only=True)
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[name], kept[name]) for name in kept)


def test_a_resumed_run_that_fails_before_its_first_update_has_the_weights_of_the_checkpoint(
    fork_recipe: ForkRecipe,
) -> None:
    class FailsAtOnce:
        @hookimpl
        def on_train_start(self, run: Any) -> None:
            if run.world.rank == run.world.size - 1:
                raise ValueError("as asked")

    first = fork_recipe(RECIPE, overrides=["train.steps=2", "checkpoint.at_end=true"])
    second = fork_recipe(RECIPE, FailsAtOnce, after=first, fails=True)
    told = report(second, "attempt-2-rank-1")
    assert (told["update_of_this_step"], told["weights_of_step"], told["step"]) == ("complete", 2, 2)


def test_weights_and_optimizer_are_those_that_it_had(run_recipe: RunRecipe) -> None:
    kept: dict[str, torch.Tensor] = {}

    class Keep:
        @hookimpl
        def on_step_end(self, run: Any, step: int) -> None:
            kept.update({name: tensor.clone() for name, tensor in run.module.state_dict().items()})

    folder = run_recipe(RECIPE, Keep, fails("on_step_end"), fails=True).paths.root / "failures" / "attempt-1-rank-0"
    weights = load_file(folder / "weights.safetensors")
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    assert state["state"][0]["step"] == 3
    assert state["param_groups"][0]["lr"] == 0.001


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_fails_asks_no_other(fork_recipe: ForkRecipe, strategy: str) -> None:
    result = fork_recipe(RECIPE, fails("on_step_end"), overrides=[f'parallel.strategy="{strategy}"'], fails=True)
    assert "attempt-1-rank-1" in failures(result)
    told = report(result, "attempt-1-rank-1")
    assert told["update_of_this_step"] == "complete"
    sharded = strategy == "fsdp"
    assert ("the parts of the other ranks" in told["missing"]) == sharded
    with safe_open(result.paths.root / "failures" / "attempt-1-rank-1" / "weights.safetensors", "pt") as file:
        assert bool(json.loads(file.metadata()["parts"])) == sharded
    torch.load(result.paths.root / "failures" / "attempt-1-rank-1" / "optimizer.pt", weights_only=True)


@pytest.mark.parametrize(("spoilt", "more"), [((), []), ((3, 4), ["attempt-2-rank-5"])])
def test_only_the_newest_attempts_are_kept_and_the_newest_that_is_finite(
    run_recipe: RunRecipe, spoilt: tuple[int, ...], more: list[str]
) -> None:
    class Older:
        @hookimpl
        def on_train_start(self, run: Any) -> None:
            for attempt in (-3, -2, -1, 0):
                folder = run.paths.root / "failures" / f"attempt-{attempt + 4}-rank-5"
                folder.mkdir(parents=True)
                names = ["weight"] if attempt + 4 in spoilt else []
                (folder / "report.json").write_text(json.dumps({"not_finite": names}))
            (run.paths.root / "failures" / ".attempt-0-rank-0.1a.tmp").mkdir()  # was killed while it wrote
            (run.paths.root / "failures" / ".attempt-1-rank-7.1a.tmp").mkdir()  # may still be writing

    overrides = ["plugins.exception-checkpoint.keep=2", 'plugins.exception-checkpoint.after=["older"]']
    overrides += ["plugins.exception-checkpoint.optimizer=false"]
    result = run_recipe(RECIPE, Older, fails("on_step_end"), overrides=overrides, fails=True)
    assert failures(result) == [".attempt-1-rank-7.1a.tmp", *more, "attempt-3-rank-5", "attempt-4-rank-5"]


def test_a_full_disk_hides_nothing(run_recipe: RunRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    result = run_recipe(RECIPE, fails("on_step_end"), fails=True)
    assert "as asked" in str(result.error)
    assert failures(result) == []
    log = result.paths.rank_log(0).read_text()
    assert "the state of the failing rank was not saved" in log
    assert "No space left on device" in log


def test_a_disk_that_does_not_answer_is_not_waited_for(run_recipe: RunRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, ended = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        answers.wait(30)
        ended.set()

    monkeypatch.setattr(torch, "save", hang)
    overrides = ["plugins.exception-checkpoint.patience=0.05"]
    result = run_recipe(RECIPE, fails("on_step_end"), overrides=overrides, fails=True)
    assert "as asked" in str(result.error)
    assert "it took longer than 0.05 s" in result.paths.rank_log(0).read_text()
    answers.set()
    assert ended.wait(30)
    for thread in threading.enumerate():
        if thread.name == ExceptionCheckpoint.__module__:
            thread.join(30)


def test_before_training_there_is_nothing_to_keep(run_recipe: RunRecipe) -> None:
    class Early:
        @hookimpl
        def on_worker_start(self) -> None:
            raise ValueError("too early")

    assert failures(run_recipe(RECIPE, Early, fails=True)) == []
