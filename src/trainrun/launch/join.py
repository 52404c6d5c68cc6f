"""One launch on every node but node 0: join, start workers on request, and end as node 0 does."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from trainrun.errors import EnvironmentProblem, ExitCode, RecipeError, TrainrunError
from trainrun.launch.ends import read_records
from trainrun.launch.handle import Launch, Seat
from trainrun.launch.local import Local, LocalWorkers
from trainrun.launch.nodes import member
from trainrun.launch.nodes.admission import Refused, Visitor
from trainrun.launch.nodes.channel import Channel
from trainrun.launch.nodes.match import differences, digest, recipe_differences, software
from trainrun.launch.nodes.messages import Ask, Attempt, Dump, Ended, Kill, Message, Nudge, Over, Stop, fit
from trainrun.launch.nodes.place import Place
from trainrun.launch.preflight import Placement, place
from trainrun.launch.prepare import environment
from trainrun.launch.signals import SLACK, Signals, StopNow
from trainrun.launch.terminal import Echo, Say, Tail, shown_ranks
from trainrun.launch.watchdog import ask_for_stacks, where
from trainrun.plugin.resolve import Resolved
from trainrun.recipe.freeze import freeze
from trainrun.recipe.model import LaunchTable, Recipe
from trainrun.rundir import process, scratch
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome

_PACE = 0.05  # seconds between two looks at everything
_PATIENCE = 3.0  # seconds for node 0 to have the workers killed, after a second Ctrl-C here
_VERDICT = 30.0  # seconds for node 0 to report how the run ended, after a second Ctrl-C here


def join(resolved: Resolved, where: Place, say: Say, ranks: Echo) -> Outcome:
    """Take part in the run of node 0; return its outcome.

    Raises EnvironmentProblem if node 0 cannot be reached, or does not let this node in.
    """
    problem, recipe, placement = _own(resolved)
    timeout = _seconds(resolved)
    users = {} if recipe is None else {signal.SIGUSR1: recipe.launch.on_usr1, signal.SIGUSR2: recipe.launch.on_usr2}
    with Signals((recipe.launch.grace if recipe else 0.0) + SLACK, users) as signals:
        node = _Node(resolved, where, placement, signals, say)
        node.problem = problem
        try:
            channel, paths = node.enter(None, timeout)
        except (member.NotReached, Refused) as error:
            if problem is not None:
                raise problem from error
            if signals.stopping:
                raise _Stopped(signals.first) from error
            raise EnvironmentProblem(str(error)) from error
        assert recipe is not None
        return node.serve(channel, node.launch(recipe, paths), ranks)


class _Stopped(TrainrunError):
    """A stop was requested before there was a run to stop."""

    def __init__(self, number: signal.Signals | None) -> None:
        self.exit_code = _code(number)
        super().__init__("stopped before node 0 was reached")


class _Node:
    """This node and what it needs to come in, and to come back."""

    def __init__(
        self, resolved: Resolved, where: Place, placement: Placement | None, signals: Signals, say: Say
    ) -> None:
        self.problem: TrainrunError | None = None
        self._resolved = resolved
        self._where = where
        self._placement = placement
        self._signals = signals
        self._say = say
        self._local = Local()

    def enter(self, run: str | None, seconds: float) -> tuple[Channel, RunPaths]:
        """Find node 0 and be let in."""
        search = member.Search(self._where.where, seconds, self._say, lambda: not self._signals.stopping)
        return member.join(search, Visitor(self._where.node, self._where.nodes, run), self._compare)

    def launch(self, recipe: Recipe, paths: RunPaths) -> Launch:
        """Return the run as this node sees it.

        Secrets are those of its own recipe: node 0 sends none.
        """
        assert self._placement is not None
        shared = (read_json(paths.manifest) or {}).get("environment", {})
        own = environment(
            self._resolved, replace(self._placement, environment={**self._placement.environment, **shared})
        )
        seat = Seat(self._where.node, self._where.nodes)
        return Launch(recipe, paths, (), self._resolved, self._placement.workers, own, seat=seat)

    def serve(self, channel: Channel, launch: Launch, ranks: Echo) -> Outcome:
        """Do what node 0 says until the run is over. Lost connections are made again."""
        self._say(f"run: {launch.paths.root} (node {launch.seat.node} of {launch.seat.nodes})")
        session = _Session(self._local, launch, self._signals, _tails(launch, ranks, self._say))
        try:
            while True:
                outcome = session.run(channel)
                if outcome is not None:
                    return outcome
                lost = f"node 0 was lost: {channel.lost}"
                self._say(lost)
                try:
                    channel, _ = self.enter(launch.run_id, launch.recipe.launch.node_timeout)
                except (member.NotReached, Refused) as error:
                    if self._signals.stopping:
                        return _stopped(launch, self._signals.first, lost)
                    return _left(launch, lost, error)
        finally:
            channel.close()
            self._local.on_launch_end()
            process.clear(launch.paths.root, node=launch.seat.node)
            scratch.clear()

    def _compare(self, paths: RunPaths, first: Mapping[str, Any]) -> list[str]:
        if self.problem is not None:
            return [str(self.problem)]
        assert self._placement is not None
        name = f"node {self._where.node}"
        mine = software(self._resolved, self._placement.workers)
        found = differences(first, mine, name)
        try:
            text = paths.recipe.read_text()
        except OSError as error:
            return [*found, f"{paths.recipe}: {error.strerror}"]
        if digest(text) != first["recipe"]:
            found.append(f"{paths.recipe} is not what node 0 wrote")
        elif mine["recipe"] != first["recipe"]:
            found += recipe_differences(text, freeze(self._resolved.data, self._resolved.schema), name)
        return found


class _Session:
    """What this node does while it is connected: workers are started, watched and ended."""

    def __init__(self, local: Local, launch: Launch, signals: Signals, tails: list[Tail]) -> None:
        self._local = local
        self._launch = launch
        self._signals = signals
        self._tails = tails
        self._workers: LocalWorkers | None = None
        self._attempt = 0

    def run(self, channel: Channel) -> Outcome | None:
        """Take part until the run is over.

        Returns None when the connection was lost. Nothing of the workers is left then.
        """
        try:
            if self._launch.recipe.launch.start == "warm":
                self._local.warm(self._launch)  # so that it has imported torch when the workers are wanted
            with self._signals.breakable():
                return self._serve(channel)
        except StopNow:
            self._signals.caught()
            return self._give_up(channel)
        finally:
            self._end(channel)

    def _serve(self, channel: Channel) -> Outcome | None:
        while True:
            message = channel.take(0.0 if self._workers else _PACE)
            if isinstance(message, Over):
                return message.outcome
            if message is not None:
                self._obey(message, channel)
            elif channel.lost is not None:
                return None
            self._forward_signals(channel)
            self._look(channel)

    def _obey(self, message: Message, channel: Channel) -> None:
        match message:
            case Attempt(attempt=attempt, host=host, port=port):
                self._end(channel)
                self._attempt = attempt
                seat = self._launch.seat._replace(host=host, port=port)
                self._workers = self._local.begin(replace(self._launch, attempt=attempt, seat=seat))
            case Stop() | Nudge() | Dump() | Kill():
                if self._workers is not None and message.attempt == self._attempt:
                    self._carry_out(message, self._workers, channel)
            case _:
                channel.close(f"it sent {message.kind!r}, which is not for a node that was let in")

    def _carry_out(self, message: Stop | Nudge | Dump | Kill, workers: LocalWorkers, channel: Channel) -> None:
        match message:
            case Stop(reason=reason):
                workers.stop(reason)
            case Nudge():
                workers.nudge()
            case Dump():
                paths, ranks = self._launch.paths, self._launch.ranks
                begun = {one.rank for one in where(paths, self._attempt, ranks)}
                records = read_records(paths, self._attempt, ranks)
                ask_for_stacks([record for rank, record in records.items() if rank in begun])
            case Kill():
                self._look(channel)  # what failed here may be what the others died of
                self._end(channel)

    def _look(self, channel: Channel) -> None:
        for tail in self._tails:
            tail.poll()
        if self._workers is not None and (code := self._workers.poll()) is not None:
            self._report(channel, code)

    def _forward_signals(self, channel: Channel) -> None:
        while (asked := self._signals.asked()) is not None:
            channel.send(Ask(request=asked.request, source=fit(asked.source, 255), now=False))

    def _give_up(self, channel: Channel) -> Outcome:
        """Have everything ended, after a second Ctrl-C.

        Node 0 must hear of it before it hears of dead workers.
        """
        first = self._signals.first or signal.SIGINT
        channel.send(Ask(request="stop", source=first.name, now=True))
        began = time.monotonic()
        while channel.lost is None and time.monotonic() < began + _VERDICT:
            message = channel.take(_PACE)
            if isinstance(message, Over):
                return message.outcome
            if isinstance(message, Kill) or time.monotonic() > began + _PATIENCE:
                self._end(channel)
        self._end(channel)
        return _stopped(self._launch, first, "stopped at once")

    def _end(self, channel: Channel) -> None:
        """Kill what runs of an attempt, and report it."""
        if self._workers is not None:
            self._workers.kill()
            self._report(channel, 1)

    def _report(self, channel: Channel, code: int) -> None:
        assert self._workers is not None
        ends = [(end.rank, end.code, end.seen_ns) for end in self._workers.ends.values()]
        channel.send(Ended(attempt=self._attempt, code=code, ends=ends))
        self._workers = None
        for tail in self._tails:
            tail.finish()


def _own(resolved: Resolved) -> tuple[TrainrunError | None, Recipe | None, Placement | None]:
    """Return the error of this node, if any, otherwise its recipe and placement.

    Node 0 should get the error before this node ends.
    """
    try:
        resolved.require()
        recipe = Recipe.from_data(resolved.data)
        return None, recipe, place(recipe)
    except (RecipeError, EnvironmentProblem) as error:
        return error, None, None


def _seconds(resolved: Resolved) -> float:
    """Return the time to look for node 0.

    It is as the recipe says, as far as that can be read.
    """
    with suppress(TypeError, ValueError, KeyError):
        return float(resolved.data["launch"]["node_timeout"])
    return LaunchTable().node_timeout


def _tails(launch: Launch, ranks: Echo, say: Say) -> list[Tail]:
    size = launch.workers * launch.seat.nodes
    own = [rank for rank in shown_ranks(ranks, size) if rank in launch.ranks]
    return [Tail(launch.paths.rank_output(rank), f"[rank {rank}] ", say, from_end=True) for rank in own]


def _left(launch: Launch, lost: str, error: Exception) -> Outcome:
    """Return the outcome of a node that could not come back."""
    return Outcome(
        state="failed",
        exit_code=int(ExitCode.RESUMABLE),
        reason=f"{lost}; {error}",
        ended=time.time(),
        run=str(launch.paths.root),
        cause="node",
    )


def _stopped(launch: Launch, number: signal.Signals | None, reason: str) -> Outcome:
    """Return the outcome of a stop here, without node 0."""
    return Outcome(
        state="interrupted" if number == signal.SIGINT else "terminated",
        exit_code=int(_code(number)),
        reason=reason,
        ended=time.time(),
        run=str(launch.paths.root),
    )


def _code(number: signal.Signals | None) -> ExitCode:
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
