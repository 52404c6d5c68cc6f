"""Node 0's side of the connections: it lets the other nodes in, knows which are there, and sends them requests."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from trainrun.errors import EnvironmentProblem
from trainrun.launch.ends import End
from trainrun.launch.nodes import admission, endpoint, messages, trust
from trainrun.launch.nodes.admission import Admitted, Reception, Refused, Visitor
from trainrun.launch.nodes.channel import SILENCE, Channel
from trainrun.launch.nodes.door import Door, Refusals
from trainrun.launch.nodes.endpoint import Endpoint
from trainrun.launch.nodes.messages import Ask, Ended, Message, Over, fit
from trainrun.launch.signals import Request
from trainrun.launch.terminal import Say
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome

_WISHES = 100  # that may wait to be dealt with
_LOOK = 0.1
# A node that was cut off is found to be lost only after SILENCE: until then its place seems taken.
_TAKEN = SILENCE + 5.0
_FAREWELL = 5.0  # seconds for the other nodes to take leave


@dataclass(frozen=True)
class Peer:
    """Another node that is here."""

    node: int
    host: str
    channel: Channel

    def __str__(self) -> str:
        return f"node {self.node} ({self.host}, {self.channel.address})"


class Report(NamedTuple):
    """How the workers of another node ended in one attempt."""

    code: int
    ends: tuple[End, ...]


class Wish(NamedTuple):
    """A Ctrl-C on another node, or a signal to it. `now`: not the first one."""

    request: Request
    source: str
    now: bool
    peer: Peer


@dataclass
class _Places:
    """Who is here; shared by the threads at the door and the client's own."""

    peers: dict[int, Peer] = field(default_factory=dict)
    problem: str | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)


class Hub:
    """The door and the switchboard of one run. Opened before the run exists, so that a taken port costs nothing."""

    def __init__(self, where: Endpoint, nodes: int, say: Say) -> None:
        self.where = where
        self.nodes = nodes
        self._say = say
        self._listener = endpoint.listen(where)
        self._places = _Places()
        self._refusals = Refusals(say)
        self._door: Door | None = None
        self._reports: dict[tuple[int, int], Report] = {}
        self._wishes: deque[Wish] = deque(maxlen=_WISHES)
        self._paths: RunPaths | None = None
        self._key = ""
        self._software: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, paths: RunPaths, software: Mapping[str, Any]) -> None:
        """Begin to let nodes into the run."""
        self._paths, self._software = paths, software
        self._key = trust.make_key(paths.nodes_key)
        self._door = Door(self._listener, self._greet, self._receive, self._refusals, lambda: not self.missing)
        self._door.open()

    @property
    def peers(self) -> list[Peer]:
        """Return the nodes that are here and connected, by rank.

        Node 0 itself is not among them.
        """
        with self._places.changed:
            found = sorted(self._places.peers.items())
            return [peer for _, peer in found if peer.channel.lost is None]

    @property
    def missing(self) -> list[int]:
        """Return the ranks of the nodes that are not here."""
        here = {peer.node for peer in self.peers}
        return [node for node in range(1, self.nodes) if node not in here]

    def require_agreement(self) -> None:
        """Raise EnvironmentProblem if a node that belongs here differs."""
        with self._places.changed:
            problem = self._places.problem
        if problem is not None:
            raise EnvironmentProblem(problem)

    def gather(self, seconds: float, wanted: Callable[[], bool]) -> bool:
        """Wait until all nodes are here and return True.

        Returns False if some are missing after `seconds`, or when the wait is no longer `wanted`. Raises
        EnvironmentProblem if a node differs.
        """
        deadline = time.monotonic() + seconds
        told = False
        while True:
            self.require_agreement()
            missing = self.missing
            if not missing:
                return True
            if not told:
                self._say(f"waiting for {_listed(missing)} of {self.nodes} at {self.where} ({self.present})")
                told = True
            if time.monotonic() > deadline or not wanted():
                return False
            with self._places.changed:
                self._places.changed.wait(_LOOK)

    @property
    def present(self) -> str:
        """Describe the nodes that are here."""
        here = [f"0 on {socket.gethostname()}", *(f"{peer.node} on {peer.host}" for peer in self.peers)]
        return f"present: {', '.join(here)}"

    def absence(self, seconds: float) -> str:
        """Describe the nodes that have not come within `seconds`."""
        last = self._refusals.last
        return (
            f"{_listed(self.missing)} of {self.nodes} has not come within {seconds:g} s ({self.present}) to "
            f"{endpoint.described(self.where)}" + (f"; last turned away: {last}" if last else "")
        )

    def tell(self, message: Message) -> None:
        """Send a message to every node that is here."""
        for peer in self.peers:
            peer.channel.send(message)

    def ended(self, attempt: int) -> dict[int, int]:
        """Return the exit codes of nodes whose workers have ended.

        The ends are those of this attempt. Only nodes that have reported it are included.
        """
        self._listen()
        return {node: report.code for (number, node), report in self._reports.items() if number == attempt}

    def ends(self, attempt: int, node: int) -> tuple[End, ...]:
        """Return what a node has reported of the ends of single workers."""
        report = self._reports.get((attempt, node))
        return report.ends if report else ()

    def asked(self) -> Wish | None:
        """Return the next request from another node; each request once."""
        self._listen()
        return self._wishes.popleft() if self._wishes else None

    def farewell(self, outcome: Outcome) -> None:
        """Send the nodes the outcome of the run and let them go."""
        self.tell(Over.of(outcome))
        deadline = time.monotonic() + _FAREWELL
        for peer in self.peers:
            while peer.channel.lost is None and time.monotonic() < deadline:
                peer.channel.take(_LOOK)

    def close(self) -> None:
        """End all connections and give the port back."""
        if self._door is not None:
            self._door.close()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        self._listener.close()
        for peer in self.peers:
            peer.channel.close()
        if self._paths is not None:
            trust.forget_key(self._paths.nodes_key)

    def _listen(self) -> None:
        with self._places.changed:
            known = list(self._places.peers.values())
        for peer in known:  # those that are lost too: what they said last counts
            while (message := peer.channel.take()) is not None:
                self._hear(peer, message)

    def _hear(self, peer: Peer, message: Message) -> None:
        match message:
            case Ended(attempt=attempt, code=code, ends=told):
                ends = tuple(End(rank, own, seen) for rank, own, seen in told)
                self._reports[attempt, peer.node] = Report(code, ends)
            case Ask(request=request, source=source, now=now):
                self._wishes.append(Wish(request, source, now, peer))
            case _:
                peer.channel.close(f"it sent {message.kind!r}, which is not for node 0")

    def _greet(self) -> Reception:
        assert self._paths is not None
        return Reception(self._paths, self._key)

    def _receive(self, channel: Channel, visitor: Visitor) -> None:
        """Compare with a node of this run, and let it in.

        It has proved to be of this run.
        """
        try:
            admitted = admission.agree(channel, visitor, self._software, self._require_vacant)
            self._let_in(Peer(admitted.node, admitted.host, channel), admitted)
        except Refused as refused:
            self._refusals.note(channel.address, refused)
            patience = min(refused.patience, _TAKEN)
            channel.send(messages.Refused(reason=fit(str(refused)), patience=patience))
            channel.close()

    def _require_vacant(self, visitor: Visitor) -> None:
        assert self._paths is not None
        if visitor.nodes != self.nodes:
            raise Refused(f"it was started with --nodes {visitor.nodes}, node 0 with --nodes {self.nodes}")
        if not 0 < visitor.node < self.nodes:
            raise Refused(f"--node-rank {visitor.node}: the other nodes of {self.nodes} are 1 to {self.nodes - 1}")
        if visitor.run not in {None, self._paths.run_id}:
            raise Refused(f"it belongs to run {visitor.run}, and this is {self._paths.run_id}")
        for peer in self.peers:
            if peer.node == visitor.node:
                raise Refused(f"--node-rank {visitor.node} is taken by {peer}", patience=_TAKEN)

    def _let_in(self, peer: Peer, admitted: Admitted) -> None:
        with self._places.changed:
            if admitted.differences:
                listed = "\n  ".join(admitted.differences)
                self._places.problem = f"{peer} differs from node 0:\n  {listed}"
                peer.channel.close()
            else:
                other = self._places.peers.get(peer.node)
                if other is not None and other.channel.lost is None:
                    raise Refused(f"--node-rank {peer.node} is taken by {other}", patience=_TAKEN)
                self._places.peers[peer.node] = peer
                self._refusals.forget()
            self._places.changed.notify_all()
        if not admitted.differences:
            self._say(f"{peer} is here")


def _listed(nodes: list[int]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))}"
