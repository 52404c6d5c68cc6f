"""Workers in a test: one in the test's own process, or two forked from it, which start in milliseconds."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from trainrun.builtin import BUILTINS
from trainrun.marker import hookimpl
from trainrun.plugin.instance import Instance
from trainrun.recipe.freeze import freeze
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.create import create
from trainrun.rundir.files import read_lines, write_atomic, write_json
from trainrun.testing.ranks import ForkedRanks
from trainrun.testing.running import next_attempt
from trainrun.testing.settings import kept_settings, one_thread
from trainrun.testing.targets import plugin_name
from trainrun.worker.main import train
from trainrun.worker.signals import Inbox
from trainrun.worker.ties import Ties
from trainrun.worker.world import World


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Threads of torch's own would not survive a fork."""
    with one_thread():
        yield


@pytest.fixture
def fork_ranks(tmp_path: Path) -> ForkedRanks:
    """Call `job(rank)` in forked processes that share a gloo group. See `ForkedRanks`."""
    return ForkedRanks(tmp_path)


# --- training ---


@dataclass
class Trained:
    """One training: what each rank answered, and the run directory."""

    paths: RunPaths
    ranks: list[Any]

    @property
    def outcome(self) -> Outcome:
        return self.ranks[0][0]

    @property
    def reports(self) -> list[Any]:
        """What `report` answered on each rank."""
        for rank in self.ranks:
            if isinstance(rank, Exception):
                raise rank
        return [rank[1] for rank in self.ranks]

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """Those of plugins and signals."""
        return [event for event in self._decisions if event["plugin"] != "checkpoint"]

    @property
    def saves(self) -> list[dict[str, Any]]:
        """The ends of saves."""
        return [event for event in self._decisions if event["decision"] in ("saved", "unsaved")]

    @property
    def warnings(self) -> list[str]:
        """What the run's events warn of."""
        return [event["reason"] for event in read_lines(self.paths.events)[0] if event["event"] == "warning"]

    @property
    def _decisions(self) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.paths.events)[0] if event["event"] == "decision"]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.paths.metrics)[0]

    def series(self, name: str) -> dict[int, float]:
        return {record["step"]: record[name] for record in self.metrics if name in record}


class Trainer:
    """Trains a recipe given as tables with live plugins, on one rank here or on several forked ones.

    It writes recipe and manifest itself: what a client does before it starts workers is tested elsewhere.
    """

    paths: RunPaths  # of the last training, also where it raised

    def __init__(self, folder: Path, module: ModuleType, fork_ranks: ForkedRanks) -> None:
        self._folder = folder
        self._module = module
        self._fork = fork_ranks

    def __call__(
        self,
        task: object,
        *plugins: object,
        ranks: int = 1,
        report: Callable[[], Any] = lambda: None,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        ties: Callable[[], Ties] = Ties,
        nodes: int = 1,
        after: RunPaths | None = None,
        **recipe: Mapping[str, Any],
    ) -> Trained:
        """recipe: tables by name. tables: tables of plugins by name. report: called on each rank after training.

        ties: makes those of a rank, on that rank. nodes: as many the ranks are told to be on. after: the run to go on
        with, from its newest good checkpoint, in another attempt.
        """
        paths = self.paths = after or create(self._folder, "test")
        attempt = 1 if after is None else next_attempt(paths)
        self._prepare(paths, task, plugins, ranks, recipe, tables or {})
        if ranks == 1:
            return Trained(paths, [(train(paths, attempt=attempt, ties=ties()), report())])

        def job(rank: int) -> Any:
            local = ranks // nodes
            world = World(rank, rank % local, rank // local, ranks, local, nodes)
            return train(paths, world=world, attempt=attempt, ties=ties()), report()

        return Trained(paths, self._fork(job, ranks))

    def _prepare(
        self,
        paths: RunPaths,
        task: object,
        plugins: Sequence[object],
        ranks: int,
        recipe: Mapping[str, Any],
        tables: Mapping[str, Any],
    ) -> None:
        train_table = {"batch_size": 8, "log_every": 1, "device": "cpu", **recipe.get("train", {})}
        data: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 0.1}, "launch": {"workers": ranks}}
        data |= {"checkpoint": {"every": "never", "at_end": False}, **recipe}
        data |= {"train": train_table, "task": {"use": "live"}}
        write_atomic(paths.recipe, freeze(data))
        instances = [Instance(name, "builtin", target) for name, target in BUILTINS if name in ("providers", "metrics")]
        instances.append(self._instance("task", "task", task, {}))
        for plugin in plugins:
            name = plugin_name(plugin)
            instances.append(self._instance(name, "plugin", plugin, tables.get(name, {})))
        write_json(paths.manifest, {"instances": [instance.to_json() for instance in instances]})

    def _instance(self, name: str, role: Any, plugin: object, table: Mapping[str, Any]) -> Instance:
        attribute = f"plugin_{len(vars(self._module))}"
        setattr(self._module, attribute, plugin)
        settings = {"on_error": getattr(plugin, "on_error", "fail"), **table}
        return Instance(name, role, f"{self._module.__name__}:{attribute}", **settings)


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_ranks: ForkedRanks) -> Iterator[Trainer]:
    """Call it with a task and plugins to train. See `Trainer`."""
    module = ModuleType(f"live_{id(monkeypatch):x}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with kept_settings():
        yield Trainer(tmp_path / "runs", module, fork_ranks)


@pytest.fixture
def inbox() -> Any:
    """Makes ties whose inbox hears signals."""
    before = {number: signal.getsignal(number) for number in range(1, signal.NSIG) if number not in (9, 19, 32, 33)}

    def make() -> Ties:
        box = Inbox()
        box.install()
        return Ties(inbox=box)

    yield make
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


# --- a task ---


class Regression:
    """Fit points with noise, 20 of them: a batch's loss is the mean over its samples."""

    samples = 20

    @staticmethod
    def points(number: int, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
        inputs = torch.randn(number, 3, generator=torch.Generator().manual_seed(seed))
        return [(row, (row.sum() + index % 3).reshape(1)) for index, row in enumerate(inputs)]

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    @hookimpl
    def build_dataset(self, split: str) -> Any:
        return {"train": self.points(self.samples), "eval": self.points(7, seed=2)}.get(split)

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: Any) -> Any:
        inputs, targets = batch
        return (model(inputs) - targets).square().mean()

    @hookimpl
    def evaluation_step(self, model: torch.nn.Module, batch: Any) -> Mapping[str, Any]:
        inputs, targets = batch
        return {"error": (model(inputs) - targets).abs().mean()}


@pytest.fixture
def regression() -> type[Regression]:
    """The task that most tests train."""
    return Regression


class Keeper:
    """A plugin that keeps the model's parameters as they are at the end."""

    parameters: list[torch.Tensor]

    @hookimpl
    def on_train_end(self, run: Any) -> None:
        type(self).parameters = [parameter.detach().clone() for parameter in run.model.parameters()]

    @classmethod
    def report(cls) -> list[list[float]]:
        """What was kept, as plain numbers."""
        return [parameter.flatten().tolist() for parameter in cls.parameters]


@pytest.fixture
def keeper() -> type[Keeper]:
    """A fresh `Keeper`: pass it as a plugin, and its `report`."""
    return type("Keeper", (Keeper,), {})
