"""How a node joins: both sides prove that they see the same run directory, and then compare what they train with.

node K                                  node 0
hello  protocol, node, nodes, run   →
                                    ←   welcome  run directory, challenge       (or: refused)
proof  answer, own challenge        →                                           (or: unseen)
                                    ←   proved   answer
                                    ←   terms    recipe hash, plugins           (or: refused)
agreed host, differences            →                                           (or: refused)

Until `proof` and `proved` any process may be at the other end. What it says then is bounded in size, number and time,
and ends no launch: it is reported, and the launch waits for the right node. See `launch.nodes.door` for node 0's side.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from trainrun.launch.nodes import messages, trust
from trainrun.launch.nodes.channel import Channel
from trainrun.launch.nodes.messages import (
    PROTOCOL,
    SMALL,
    Agreed,
    Hello,
    Lines,
    Message,
    Proof,
    Proved,
    Software,
    Terms,
    Unseen,
    Welcome,
    WireError,
    encode,
    fit,
)
from trainrun.rundir.paths import RunPaths

STEP = 20.0  # seconds that one message of the other side may take

_SHARE = "put run.dir (or --dir) on a file system that all nodes share, under the same path"
_READ = 4096
_LOOK = 0.1
_DIFFERENCES = 100

Compare = Callable[[RunPaths, Mapping[str, Any]], list[str]]
M = TypeVar("M", bound=Message)


class Refused(Exception):
    """The other side was not let in, or did not let this side in.

    patience: seconds for which another try may still end otherwise; infinite if this side must not give up, because the
    other one has not proved who it is.
    """

    def __init__(self, reason: str, *, patience: float = 0.0) -> None:
        super().__init__(reason)
        self.patience = patience


class NotShared(Refused):
    """The other side says that it does not see the run directory."""


@dataclass(frozen=True)
class Visitor:
    """A node that asks to be let in. `run` is the run that it was in before it lost its connection."""

    node: int
    nodes: int
    run: str | None = None

    @property
    def name(self) -> str:
        """Return the node's name for messages."""
        return f"node {self.node} ({socket.gethostname()})"


@dataclass(frozen=True)
class Admitted:
    """A node that was let in: its rank, its host, and how what it has differs from what node 0 has."""

    node: int
    host: str
    differences: tuple[str, ...] = ()


class Reception:
    """Node 0's side of one connection until the other side has proved that it sees the run directory.

    `visitor` is who it says that it is. `proved`: whether it has proved that it belongs to this run.
    """

    def __init__(self, paths: RunPaths, key: str) -> None:
        self.visitor: Visitor | None = None
        self.proved = False
        self._paths = paths
        self._key = key
        self._challenge = trust.challenge()

    def reply(self, message: Message) -> Message:
        """Return what to send. Raise `Refused` for a message that does not belong here."""
        if self.visitor is None:
            self.visitor = _visitor(_expect(message, Hello))
            return Welcome.to(self._paths.root, self._challenge)
        if isinstance(message, Unseen):
            raise NotShared(
                f"node {self.visitor.node} ({message.host}) does not see the run directory: {message.problem}; {_SHARE}"
            )
        proof = _expect(message, Proof)
        challenges = (self._challenge, proof.challenge)
        if not trust.same(proof.answer, trust.answer(self._key, "other node", self.visitor.node, challenges)):
            raise Refused("its proof of seeing the run directory is wrong")
        self.proved = True
        return Proved(answer=trust.answer(self._key, "node 0", self.visitor.node, challenges))


def agree(
    channel: Channel, visitor: Visitor, software: Mapping[str, Any], vacant: Callable[[Visitor], None]
) -> Admitted:
    """Compare with a node that has proved to be of this run.

    vacant: raises Refused if the visitor's place is not free or does not exist.
    """
    vacant(visitor)
    channel.send(Terms(software=Software.model_validate(software)))
    agreed = _take(channel, Agreed)
    return Admitted(visitor.node, agreed.host, tuple(agreed.differences))


def enter(
    connection: socket.socket, visitor: Visitor, compare: Compare, wanted: Callable[[], bool]
) -> tuple[Channel, RunPaths]:
    """Join the run of node 0.

    Returns the connection to it, and the run. Raises Refused, and OSError for a lost connection.

    compare: returns how this node differs from node 0's software.
    wanted: whether the caller still waits for this.
    """
    caller = _Caller(connection, wanted)
    try:
        paths = _prove(caller, visitor)
    except WireError as error:
        connection.close()
        raise Refused(f"what listens there sent {error}", patience=math.inf) from error
    except (Refused, OSError):
        connection.close()
        raise
    channel = Channel(connection, caller.lines)
    try:
        _compare(channel, paths, compare)
    except Refused:
        channel.close()
        raise
    return channel, paths


def _prove(caller: _Caller, visitor: Visitor) -> RunPaths:
    """Prove to node 0 that this node sees the run directory.

    Returns the run. Has node 0 prove the same.
    """
    caller.send(Hello(protocol=PROTOCOL, node=visitor.node, nodes=visitor.nodes, run=visitor.run))
    welcome = caller.next(Welcome)
    paths = RunPaths(welcome.root)
    key = _key(caller, visitor, paths)
    challenges = (welcome.challenge, trust.challenge())
    answer = trust.answer(key, "other node", visitor.node, challenges)
    caller.send(Proof(answer=answer, challenge=challenges[1]))
    proved = caller.next(Proved)
    if not trust.same(proved.answer, trust.answer(key, "node 0", visitor.node, challenges)):
        raise Refused("what listens there does not see the run directory that it names", patience=math.inf)
    return paths


class _Caller:
    """The joining node's side of a connection until node 0 has proved that it is node 0."""

    def __init__(self, connection: socket.socket, wanted: Callable[[], bool]) -> None:
        self.lines = Lines(SMALL)
        self._connection = connection
        self._wanted = wanted

    def send(self, message: Message) -> None:
        self._connection.settimeout(STEP)
        self._connection.sendall(encode(message))

    def next(self, kind: type[M]) -> M:
        """Return the next message, which must be of this kind."""
        deadline, data = time.monotonic() + STEP, b""
        while True:
            for message in self.lines.feed(data):
                if isinstance(message, messages.Refused):  # the other side has proved nothing
                    raise Refused(message.reason, patience=math.inf)
                return _expect(message, kind, patience=math.inf)
            data = self._receive(deadline)

    def _receive(self, deadline: float) -> bytes:
        self._connection.settimeout(_LOOK)
        while time.monotonic() < deadline and self._wanted():
            try:
                data = self._connection.recv(_READ)
            except TimeoutError:
                continue
            if not data:
                raise Refused("it closed the connection", patience=math.inf)
            return data
        raise Refused(f"no message came for {STEP:g} s", patience=math.inf)


def _key(caller: _Caller, visitor: Visitor, paths: RunPaths) -> str:
    try:
        return trust.read_key(paths.nodes_key)
    except trust.NotShared as error:
        caller.send(Unseen(problem=fit(str(error), 1000), host=fit(socket.gethostname(), 255)))
        raise Refused(
            f"{visitor.name} does not see the run directory of node 0, {paths.root} ({error}); {_SHARE}",
            patience=math.inf,
        ) from error


def _compare(channel: Channel, paths: RunPaths, compare: Compare) -> None:
    terms = _take(channel, Terms)
    found = [fit(difference) for difference in compare(paths, terms.software.model_dump())[:_DIFFERENCES]]
    channel.send(Agreed(host=fit(socket.gethostname(), 255), differences=found))
    if found:
        raise Refused("\n".join(found))


def _take(channel: Channel, kind: type[M]) -> M:
    """Return the next message of a side that has proved who it is."""
    message = channel.take(STEP)
    if message is None:
        raise Refused(f"the connection was lost: {channel.lost or f'no message for {STEP:g} s'}", patience=math.inf)
    if isinstance(message, messages.Refused):
        raise Refused(message.reason, patience=message.patience)
    return _expect(message, kind)


def _expect(message: Message, kind: type[M], *, patience: float = 0.0) -> M:
    if not isinstance(message, kind):
        raise Refused(f"it sent {message.kind!r} instead of {kind.__name__.lower()!r}", patience=patience)
    return message


def _visitor(hello: Hello) -> Visitor:
    if hello.protocol != PROTOCOL:
        raise Refused(
            f"it speaks another version of the protocol ({hello.protocol}, node 0 {PROTOCOL}); "
            "install the same version of trainrun on all nodes"
        )
    if hello.node is None or hello.nodes is None:
        raise Refused("it does not say which node it is")
    return Visitor(hello.node, hello.nodes, hello.run)
