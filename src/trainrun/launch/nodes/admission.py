"""How a node is let in: both sides say who they are, prove that they see the same run directory, and compare.

node K                                  node 0
hello  protocol, node, nodes, run   →
                                    ←   welcome  run directory, challenge       (or: refused)
proof  answer, own challenge        →
                                    ←   terms    answer, recipe hash, plugins   (or: refused)
agreed host, differences            →
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainrun.launch.nodes import trust
from trainrun.launch.nodes.channel import Channel
from trainrun.launch.nodes.wire import PROTOCOL, Message
from trainrun.rundir.paths import RunPaths

STEP = 20.0  # seconds that one message of the other side may take

_SHARE = "put run.dir (or --dir) on a file system that all nodes share, under the same path"

Compare = Callable[[RunPaths, Mapping[str, Any]], list[str]]


class Refused(Exception):
    """The other side was not let in, or did not let this side in.

    patience: seconds for which another try may still be answered differently. known: it is about this very run.
    """

    def __init__(self, reason: str, *, patience: float = 0.0, known: bool = False) -> None:
        super().__init__(reason)
        self.patience = patience
        self.known = known


@dataclass(frozen=True)
class Visitor:
    """A node that asks to be let in. `run` is the run that it was in before it lost its connection."""

    node: int
    nodes: int
    run: str | None = None

    @property
    def name(self) -> str:
        """How the node is named in messages."""
        return f"node {self.node} ({socket.gethostname()})"


@dataclass(frozen=True)
class Admitted:
    """A node that was let in: its rank, its host, and how what it has differs from what node 0 has."""

    node: int
    host: str
    differences: tuple[str, ...] = ()


def admit(
    channel: Channel, paths: RunPaths, key: str, software: Mapping[str, Any], vacant: Callable[[Visitor], None]
) -> Admitted:
    """Node 0's side. vacant: raises Refused where the visitor's place is not free or does not exist."""
    visitor = _visitor(_next(channel, "hello"))
    vacant(visitor)
    challenge = trust.challenge()
    channel.send("welcome", run_dir=str(paths.root), challenge=challenge)
    proof = _next(channel, "proof")
    if "problem" in proof:
        raise Refused(_unshared(visitor.node, proof, channel), known=True)
    challenges = (challenge, str(proof.get("challenge")))
    if not trust.same(proof.get("answer"), trust.answer(key, "other node", visitor.node, challenges)):
        raise Refused("its proof of seeing the run directory is wrong")
    channel.send("terms", answer=trust.answer(key, "node 0", visitor.node, challenges), software=dict(software))
    agreed = _next(channel, "agreed")
    return Admitted(visitor.node, str(agreed.get("host", "?")), tuple(map(str, agreed.get("differences", []))))


def enter(channel: Channel, visitor: Visitor, compare: Compare) -> RunPaths:
    """The other node's side; answers with the run. compare: how this node differs from node 0's software."""
    channel.send("hello", protocol=PROTOCOL, node=visitor.node, nodes=visitor.nodes, run=visitor.run)
    welcome = _next(channel, "welcome")
    paths = RunPaths(Path(str(welcome.get("run_dir"))))
    try:
        key = trust.read_key(paths.nodes_key)
    except trust.NotShared as error:
        channel.send("proof", problem=str(error), host=socket.gethostname())
        raise Refused(
            f"{visitor.name} does not see the run directory of node 0, {paths.root} ({error}); {_SHARE}",
            known=True,
        ) from error
    challenges = (str(welcome.get("challenge")), trust.challenge())
    answer = trust.answer(key, "other node", visitor.node, challenges)
    channel.send("proof", answer=answer, challenge=challenges[1])
    terms = _next(channel, "terms")
    if not trust.same(terms.get("answer"), trust.answer(key, "node 0", visitor.node, challenges)):
        raise Refused("who answers at the endpoint does not see the run directory that it names")
    found = compare(paths, terms["software"])
    channel.send("agreed", host=socket.gethostname(), differences=found)
    if found:
        raise Refused("\n".join(found), known=True)
    return paths


def _next(channel: Channel, kind: str) -> Message:
    message = channel.take(STEP)
    if message is None:
        raise Refused(f"the connection was lost: {channel.lost or f'no answer for {STEP:g} s'}", patience=math.inf)
    if message["kind"] == "refused":
        raise Refused(str(message.get("reason")), patience=float(message.get("patience", 0.0)))
    if message["kind"] != kind:
        raise Refused(f"it sent {message['kind']!r} where {kind!r} belongs")
    return message


def _visitor(hello: Message) -> Visitor:
    if hello.get("protocol") != PROTOCOL:
        raise Refused(
            f"it speaks another version of the protocol ({hello.get('protocol')}, node 0 {PROTOCOL}); "
            "install the same version of trainrun on all nodes"
        )
    try:
        return Visitor(int(hello["node"]), int(hello["nodes"]), hello.get("run"))
    except (KeyError, TypeError, ValueError):
        raise Refused("it does not say which node it is") from None


def _unshared(node: int, proof: Message, channel: Channel) -> str:
    who = f"node {node} ({proof.get('host', '?')}, {channel.address})"
    return f"{who} does not see the run directory: {proof['problem']}; {_SHARE}"
