"""Workers in a test: one in the test's own process, or two forked from it, which start in milliseconds."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from trainrun.builtin import BUILTINS
from trainrun.checkpoint import choose
from trainrun.marker import hookimpl
from trainrun.plugin.instance import Instance
from trainrun.recipe.freeze import freeze
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.create import create
from trainrun.rundir.files import read_lines, write_atomic, write_json
from trainrun.testing.settings import kept_settings
from trainrun.testing.targets import plugin_name
from trainrun.worker.main import train
from trainrun.worker.parent import die_with_parent
from trainrun.worker.ties import Ties
from trainrun.worker.world import World

_PATIENCE = 60.0  # seconds until forked ranks are killed
_PEERS = 10.0  # the same, once one of them has failed

Ranks = Callable[..., list[Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of torch's own would not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- several ranks ---


class _Raised(NamedTuple):
    kind: str
    message: str
    details: str


class Remote(Exception):
    """What a forked rank raised: its type's name, its text and its traceback."""

    def __init__(self, kind: str, message: str, details: str) -> None:
        super().__init__(f"{kind}: {message}\n{details}")
        self.kind = kind
        self.message = message


@pytest.fixture
def fork_ranks(tmp_path: Path) -> Ranks:
    """Call `job(rank)` in forked processes that share a gloo group; answers what each rank answered or raised.

    What comes back is pickled; an exception comes back as a `Remote`. No process is left behind.
    """
    numbers = itertools.count()

    def run(job: Callable[[int], Any], size: int = 2, *, group: bool = True) -> list[Any]:
        store = tmp_path / f"store-{next(numbers)}"
        pids: dict[int, Connection] = {}
        for rank in range(size):
            ours, theirs = Pipe(duplex=False)
            pid = os.fork()
            if pid == 0:
                _child(theirs, job, rank, size, store if group else None)
            theirs.close()
            pids[pid] = ours
        try:
            return _gathered(list(pids.values()))
        finally:
            for pid, connection in pids.items():
                connection.close()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    return run


def _child(connection: Connection, job: Callable[[int], Any], rank: int, size: int, store: Path | None) -> None:
    die_with_parent()
    try:
        if store is not None:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        answer = pickle.dumps(job(rank))
    except BaseException as error:
        answer = pickle.dumps(_Raised(type(error).__name__, str(error), traceback.format_exc()))
        connection.send_bytes(answer)
        os._exit(1)  # at once, so that peers see that it is gone
    connection.send_bytes(answer)
    signal.pause()  # peers may still need this rank's connections; the parent ends it


def _gathered(connections: Sequence[Connection]) -> list[Any]:
    answers: dict[Connection, Any] = {}
    patience = _PATIENCE
    while len(answers) < len(connections):
        ready = wait([one for one in connections if one not in answers], patience)
        if not ready:
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            answers[connection] = _received(connection)
            patience = _PEERS if isinstance(answers[connection], Remote) else patience
    return [answers.get(one, Remote("Hang", "the rank did not end in time", "")) for one in connections]


def _received(connection: Connection) -> Any:
    try:
        answer = pickle.loads(connection.recv_bytes())
    except EOFError:
        return Remote("Died", "the rank died without an answer", "")
    return Remote(*answer) if isinstance(answer, _Raised) else answer


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

    def __init__(self, folder: Path, module: ModuleType, fork_ranks: Ranks) -> None:
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
        attempt = 1 if after is None else _next_attempt(paths)
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
        data |= {"checkpoint": {"at_end": False}, **recipe}
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


def _next_attempt(paths: RunPaths) -> int:
    """What a client does before an attempt that goes on: decide from where."""
    attempt = next(number for number in itertools.count(2) if not paths.attempt(number).exists())
    paths.attempt(attempt).mkdir(parents=True)
    path = choose(paths.checkpoints).path
    write_json(paths.start(attempt), {"checkpoint": None if path is None else str(path)})
    return attempt


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_ranks: Ranks) -> Iterator[Trainer]:
    """Call it with a task and plugins to train. See `Trainer`."""
    module = ModuleType(f"live_{id(monkeypatch):x}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with kept_settings():
        yield Trainer(tmp_path / "runs", module, fork_ranks)


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
