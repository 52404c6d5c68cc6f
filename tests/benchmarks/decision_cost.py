"""What it costs each worker at each step to learn whether there is a decision.

Two workers train a small network over gloo. Within one training the steps take turns in the order ABBA: what the loop
does before a step is done as it is, or without what concerns decisions. Shown is by how much the first takes longer,
by how much the whole step then does, and how many collectives a step holds.

Between two steps of a training everything is out of the processor's caches, and what other processes do to these shows.
"two nodes" is the same with one worker on each of two emulated nodes: then each leader asks the job's store at each
step, here over the loopback device.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import multiprocessing
import os
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from measure import interleave, show, spread
from workload import BATCH_SIZE, Batch, build_model, loss_of

from trainrun import hookimpl
from trainrun.builtin import BUILTINS
from trainrun.plugin.instance import Instance
from trainrun.recipe.freeze import freeze
from trainrun.rundir import RunPaths
from trainrun.rundir.files import write_json
from trainrun.worker.main import train
from trainrun.worker.parent import die_with_parent
from trainrun.worker.session import Session
from trainrun.worker.world import World

WITH, WITHOUT = 0, 1
TURNS = (WITH, WITHOUT, WITHOUT, WITH)
WARM_UP = 300  # steps
PATIENCE = 300.0  # seconds for one training
WORKERS = 2


class Cost(NamedTuple):
    """Of one kind of turns in one training, by rank: µs before a step, µs of the whole step, collectives in it."""

    before: float
    step: float
    collectives: float


class Work:
    """The task."""

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return build_model()

    @hookimpl
    def build_dataset(self, split: str) -> list[Batch] | None:
        samples = 64 * WORKERS * BATCH_SIZE
        return [(torch.randn(64), torch.tensor(0)) for _ in range(samples)] if split == "train" else None

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return loss_of(model, batch)


class Turns:
    """Stands in for `Session.begin_step`, and notes what each turn took."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.spent: list[float] = []
        self.collectives: list[int] = []
        self._kinds = (Session.begin_step, without_decisions(Session.begin_step))

    def begin_step(self, session: Session) -> None:
        begin_step, clock = self._kinds[TURNS[len(self.begun) % len(TURNS)]], time.perf_counter
        self.collectives.append(dist.group.WORLD._get_sequence_number_for_group())
        started = clock()
        begin_step(session)
        ended = clock()
        self.begun.append(started)
        self.spent.append(ended - started)

    def costs(self) -> list[Cost]:
        """Of both kinds."""
        return [self._cost(WITH), self._cost(WITHOUT)]

    def _cost(self, kind: int) -> Cost:
        places = [at for at in range(WARM_UP, len(self.begun) - 1) if TURNS[at % len(TURNS)] == kind]
        return Cost(
            statistics.median(self.spent[at] for at in places) * 1e6,
            statistics.median(self.begun[at + 1] - self.begun[at] for at in places) * 1e6,
            statistics.mean(self.collectives[at + 1] - self.collectives[at] for at in places),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads of torch's own would not survive the fork

    hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(hosted.port)}
    found = interleave(
        {name: partial(trial, arguments.steps, nodes) for nodes, name in ((1, "one node"), (2, "two nodes"))},
        arguments.rounds,
    )
    rows = [row(name, rounds) for name, rounds in found.items()]
    show(("2 workers on", "a step's decisions, µs", "whole step, µs", "collectives a step", "without"), rows)


def row(name: str, rounds: Sequence[Sequence[Sequence[Cost]]]) -> tuple[str, ...]:
    """Medians over rounds and workers."""
    pairs = [pair for workers in rounds for pair in workers]
    before = [pair[WITH].before - pair[WITHOUT].before for pair in pairs]
    step = [pair[WITH].step - pair[WITHOUT].step for pair in pairs]
    collectives = [statistics.median(pair[kind].collectives for pair in pairs) for kind in (WITH, WITHOUT)]
    return (name, spread(before, 2), spread(step, 1), *(f"{count:.2f}" for count in collectives))


def trial(steps: int, nodes: int) -> list[list[Cost]]:
    """One training; the costs of each worker."""
    with tempfile.TemporaryDirectory() as folder:
        return forked(partial(worker, run_directory(Path(folder), steps), nodes))


def without_decisions(method: Callable[[Session], None]) -> Callable[[Session], None]:
    """The same method, less the statements that speak of decisions."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    docstring, *statements = function.body
    function.body = [docstring, *(each for each in statements if "decisions" not in ast.unparse(each))]
    assert len(function.body) < len(statements)
    names = dict(method.__globals__)
    exec(compile(tree, "<without decisions>", "exec"), names)
    return cast("Callable[[Session], None]", names[function.name])


def worker(paths: RunPaths, nodes: int, rank: int) -> list[Cost]:
    dist.init_process_group("gloo", init_method=f"file://{paths.root}/group", rank=rank, world_size=WORKERS)
    turns = Turns()
    Session.begin_step = lambda session: turns.begin_step(session)  # noqa: PLW0108 - a bound method is not bound again
    local = WORKERS // nodes
    train(paths, world=World(rank, rank % local, rank // local, WORKERS, local, nodes))
    return turns.costs()


def forked(job: Callable[[int], list[Cost]]) -> list[list[Cost]]:
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(WORKERS)]
    processes = [
        context.Process(target=rank_main, args=(job, rank, ends[1]), daemon=True) for rank, ends in enumerate(pipes)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    try:
        return [answer(ours) for ours, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def rank_main(job: Callable[[int], list[Cost]], rank: int, connection: Connection) -> None:
    die_with_parent()
    connection.send(job(rank))
    wait([connection])  # the other may still need this one's connections; the parent ends it


def answer(connection: Connection) -> list[Cost]:
    if not connection.poll(PATIENCE):
        raise TimeoutError("a worker did not end")
    costs: list[Cost] = connection.recv()
    return costs


def run_directory(root: Path, steps: int) -> RunPaths:
    """What a launch would have written."""
    paths = RunPaths(root)
    paths.logs.mkdir()
    paths.attempt(1).mkdir(parents=True)
    paths.recipe.write_text(freeze(recipe(steps)), encoding="utf-8")
    instances = [Instance(name, "builtin", target) for name, target in BUILTINS if name in ("providers", "metrics")]
    instances.append(Instance("work", "task", f"{__name__}:Work"))
    write_json(paths.manifest, {"instances": [instance.to_json() for instance in instances]})
    return paths


def recipe(steps: int) -> dict[str, dict[str, object]]:
    return {
        "run": {"deterministic": False},
        "task": {"use": "work"},
        "train": {"steps": steps, "batch_size": WORKERS * BATCH_SIZE, "log_every": 1_000_000, "device": "cpu"},
        "evaluate": {"splits": []},
        "launch": {"workers": WORKERS},
        "optimizer": {"name": "sgd", "lr": 0.01},
    }


if __name__ == "__main__":
    main()
