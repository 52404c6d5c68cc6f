"""Going on from a checkpoint in another attempt: what comes after is, bit for bit, what would have come anyway."""

from __future__ import annotations

import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.checkpoint import read_manifest, scan, verify
from trainrun.errors import HookFailed, TrainingError
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines
from trainrun.worker.checkpoint.reader import read_tensors, read_values

ADAM = {"name": "adamw", "lr": 0.01}
OFTEN = {"checkpoint": {"every": 2, "at_end": True}}

Trainer = Callable[..., Any]


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests look at no power failure touches."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Stop:
    """Vote for a stop after a step."""

    at = 0

    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "far enough" if run.step == self.at else None


class Raise(Stop):
    """Fail in the middle of a step: the backward of its last micro-batch is done, the update is not."""

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        if run.step == self.at:
            raise RuntimeError("enough")


class Draws:
    """Draw from torch's and Python's generators in each step, and keep a state."""

    def __init__(self) -> None:
        self.sum = torch.zeros(())
        self.steps: list[int] = []

    @hookimpl
    def on_step_end(self, run: Any, step: int) -> None:
        self.sum += torch.rand(())
        self.steps.append(step)

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.steps = state["sum"], list(state["steps"])


def plugin(kind: type, at: int) -> type:
    return type(kind.__name__, (kind,), {"at": at})


def contents(paths: RunPaths, step: int) -> tuple[Any, ...]:
    """All that a checkpoint holds, but for times."""
    folder = paths.checkpoints / f"step-{step:06}"
    assert verify(folder) == []
    manifest = read_manifest(folder)
    values = {name: read_values(folder / name) for name in manifest.files if name.endswith(".pt")}
    for name, one in values.items():
        if name.startswith("rank-"):
            one["metrics"] = None  # holds rates, which are times
    return read_tensors(folder, ""), values, manifest.samples_seen, manifest.epoch


def metrics(paths: RunPaths) -> list[dict[str, Any]]:
    timed = ("time", "train/samples_per_second")
    return [{key: value for key, value in one.items() if key not in timed} for one in read_lines(paths.metrics)[0]]


def same(one: Any, other: Any, place: str = "") -> None:
    """Equal to the last bit; says where it is not."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    elif isinstance(one, Mapping):
        assert list(one) == list(other), place
        for key in one:
            same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{place}/{index}")
    else:
        assert one == other or (one != one and other != other), place


def require_same(whole: RunPaths, broken: RunPaths, step: int) -> None:
    same(contents(broken, step), contents(whole, step))
    assert metrics(broken) == metrics(whole)


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"train": {"steps": 8}},
    "accumulated": {"train": {"steps": 8, "micro_batch_size": 2, "log_every": 3}},
    "evaluated": {"train": {"steps": 8}, "evaluate": {"every": 2}},
    "epochs": {"train": {"epochs": 3}, "evaluate": {"every": "epoch"}},
}


@pytest.mark.parametrize("at", [2, 3, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_stopped_or_failed_and_gone_on_is_as_if_nothing_had_been(
    name: str, at: int, training: Trainer, regression: type
) -> None:
    recipe = {**OFTEN, "optimizer": ADAM, "scheduler": {"name": "cosine"}, **RECIPES[name]}
    whole = training(regression, Draws, **recipe)
    first = training(regression, Draws, plugin(Stop, at), **recipe)
    assert first.outcome.state == "stopped"
    assert first.outcome.step < whole.outcome.step
    second = training(regression, Draws, after=first.paths, **recipe)
    assert (second.outcome.state, second.outcome.step) == ("finished", whole.outcome.step)
    require_same(whole.paths, second.paths, whole.outcome.step)

    with pytest.raises(HookFailed, match="enough"):
        training(regression, Draws, plugin(Raise, at + 1), **recipe)
    third = training(regression, Draws, after=training.paths, **recipe)
    require_same(whole.paths, third.paths, whole.outcome.step)


# --- the ends of things ---


def test_at_the_exact_end_there_is_nothing_to_do(training: Trainer, regression: type) -> None:
    recipe = {**OFTEN, "optimizer": ADAM, "train": {"steps": 4}, "evaluate": {"every": 2}}
    whole = training(regression, Draws, **recipe)
    before, names = contents(whole.paths, 4), sorted(path.name for path in whole.paths.checkpoints.iterdir())
    told = metrics(whole.paths)
    again = training(regression, Draws, after=whole.paths, **recipe)
    assert (again.outcome.state, again.outcome.step) == ("finished", 4)
    assert sorted(path.name for path in whole.paths.checkpoints.iterdir()) == names
    same(contents(whole.paths, 4), before)
    assert metrics(whole.paths) == told
    assert len(again.saves) == len(whole.saves)


def interrupting(step: int) -> type:
    """SIGTERM at the first batch of the evaluation of a step."""

    class Interrupt:
        done = False

        @hookimpl
        def on_evaluation_batch_start(self, run: Any, batch: Any, index: int) -> None:
            if run.step == step and index == 0 and not type(self).done:
                type(self).done = True
                os.kill(os.getpid(), signal.SIGTERM)

    return Interrupt


@pytest.mark.parametrize(("name", "step"), [("evaluated", 4), ("epochs", 3), ("epochs", 9)])
def test_an_evaluation_that_a_stop_broke_off_is_made_after_it(
    name: str, step: int, training: Trainer, regression: type, inbox: Any
) -> None:
    recipe = {"checkpoint": {"at_end": True}, "optimizer": ADAM, **RECIPES[name]}
    whole = training(regression, Draws, **recipe)
    first = training(regression, Draws, interrupting(step), ties=inbox, **recipe)
    assert first.outcome.step == step
    assert not [one for one in metrics(first.paths) if one["step"] == step and "eval/error" in one]
    second = training(regression, Draws, after=first.paths, **recipe)
    if step < whole.outcome.step:
        require_same(whole.paths, second.paths, whole.outcome.step)
    else:  # the last checkpoint is that of the stop
        assert metrics(second.paths) == metrics(whole.paths)


# --- something is not as it was ---


def other_model(regression: type, name: str, width: int) -> type:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_model(self) -> torch.nn.Module:
            layers = {"first": torch.nn.Linear(3, width), name: torch.nn.Linear(width, 1)}
            return torch.nn.Sequential(OrderedDict(layers))

    return Task


def test_another_model_is_refused_by_every_name(training: Trainer, regression: type) -> None:
    recipe = {**OFTEN, "train": {"steps": 4}, "checkpoint": {"at_end": True}}
    paths = training(other_model(regression, "second", 4), **recipe).paths
    with pytest.raises(TrainingError, match="of another model") as raised:
        training(other_model(regression, "last", 5), after=paths, **recipe)
    message = str(raised.value)
    assert "last.weight: not in the checkpoint" in message
    assert "second.bias: in the checkpoint, not in the model" in message
    assert "first.weight: (4, 3) in the checkpoint, (5, 3) in the model" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer": {"name": "sgd", "lr": 0.1}},
            "another optimizer: torch.optim.adamw.AdamW there",
        ),
    ],
)
def test_another_optimizer_is_refused(
    change: dict[str, Any], message: str, training: Trainer, regression: type
) -> None:
    recipe = {"optimizer": ADAM, "train": {"steps": 2}, "checkpoint": {"at_end": True}}
    paths = training(regression, **recipe).paths
    with pytest.raises(TrainingError, match=message):
        training(regression, after=paths, **{**recipe, "train": {"steps": 4}, **change})


def test_the_state_of_a_plugin_that_is_gone_is_carried_along(training: Trainer, regression: type) -> None:
    recipe = {"optimizer": ADAM, "checkpoint": {"at_end": True}}
    paths = training(regression, Draws, train={"steps": 2}, **recipe).paths
    state = contents(paths, 2)[1]["plugins/draws.pt"]
    training(regression, after=paths, train={"steps": 3}, **recipe)
    same(contents(paths, 3)[1]["plugins/draws.pt"], state)
    training(regression, Draws, after=paths, train={"steps": 4}, **recipe)
    assert contents(paths, 4)[1]["plugins/draws.pt"]["steps"] == [1, 2, 4]


# --- another number of ranks ---


class Indexed:
    """Data that are their own numbers, told apart in a file by rank."""

    @hookimpl
    def on_batch_fetched(self, run: Any, batch: Any) -> None:
        with (run.paths.root / f"seen-{run.world.rank}").open("a") as file:
            file.writelines(f"{run.epoch} {value}\n" for value in batch[1].flatten().tolist())


class Loaded:
    """The parameters right after a resume."""

    at_start: list[torch.Tensor]

    @hookimpl
    def on_train_start(self, run: Any) -> None:
        type(self).at_start = [one.detach().clone() for one in run.model.parameters()]


def test_two_ranks_one_rank_and_two_again(training: Trainer, regression: type) -> None:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataset(self, split: str) -> Any:
            return (
                [(torch.full((3,), i / 40), torch.tensor([float(i)])) for i in range(40)] if split == "train" else None
            )

        @hookimpl
        def training_step(self, model: torch.nn.Module, batch: Any) -> Any:
            return (model(batch[0]) - batch[1] / 40).square().mean()

    recipe = {"checkpoint": {"at_end": True}, "optimizer": ADAM, "train": {"epochs": 2, "batch_size": 4}}

    def report() -> Any:
        return [one.tolist() for one in Loaded.at_start]

    def weights(paths: RunPaths) -> list[Any]:
        return [one.tolist() for name, one in tensors(paths).items() if name.startswith("model/")]

    def tensors(paths: RunPaths) -> dict[str, torch.Tensor]:
        newest = scan(paths.checkpoints)[0].path
        return read_tensors(newest, "")

    legs = [(2, 3), (1, 6), (2, 14), (2, 0)]
    paths = None
    for ranks, at in legs:
        before = None if paths is None else weights(paths)
        done = training(Task, Indexed, Loaded, plugin(Stop, at), ranks=ranks, report=report, after=paths, **recipe)
        assert len(done.reports) == ranks
        paths = done.paths
        if before is not None:
            assert sorted(map(str, done.reports[0])) == sorted(map(str, before))
            assert all(one == done.reports[0] for one in done.reports)
    assert done.outcome.step == 20
    seen = [line.split() for rank in range(2) for line in (paths.root / f"seen-{rank}").read_text().splitlines()]
    for epoch in "12":
        assert sorted(int(float(value)) for number, value in seen if number == epoch) == list(range(40))
