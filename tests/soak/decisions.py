"""Thousands of decisions from all ranks of two emulated nodes: does every rank apply each at the same step?

The nodes' ranks are processes on this machine that train together over gloo; they share memory with their own node's
ranks only, and meet the others in the gradient reduction and in a store. Everything around the steps jitters.

    python tests/soak/decisions.py --posts 100000

Prints what was applied, and ends with 1 if anything was applied at different steps, lost, or applied twice.
`--delay 2` shows what a delay without the second hop would do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainrun.worker.decisions import Decision, Decisions, open_decisions
from trainrun.worker.parallel import Collectives
from trainrun.worker.parent import die_with_parent
from trainrun.worker.world import World

POSTS_A_STEP = 2.0  # of each rank, about
PATIENCE = 120.0  # seconds without the end of any rank, over the time that the posts may take


@dataclass
class Report:
    """What one rank posted, by name and step (None from another thread), and what it applied at which step, and how."""

    posted: dict[str, int | None] = field(default_factory=dict)
    applied: list[tuple[int, str, list[Decision]]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """nodes, ranks: how many nodes with how many ranks each. delay: instead of the right one."""

    folder: Path
    port: int
    nodes: int = 2
    ranks: int = 2
    posts: int = 3000
    delay: int | None = None

    @property
    def steps(self) -> int:
        return int(self.posts / (self.nodes * self.ranks * POSTS_A_STEP)) + 1

    @property
    def right_delay(self) -> int:
        return 2 if self.nodes == 1 else 3

    def world(self, rank: int) -> World:
        return World(rank, rank % self.ranks, rank // self.ranks, self.nodes * self.ranks, self.ranks, self.nodes)


@contextmanager
def store() -> Iterator[int]:
    """A store as torchrun's first agent hosts it; gives its port."""
    hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield hosted.port
    del hosted


def training(plan: Plan) -> Callable[[int], Report]:
    """The job of each rank, which must have a process group already."""

    def job(rank: int) -> Report:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(plan.port)}
        torch.set_num_threads(1)
        world = plan.world(rank)
        collectives = Collectives(world, torch.device("cpu"), dist.default_pg_timeout)
        path = plan.folder / f"decisions-{world.node_rank}"
        decisions = open_decisions(path, f"soak/{world.node_rank}", collectives, cuda=False)
        if plan.delay is not None:
            decisions._delay = plan.delay
        rank_training = Training(plan, decisions, rank)
        for step in range(1, plan.steps + 1):
            rank_training.step(step)
        rank_training.settle("end")
        return rank_training.report

    return job


class Training:
    """One rank: forward, backward and reduction are real, what happens around them is drawn by lot."""

    def __init__(self, plan: Plan, decisions: Decisions, rank: int) -> None:
        self.plan = plan
        self.decisions = decisions
        self.rank = rank
        self.report = Report()
        self.own = random.Random(1000 + rank)
        self.common = random.Random(7)  # what all ranks do alike
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        self.model = DistributedDataParallel(self.net)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def step(self, step: int) -> None:
        decisions = self.decisions
        decisions.step = step
        due = decisions.due(step) if decisions.more or decisions.written != decisions.read else []  # as the loop does
        self._note("due", due)
        if self.plan.delay is None and any(decision.reason == "evaluate" for decision in due):
            self._evaluate()  # as a voted evaluation: at the start of the step, and it settles
        self._post_some(0.5)
        self._update(micro_batches=self.common.choice((1, 1, 3)), skipped=self.common.random() < 0.1)
        self._post_some(0.5)
        if self.common.random() < 0.05:
            self._evaluate()
        self._post_some(0.3)

    def settle(self, how: str) -> None:
        """Until nothing is left, as the session does: what is applied may post again."""
        while settled := self.decisions.settle():
            self._note(how, settled)
            if self.own.random() < 0.2 and settled[0].hook != "again":
                self._post("again")

    def _evaluate(self) -> None:
        with torch.no_grad():
            for _ in range(self.own.randrange(3)):
                self.net(torch.ones(4, 8))
                self._jitter()
        self._post_some(0.5)
        self.settle("settle")

    def _update(self, *, micro_batches: int, skipped: bool) -> None:
        for index in range(micro_batches):
            with nullcontext() if index == micro_batches - 1 else self.model.no_sync():
                loss = self.model(torch.ones(4, 8)).sum()
                self._post_some(0.1)
                loss.backward()
            self._jitter()
        if not skipped:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _post_some(self, likely: float) -> None:
        self._jitter()
        while self.own.random() < likely:
            self._post("h")
        if self.own.random() < 0.02:
            thread = threading.Thread(target=self._post, args=("thread",))
            thread.start()
            thread.join()

    def _post(self, hook: str) -> None:
        name = f"{self.rank}.{len(self.report.posted)}"
        reason = "evaluate" if self.own.random() < 0.005 else "x" * self.own.choice((0, 10, 300, 2000))
        self.report.posted[name] = None if hook == "thread" else self.decisions.step
        self.decisions.post("stop", name, hook, reason)

    def _jitter(self) -> None:
        if self.own.random() < 0.3:
            os.sched_yield()
        if self.own.random() < 0.1:
            for _ in range(self.own.randrange(30_000)):
                pass

    def _note(self, how: str, decisions: list[Decision]) -> None:
        if decisions:
            self.report.applied.append((self.decisions.step, how, decisions))


def problems(plan: Plan, reports: Sequence[Report]) -> list[str]:
    """What went wrong, in words; nothing if nothing did."""
    places = [_places(report) for report in reports]
    posted = {name: step for report in reports for name, step in report.posted.items()}
    split = [name for name in posted if len({tuple(place[name]) for place in places}) > 1]
    found = [f"{name} was applied at {[place[name] for place in places]}" for name in split]
    found += [f"{name} was never applied" for name in posted if not places[0][name]]
    found += [f"{name} was applied twice" for name in posted if len(places[0][name]) > 1]
    if not found and any(report.applied != reports[0].applied for report in reports):
        found.append("the ranks applied the same decisions in different orders")
    for step, how, decisions in reports[0].applied:
        found += _mistimed(plan, step, how, decisions, posted)
    return found


def _places(report: Report) -> dict[str, list[tuple[int, str]]]:
    """Where each decision was applied: at which step, and how."""
    places: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for step, how, decisions in report.applied:
        for decision in decisions:
            places[decision.plugin].append((step, how))
    return places


def _mistimed(
    plan: Plan, step: int, how: str, decisions: Sequence[Decision], posted: dict[str, int | None]
) -> Iterator[str]:
    for decision in decisions:
        stamped = posted[decision.plugin]
        if stamped is not None and stamped != decision.step:
            yield f"{decision.plugin} was posted at {stamped} and stamped {decision.step}"
        if how == "due" and decision.step != step - (plan.delay or plan.right_delay):
            yield f"{decision.plugin} was posted at {decision.step} and applied at {step}"


# --- as a script ---


def forked(plan: Plan, job: Callable[[int], Report], patience: float) -> list[Report]:
    """Run a job on all ranks; none outlives this call. Raises TimeoutError, or EOFError where a rank died."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(plan.nodes * plan.ranks)]
    workers = [
        context.Process(target=_rank, args=(plan, job, rank, ends[1]), daemon=True) for rank, ends in enumerate(pipes)
    ]
    for worker, (_, theirs) in zip(workers, pipes, strict=True):
        worker.start()
        theirs.close()
    try:
        return _gathered([ours for ours, _ in pipes], time.monotonic() + patience)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _rank(plan: Plan, job: Callable[[int], Report], rank: int, answer: Connection) -> None:
    die_with_parent()
    init = f"file://{plan.folder}/group"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=plan.nodes * plan.ranks)
    answer.send(job(rank))
    threading.Event().wait()  # its peers may still need its connections; the parent ends it


def _gathered(connections: Sequence[Any], deadline: float) -> list[Report]:
    answers: dict[Any, Report] = {}
    while len(answers) < len(connections):
        ready = wait([one for one in connections if one not in answers], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError("some ranks never came to an end: they wait for one another")
        answers |= {one: one.recv() for one in ready}
    return [answers[one] for one in connections]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2, help="of each node")
    parser.add_argument("--delay", type=int, help="instead of the right one")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, store() as port:
        plan = Plan(Path(folder), port, arguments.nodes, arguments.ranks, arguments.posts, arguments.delay)
        reports = forked(plan, training(plan), PATIENCE + arguments.posts / 100)
    found = problems(plan, reports)
    ways = Counter(how for _, how, decisions in reports[0].applied for _ in decisions)
    print(  # noqa: T201 - what a script is for
        f"{plan.nodes} nodes of {plan.ranks} ranks, {plan.steps} steps, {time.monotonic() - started:.0f} s: "
        f"{sum(len(report.posted) for report in reports)} posted; applied when due {ways['due']}, "
        f"at evaluations {ways['settle']}, at the end {ways['end']}; wrong: {len(found)}"
    )
    sys.exit("\n".join(found[:10]) if found else 0)


if __name__ == "__main__":
    main()
