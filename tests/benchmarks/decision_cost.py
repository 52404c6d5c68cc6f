"""What it costs each worker at each step to learn whether there is a decision.

Two workers train the digits over gloo. Within one training the steps take turns, forwards and backwards: nothing is
asked; an empty function is called; the decisions that are due are asked for; all that the loop does before a step is
done, with signals and the client's requests. Shown are the time in place over the clock's own, the difference that it
makes to the whole step, and how many collectives a step holds.

In place, between two steps of a training, everything is out of the processor's caches, so that even an empty function
takes a while. "two nodes" is the same with one worker on each of two emulated nodes: then each leader asks the
job's store at each step, here over the loopback device.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from measure import interleave, show, spread

from trainrun.builtin import BUILTINS
from trainrun.plugin.instance import Instance
from trainrun.recipe.freeze import freeze
from trainrun.rundir import RunPaths
from trainrun.rundir.files import write_json
from trainrun.worker.main import train
from trainrun.worker.parent import die_with_parent
from trainrun.worker.session import Session
from trainrun.worker.world import World

KINDS = ("nothing", "an empty function", "decisions", "all before a step")
NOTHING, EMPTY, DUE, ALL = range(len(KINDS))
TURNS = (*range(len(KINDS)), *reversed(range(len(KINDS))))
WARM_UP = 300  # steps
PATIENCE = 300.0  # seconds for one training
WORKERS = 2


class Cost(NamedTuple):
    """Of one kind in one training, on the rank where it is larger: µs in place, µs of the whole step, collectives."""

    place: float
    step: float
    collectives: float


class Turns:
    """Stands in for `Session.begin_step`, and notes what each turn took."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.spent: list[float] = []
        self.collectives: list[int] = []
        self._whole = Session.begin_step

    def begin_step(self, session: Session) -> None:
        kind, clock = TURNS[len(self.begun) % len(TURNS)], time.perf_counter
        self.collectives.append(dist.group.WORLD._get_sequence_number_for_group())
        started = clock()
        if kind == EMPTY:
            self._nothing(session.state.step + 1)
        elif kind == DUE:
            session.state.decisions.due(session.state.step + 1)
        elif kind == ALL:
            self._whole(session)
        ended = clock()
        self.begun.append(started)
        self.spent.append(ended - started)

    def _nothing(self, step: int) -> None:
        pass

    def costs(self) -> list[Cost]:
        """Of each kind."""
        return [self._cost(kind) for kind in range(len(KINDS))]

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
    rows = [row(name, kind, rounds) for name, rounds in found.items() for kind in range(1, len(KINDS))]
    show(("2 workers on", "asked", "in place, µs", "whole step, µs more", "collectives a step", "without"), rows)


def row(name: str, kind: int, rounds: Sequence[Sequence[Cost]]) -> tuple[str, ...]:
    """Costs over those of the turns in which nothing is asked."""
    place = [costs[kind].place - costs[0].place for costs in rounds]
    step = [costs[kind].step - costs[0].step for costs in rounds]
    collectives = [statistics.median(costs[each].collectives for costs in rounds) for each in (kind, 0)]
    return (name, KINDS[kind], spread(place, 2), spread(step, 1), *(f"{count:.2f}" for count in collectives))


def trial(steps: int, nodes: int) -> list[Cost]:
    """One training; the larger of the two workers' costs."""
    with tempfile.TemporaryDirectory() as folder:
        paths = run_directory(Path(folder), steps)
        workers = forked(partial(worker, paths, nodes))
    return [max(costs, key=lambda cost: cost.place) for costs in zip(*workers, strict=True)]


def worker(paths: RunPaths, nodes: int, rank: int) -> list[Cost]:
    dist.init_process_group("gloo", init_method=f"file://{paths.root}/group", rank=rank, world_size=WORKERS)
    turns = Turns()
    Session.begin_step = lambda session: turns.begin_step(session)  # noqa: PLW0108 - a method is not bound again
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
    instances.append(Instance("digits", "task", "trainrun.examples.digits", options={"channels": 4}))
    write_json(paths.manifest, {"instances": [instance.to_json() for instance in instances]})
    return paths


def recipe(steps: int) -> dict[str, dict[str, object]]:
    return {
        "run": {"deterministic": False},
        "task": {"use": "digits"},
        "train": {"steps": steps, "batch_size": 8, "log_every": 1_000_000, "device": "cpu"},
        "evaluate": {"splits": []},
        "launch": {"workers": WORKERS},
        "optimizer": {"name": "sgd", "lr": 0.01},
    }


if __name__ == "__main__":
    main()
