"""Going on from a checkpoint in another attempt: what comes after is, bit for bit, what would have come anyway."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.checkpoint import read_manifest, verify
from trainrun.errors import HookFailed
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
    # A run that stops between two logs says what it has so far; what came before and after must be the same.
    steps = {one["step"] for one in metrics(whole)}
    assert [one for one in metrics(broken) if one["step"] in steps] == metrics(whole)


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
