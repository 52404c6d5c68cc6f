"""What strangers do at the port of node 0, and what one does that sits there in place of node 0."""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainrun.launch.nodes import member
from trainrun.launch.nodes.admission import Visitor
from trainrun.launch.nodes.endpoint import Endpoint
from trainrun.launch.nodes.hub import Hub
from trainrun.launch.nodes.messages import LIMIT, PROTOCOL
from trainrun.rundir import create

if TYPE_CHECKING:
    from conftest import Cluster, Node

SOON = 5.0  # seconds in which a node comes in whoever else is there; it takes some milliseconds where nothing is slow
PATIENCE = 20.0
EVIL = "\x1b]0;OWNED\x07\nfinished: your disk is on fire \x9b31m\u202e\x7f"
HEX = "0123456789abcdef" * 4
SOFTWARE = {"recipe": "1", "plugins": [], "versions": {}, "workers": 1}
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

HELLO = {"kind": "hello", "protocol": PROTOCOL, "node": 1, "nodes": 2, "run": None}
TEMPLATES: list[dict[str, Any]] = [
    HELLO,
    {"kind": "hello", "protocol": 1, "node": 1, "nodes": 2, "run": None},
    {"kind": "proof", "answer": HEX, "challenge": HEX},
    {"kind": "unseen", "problem": EVIL, "host": "\x1b[5mevil"},
    {"kind": "proof", "problem": EVIL, "host": "\x1b[5mevil"},
    {"kind": "welcome", "run_dir": "/nowhere", "challenge": HEX},
    {"kind": "proved", "answer": HEX},
    {"kind": "refused", "reason": EVIL, "patience": 1.0},
    {"kind": "terms", "software": SOFTWARE},
    {"kind": "agreed", "host": EVIL, "differences": [EVIL]},
    {"kind": "over", "outcome": {"state": "failed", "exit_code": 1, "reason": EVIL}},
    {"kind": "ended", "attempt": 1, "code": 1, "ends": [[0, 1, 1]]},
    {"kind": "ask", "request": "stop", "source": EVIL, "now": True},
    {"kind": "kill", "attempt": 1},
    {"kind": "beat", "now": 1},
]
VALUES: list[Any] = [
    None, True, -1, 0, 1e308, float("inf"), float("nan"), 10**400, "abc", "", EVIL, "\ud800", "x" * 5000,
    [], {}, [[]], {"a": {}}, "/" + "../" * 50, "\0", HEX, HEX.upper(),
]  # fmt: skip


def hostile(chance: random.Random) -> bytes:
    """One message that no node sends, or that does not belong where it comes."""
    if chance.random() < 0.15:
        return chance.choice(
            [
                b"GET / HTTP/1.1\r\n\r\n",
                b"\0" * 50 + b"\n",
                b"[" * 9000 + b"\n",
                b"\n",
                b'{"kind":"beat","now":' + b"9" * 5000 + b"}\n",
            ]
        )
    said = dict(chance.choice(TEMPLATES))
    for _ in range(chance.randrange(3)):
        said[chance.choice([*said, "more"])] = chance.choice(VALUES)
    line = json.dumps(said).encode() + b"\n"
    if chance.random() < 0.1:
        at = chance.randrange(len(line))
        line = line[:at] + chance.randbytes(3) + line[at:]
    return line


class Strangers:
    """Connections to a port that do what they should not; `sent` counts messages."""

    def __init__(self, port: int, seed: int) -> None:
        self.sent = 0
        self._port = port
        self._chance = random.Random(seed)
        self._kept: list[socket.socket] = []

    def send(self, messages: int) -> None:
        """Send so many messages over as many connections as it takes, while the port is open."""
        while self.sent < messages:
            try:
                connection = self.connect()
            except ConnectionRefusedError:
                return
            with suppress(OSError), closing(connection):
                connection.settimeout(PATIENCE)
                self._misbehave(connection)

    def stay(self, connections: int) -> None:
        """Open connections, say nothing on most of them, and stay."""
        for number in range(connections):
            self._kept.append(self.connect())
            if number % 4 == 0:
                with suppress(OSError):
                    self._kept[-1].sendall(json.dumps(HELLO).encode() + b"\n")

    def flood(self) -> int:
        """Send a message without an end; returns how many bytes went out before the connection was closed."""
        sent = 0
        with suppress(OSError), closing(self.connect()) as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(b'{"kind":"beat","now":1')
            while sent < 256 * LIMIT:
                sent += connection.send(b" " * 65536)
        return sent

    def leave(self) -> None:
        """Close what stayed."""
        for connection in self._kept:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)

    def _misbehave(self, connection: socket.socket) -> None:
        if self._chance.random() < 0.5:
            self._say(connection, json.dumps(HELLO).encode() + b"\n")
        line = hostile(self._chance)
        match self._chance.randrange(8):
            case 0:  # byte by byte
                for at in range(min(len(line), 200)):
                    connection.sendall(line[at : at + 1])
                self.sent += 1
            case 1:  # half closed
                self._say(connection, line)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)
            case 2:  # reset
                self._say(connection, line)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case 3:  # several at once
                self._say(connection, line + hostile(self._chance) + hostile(self._chance))
            case _:
                self._say(connection, line)

    def _say(self, connection: socket.socket, data: bytes) -> None:
        self.sent += 1
        connection.sendall(data)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def where() -> Endpoint:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Endpoint("127.0.0.1", server.getsockname()[1])


@pytest.fixture
def hub(tmp_path: Path, where: Endpoint, said: list[str]) -> Iterator[Hub]:
    with Hub(where, 2, said.append) as made:
        made.open(create(tmp_path / "runs", "test"), SOFTWARE)
        yield made


def enter(where: Endpoint, said: list[str], stack: ExitStack, seconds: float = PATIENCE) -> float:
    """Come in as node 1; returns how long that took."""
    began = time.monotonic()
    channel, _ = member.join(member.Search(where, seconds, said.append, lambda: True), Visitor(1, 2), lambda *_: [])
    stack.callback(channel.close)
    return time.monotonic() - began


@pytest.mark.parametrize("messages", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_nothing_that_strangers_send_does_anything(hub: Hub, where: Endpoint, said: list[str], messages: int) -> None:
    threads = threading.active_count()
    strangers = Strangers(where.port, seed=messages)
    strangers.send(messages)
    assert strangers.sent >= messages
    assert threading.active_count() <= threads
    hub.require_agreement()
    assert hub.missing == [1]
    assert len(said) <= 10 + 5
    assert said[9].endswith("; more of them are only counted")
    assert max(map(len, said)) < 5000
    assert not [line for line in said if "\n" in line]
    assert len(hub.absence(1)) < 5000
    with ExitStack() as stack:
        assert enter(where, said, stack) < SOON
        assert hub.gather(PATIENCE, lambda: True)


def test_a_node_comes_in_past_those_that_stay(hub: Hub, where: Endpoint, said: list[str]) -> None:
    threads, strangers = threading.active_count(), Strangers(where.port, seed=1)
    with ExitStack() as stack:
        stack.callback(strangers.leave)
        strangers.stay(200)
        assert threading.active_count() <= threads
        assert enter(where, [], stack) < SOON
        assert hub.gather(PATIENCE, lambda: True)
        strangers.stay(200)  # and with all here it stays so
        assert hub.missing == []
        assert threading.active_count() <= threads + 2  # the two ends of the one channel
    assert len(said) < 20


def test_a_node_comes_in_while_others_flood(hub: Hub, where: Endpoint, said: list[str]) -> None:
    over, strangers = threading.Event(), [Strangers(where.port, seed) for seed in range(3)]
    sent: list[int] = []

    def attack(one: Strangers) -> None:
        while not over.is_set():
            sent.append(one.flood())
            one.send(one.sent + 50)

    crowd = [threading.Thread(target=attack, args=[one]) for one in strangers]
    with ExitStack() as stack:
        for thread in crowd:
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        assert enter(where, [], stack) < SOON
        assert hub.gather(PATIENCE, lambda: True)
    assert max(sent) < 64 * 1024 * 1024  # what fits into the kernel's buffers, and no more
    hub.require_agreement()


def test_a_proof_of_another_connection_is_worth_nothing(hub: Hub, where: Endpoint) -> None:
    """Node 0's own answers, sent back to it."""
    with closing(Strangers(where.port, 0).connect()) as connection, connection.makefile() as answers:
        connection.sendall(json.dumps(HELLO).encode() + b"\n")
        welcome = json.loads(answers.readline())
        proof = {"kind": "proof", "answer": welcome["challenge"], "challenge": welcome["challenge"]}
        connection.sendall(json.dumps(proof).encode() + b"\n")
        refused = json.loads(answers.readline())
    assert (refused["kind"], refused["reason"]) == ("refused", "its proof of seeing the run directory is wrong")
    assert hub.missing == [1]


# --- in place of node 0 ---

WELCOME = {"kind": "welcome", "run_dir": "/nowhere%1B%5D0;x", "challenge": HEX}
COORDINATORS: dict[str, list[bytes]] = {
    "silent": [],
    "closes": [b""],
    "garbage": [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "flood": [b" " * 65536] * 1000,
    "beats": [b'{"kind":"beat","now":1}\n'] * 1000,
    "refuses": [json.dumps({"kind": "refused", "reason": EVIL, "patience": 0.0}).encode() + b"\n"],
    "refuses for ever": [b'{"kind":"refused","reason":"x","patience":1e308}\n'],
    "another directory": [json.dumps({**WELCOME, "run_dir": "/nowhere"}).encode() + b"\n"],
    "no directory": [json.dumps(WELCOME).encode() + b"\n"],
    "over at once": [json.dumps(TEMPLATES[10]).encode() + b"\n"],
    **{f"seed {seed}": [hostile(random.Random(seed))] for seed in range(12)},
}


@pytest.fixture
def coordinator(where: Endpoint) -> Iterator[Callable[[list[bytes]], None]]:
    """Sit at the endpoint and send the same to each node that comes."""
    with ExitStack() as stack:

        def serve(listener: socket.socket, lines: list[bytes]) -> None:
            with ExitStack() as kept, suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    kept.callback(connection.close)
                    with suppress(OSError):
                        for line in lines:
                            connection.sendall(line)
                        if lines == [b""]:
                            connection.shutdown(socket.SHUT_RDWR)

        def sit(lines: list[bytes]) -> None:
            listener = socket.create_server(("127.0.0.1", where.port))
            thread = threading.Thread(target=serve, args=[listener, lines])
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.close)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)

        yield sit


@pytest.mark.parametrize("name", COORDINATORS)
def test_what_sits_in_place_of_node_0_only_makes_a_node_wait(
    coordinator: Callable[[list[bytes]], None],
    where: Endpoint,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    from trainrun.launch.nodes import admission, trust

    monkeypatch.setattr(admission, "STEP", 0.2)
    read_key = trust.read_key
    monkeypatch.setattr(trust, "read_key", lambda path: read_key(path, 0.1))
    coordinator(COORDINATORS[name])
    threads, began = threading.active_count(), time.monotonic()
    with (
        ExitStack() as stack,
        pytest.raises(member.NotReached, match=r"node 0 could not be reached within 0\.3 s: ") as ended,
    ):
        enter(where, said, stack, seconds=0.3)
    assert time.monotonic() - began < PATIENCE
    assert threading.active_count() <= threads
    assert len(str(ended.value)) < 5000
    assert len(said) < 10


def test_waiting_for_a_silent_coordinator_ends_when_it_is_no_longer_wanted(
    coordinator: Callable[[list[bytes]], None], where: Endpoint
) -> None:
    coordinator([])
    began = time.monotonic()
    search = member.Search(where, 100, lambda _: None, lambda: time.monotonic() < began + 0.3)
    with pytest.raises(member.NotReached):
        member.join(search, Visitor(1, 2), lambda *_: [])
    assert time.monotonic() - began < SOON


# --- a launch ---


def test_a_launch_among_strangers_ends_as_one_that_is_alone(on_localhost: Callable[[str], Cluster]) -> None:
    steps = ["-o", "train.steps=20"]
    alone, disturbed = on_localhost("alone"), on_localhost("disturbed")
    nodes = [alone.launch(0, *steps, "-o", "launch.nodes=1", "-o", "launch.workers=2")]  # two ranks are two ranks
    port = int(disturbed.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)) as squatter:
        disturbed.launch(1, *steps)
        connection, _ = squatter.accept()
        with connection:
            connection.sendall(json.dumps({"kind": "refused", "reason": EVIL, "patience": 0.0}).encode() + b"\n")
            disturbed.wait_for(lambda: "your disk is on fire" in disturbed.nodes[0].said)
    first = disturbed.launch(0, *steps)
    disturbed.wait_for(lambda: "run: " in first.said)
    with ExitStack() as stack:
        strangers = Strangers(port, seed=500)
        stack.callback(strangers.leave)
        strangers.stay(100)
        strangers.send(500)
        ended_alike([*nodes, *disturbed.nodes], alone, disturbed)
    assert strangers.sent >= 500


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_launch_among_10_000_messages_ends_as_one_that_is_alone(on_localhost: Callable[[str], Cluster]) -> None:
    steps = ["-o", "train.steps=800"]
    alone, disturbed = on_localhost("alone"), on_localhost("disturbed")
    nodes = alone.both(*steps)
    first = disturbed.launch(0, *steps)
    disturbed.wait_for(lambda: "waiting for node 1" in first.said)
    with ExitStack() as stack:
        strangers = Strangers(int(disturbed.endpoint.rpartition(":")[2]), seed=10_000)
        stack.callback(strangers.leave)
        strangers.stay(100)
        strangers.send(7_000)
        disturbed.launch(1, *steps)
        strangers.send(10_000)  # the rest comes while it trains
        ended_alike([*nodes, *disturbed.nodes], alone, disturbed)
    assert strangers.sent >= 10_000


def ended_alike(nodes: list[Node], alone: Cluster, disturbed: Cluster) -> None:
    """All end well, bit for bit with the same weights, and nothing of the strangers is obeyed by a terminal."""
    assert {node.end() for node in nodes} == {0}, "\n---\n".join(node.said for node in nodes)
    for rank in range(2):
        assert disturbed.weights(rank) == alone.weights(rank)
    for node in disturbed.nodes:
        assert CONTROLS.findall(node.said) == []
        assert "Traceback" not in node.said
        assert not [line for line in node.said.splitlines() if line.startswith("finished: your disk")]
        assert len([line for line in node.said.splitlines() if "turned away" in line]) <= 15
