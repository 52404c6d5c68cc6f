"""What `trainrun verify-resume` compares, with trainings in this process: whatever a resume may lose is named."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.checkpoint import folder_name
from trainrun.cli.trails import First, Verdict, blame, joined, not_compared, optimizers
from trainrun.cli.trails import compare as compare_logs
from trainrun.rundir import RunPaths
from trainrun.worker.checkpoint import compare
from trainrun.worker.checkpoint.compare import Difference, difference
from trainrun.worker.checkpoint.trail import Trail, digest

AT, LAST = 3, 6
RECIPE: dict[str, Any] = {
    "train": {"steps": LAST},
    "checkpoint": {"every": AT, "at_end": True},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "scheduler": {"name": "cosine"},
}

Trainer = Callable[..., Any]


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Counter:
    """Change each update by how many this object has seen, which no checkpoint knows."""

    def __init__(self) -> None:
        self.seen = 0

    @hookimpl(mutates=True)
    def on_gradients_ready(self, model: torch.nn.Module) -> None:
        self.seen += 1
        for parameter in model.parameters():
            parameter.grad *= 1 + self.seen


class SavedCounter(Counter):
    """The same, as it should be."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Attempts:
    """Keep a state that the training does not depend on."""

    def __init__(self) -> None:
        self.starts = 0

    @hookimpl
    def on_worker_start(self) -> None:
        self.starts += 1

    def state_dict(self) -> dict[str, Any]:
        return {"starts": self.starts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.starts += state["starts"]


class Drawer:
    """Draw more random numbers after a resume."""

    @hookimpl
    def on_step_start(self, run: Any) -> None:
        if run.attempt > 1:
            random.random()


def both(training: Trainer, task: type, *plugins: type, ranks: int = 1) -> tuple[Path, Path]:
    """The run directories of a straight training, and of one that was stopped and went on."""
    straight = training(task, Trail, *plugins, ranks=ranks, **RECIPE)
    tables = {"trail": {"options": {"stop_at": AT}}}
    stopped = training(task, Trail, *plugins, ranks=ranks, tables=tables, **RECIPE)
    assert (stopped.outcome.state, stopped.outcome.step) == ("stopped", AT)
    done = training(task, Trail, *plugins, ranks=ranks, tables=tables, after=stopped.paths, **RECIPE)
    assert (done.outcome.state, done.outcome.step) == ("finished", LAST)
    return straight.paths.root, done.paths.root


def checkpoints(*runs: Path) -> list[Path]:
    return [RunPaths(run).checkpoints / folder_name(LAST) for run in runs]


def verdicts(runs: tuple[Path, Path]) -> dict[str, First | None]:
    one, two = checkpoints(*runs)
    saved = [
        Verdict(name, None if first is None else First(first.name, first.values, first.rank))
        for name, first in compare.compare(one, two)
    ]
    return {verdict.name: verdict.first for verdict in joined(compare_logs(*runs), saved)}


def blamed(found: dict[str, First | None]) -> tuple[str, int | None]:
    verdict = blame([Verdict(name, first) for name, first in found.items()])
    assert verdict is not None
    assert verdict.first is not None
    return verdict.name, verdict.first.step


def wrong(found: dict[str, First | None]) -> set[str]:
    return {name for name, first in found.items() if first is not None}


@pytest.mark.parametrize("ranks", [1, 2])
def test_good_training_is_equal_in_all(ranks: int, training: Trainer, regression: type) -> None:
    found = verdicts(both(training, regression, SavedCounter, ranks=ranks))
    names = "batches rng losses position parameters optimizer scheduler scaler plugins"
    assert found == dict.fromkeys(names.split())


def test_state_that_is_not_saved_shows_in_what_it_changes(training: Trainer, regression: type) -> None:
    found = verdicts(both(training, regression, Counter))
    assert wrong(found) == {"losses", "parameters", "optimizer"}
    # The update of the first step after the resume is the first wrong one, and shows in the loss of the next.
    assert blamed(found) == ("losses", AT + 2)
    first = found["parameters"]
    assert first is not None
    assert first.name == "0.weight[0, 0] (12 of 12 values differ)"


def test_state_of_plugin_is_named(training: Trainer, regression: type) -> None:
    found = verdicts(both(training, regression, Attempts))
    assert wrong(found) == {"plugins"}
    assert found["plugins"] == First("attempts.starts", ("1", "2"))


def test_random_numbers_that_are_drawn_once_more_are_named_with_step_and_rank(
    training: Trainer, regression: type
) -> None:
    found = verdicts(both(training, regression, Drawer, ranks=2))
    assert wrong(found) == {"rng"}
    first = found["rng"]
    assert first is not None
    assert (first.name, first.rank, first.step) == ("generator of python", 0, AT + 1)


def test_batches_that_depend_on_hidden_state_are_named(training: Trainer, regression: type) -> None:
    class Hidden(regression):  # type: ignore[misc]
        """Its dataset counts what was asked of it."""

        @hookimpl
        def build_dataset(self, split: str) -> Any:
            return Counting(self.points(self.samples)) if split == "train" else None

    found = verdicts(both(training, Hidden))
    assert {"batches", "losses", "parameters"} <= wrong(found)
    assert blamed(found) == ("batches", AT + 1)


class Counting(torch.utils.data.Dataset[Any]):
    def __init__(self, points: list[Any]) -> None:
        self.points = points
        self.asked = 0

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        inputs, target = self.points[index]
        return inputs + self.asked, target


def test_command_answers_with_json(
    training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = both(training, regression, Attempts)
    monkeypatch.setattr("sys.argv", ["compare", *map(str, checkpoints(one, two))])
    compare.main()
    found = {component["name"]: component["first"] for component in json.loads(capsys.readouterr().out)}
    assert found["plugins"] == {"name": "attempts.starts", "values": ["1", "2"], "rank": None}
    assert found["parameters"] is None


def test_tensors_are_compared_in_rounds(training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_ROUND", 20)
    found = verdicts(both(training, regression, Counter))
    assert {"parameters", "optimizer"} <= wrong(found)


# --- values ---

NAN = float("nan")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.0}]}, None),
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}, Difference("a[1].b", ("2.0", "2.5"))),
        ({"a": 1}, {"a": 1, "b": 2}, Difference("b", ("not there", "2"))),
        ([1, 2], [1], Difference("[1]", ("2", "not there"))),
        ({"a": 1}, {"a": 1.0}, Difference("a", ("1", "1.0"))),
        ({"a": True}, {"a": 1}, Difference("a", ("True", "1"))),
        ({"a": NAN}, {"a": NAN}, None),
        ({"a": 0.0}, {"a": -0.0}, Difference("a", ("0.0", "-0.0"))),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), None),
        (torch.tensor(0.0), torch.tensor(-0.0), Difference("", ("0.0", "-0.0"))),
        (torch.zeros(1, 2), torch.tensor([[0.0, 1]]), Difference("[0, 1] (1 of 2 values differ)", ("0.0", "1.0"))),
        (torch.zeros(2), torch.zeros(2).double(), Difference("", ("torch.float32 (2,)", "torch.float64 (2,)"))),
        (torch.zeros(0), torch.zeros(0), None),
        (torch.tensor([True]), torch.tensor([False]), Difference("[0]", ("True", "False"))),
        (torch.zeros(3, 2).T, torch.zeros(2, 3), None),
        (torch.zeros(1), [0.0], Difference("", ("a tensor of shape (1,)", "[0.0]"))),
    ],
)  # fmt: skip
def test_difference_of_values(a: Any, b: Any, expected: Difference | None) -> None:
    assert difference(a, b) == expected


def test_digest_tells_batches_apart() -> None:
    base = {"x": torch.zeros(2, 2), "y": [1, "a", None]}
    others: list[Any] = [
        {"x": torch.zeros(4), "y": [1, "a", None]},
        {"x": torch.zeros(2, 2).int(), "y": [1, "a", None]},
        {"x": torch.tensor([[0.0, 0], [0, 1]]), "y": [1, "a", None]},
        {"x": torch.zeros(2, 2), "y": [1, "b", None]},
        {"x": torch.zeros(2, 2), "z": [1, "a", None]},
        {"x": torch.zeros(2, 2), "y": [[1, "a"], None]},
        {"x": torch.zeros(2, 2).to_sparse(), "y": [1, "a"]},
    ]
    assert digest(base) == digest({"x": torch.zeros(2, 2), "y": [1, "a", None]})
    assert len({digest(base), *map(digest, others)}) == len(others) + 1
    loop: list[Any] = []
    loop.append(loop)
    assert digest(loop)


# --- other optimizers than the run's own ---


def adversary(regression: Any, hold: Callable[[Any, Any], None], *, saves: bool = False) -> Any:
    """A task with a second optimizer, held somewhere. It is stepped for a parameter that the losses do not show."""

    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataset(self, split: str) -> Any:
            return super().build_dataset(split) if split == "train" else None

        @hookimpl
        def on_train_start(self) -> None:
            self.weight = torch.nn.Parameter(torch.ones(2))
            hold(self, torch.optim.Adam([self.weight], lr=0.1))

        @hookimpl
        def on_step_end(self) -> None:
            self.weight.grad = torch.ones(2)
            for optimizer in every(self):
                optimizer.step()

    class Saving(Task):
        def state_dict(self) -> dict[str, Any]:
            (optimizer,) = every(self) or [torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])]
            return {"optimizer": optimizer.state_dict()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.saved = state["optimizer"]

        @hookimpl
        def on_train_start(self) -> None:
            super().on_train_start()
            if hasattr(self, "saved"):
                every(self)[0].load_state_dict(self.saved)

    return Saving if saves else Task


HELD: list[torch.optim.Optimizer] = []


def every(task: Any) -> list[Any]:
    """The task's second optimizer, wherever it is held."""
    if getattr(task, "plain", None) is not None:
        return [task.plain]
    if getattr(task, "listed", None):
        return [task.listed["critics"][0]]
    if getattr(task, "closure", None):
        return [task.closure()]
    if getattr(task, "part", None):
        return [task.part.optimizer]
    return HELD[-1:]


class Part:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def in_closure(task: Any, optimizer: Any) -> None:
    task.closure = lambda: optimizer


PLACES: dict[str, Callable[[Any, Any], None]] = {
    "task.plain": lambda task, optimizer: setattr(task, "plain", optimizer),
    "task.listed['critics'][0]": lambda task, optimizer: setattr(task, "listed", {"critics": [optimizer]}),
    "task.closure: optimizer": in_closure,
    "task.part.optimizer": lambda task, optimizer: setattr(task, "part", Part(optimizer)),
    "Adam 1, held elsewhere": lambda task, optimizer: HELD.append(optimizer),
}


@pytest.fixture
def nothing_held() -> Any:
    HELD.clear()
    yield
    HELD.clear()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("nothing_held")
def test_state_of_an_optimizer_that_something_holds_is_compared(
    place: str, training: Trainer, regression: type
) -> None:
    runs = both(training, adversary(regression, PLACES[place]))
    assert wrong(verdicts(runs)) == set()
    (found,) = optimizers(*runs)
    assert found.name == f"optimizer of {place}"
    assert found.first is not None
    assert (found.first.name, found.first.rank) == ("state", 0)


def test_state_that_the_task_saves_is_equal(training: Trainer, regression: type) -> None:
    runs = both(training, adversary(regression, PLACES["task.plain"], saves=True))
    assert optimizers(*runs) == [Verdict("optimizer of task.plain", None)]
    assert not_compared(*runs) == []


def test_without_other_optimizers_there_is_nothing_to_tell(training: Trainer, regression: type) -> None:
    assert optimizers(*both(training, regression, ranks=2)) == []


class Counts(torch.optim.SGD):
    """Keeps outside its state what no checkpoint holds."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.calls = 0
        self.log = Part(None)

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure)


def test_what_the_runs_own_optimizer_keeps_outside_its_state_is_compared(training: Trainer, regression: Any) -> None:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
            return Counts(model.parameters())

    runs = both(training, Task)
    (found,) = optimizers(*runs)
    assert found.name == "optimizer of run.optimizer, its attributes"
    assert found.first is not None
    assert not_compared(*runs) == ["run.optimizer, its attributes: log (Part)"]
