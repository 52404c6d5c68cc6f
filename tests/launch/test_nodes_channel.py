"""Connections between nodes, over real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from trainrun.launch.nodes.channel import Channel
from trainrun.launch.nodes.wire import LIMIT, Lines, WireError, encode

PATIENCE = 10.0

Until = Callable[[Callable[[], object]], None]


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    near, far = (Channel(one, beat=0.05, silence=1.0) for one in pair())
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def raw() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the bare socket at its other end."""
    near, far = pair()
    channel = Channel(near, beat=0.05, silence=0.5)
    with closing(far):
        yield channel, far
    channel.close()


def test_messages_arrive_in_order_in_both_directions(channels: tuple[Channel, Channel], until: Until) -> None:
    near, far = channels
    for number in range(100):
        near.send("count", number=number)
    far.send("back", text="grüße\n")
    assert [(far.take(PATIENCE) or {})["number"] for _ in range(100)] == list(range(100))
    assert near.take(PATIENCE) == {"kind": "back", "text": "grüße\n"}


def test_taking_waits_no_longer_than_asked(channels: tuple[Channel, Channel]) -> None:
    began = time.monotonic()
    assert channels[0].take(0.05) is None
    assert time.monotonic() - began < 1
    assert channels[0].take() is None


def test_signs_of_life_keep_a_quiet_connection(channels: tuple[Channel, Channel]) -> None:
    near, far = channels
    assert near.take(1.5) is None  # longer than the silence that would end it
    assert near.lost is None
    assert far.lost is None


def test_a_closed_connection_is_lost_at_once_and_what_was_sent_still_arrives(
    channels: tuple[Channel, Channel],
) -> None:
    near, far = channels
    near.send("last", words="good bye")
    near.close()
    assert far.take(PATIENCE) == {"kind": "last", "words": "good bye"}
    assert far.take(PATIENCE) is None
    assert far.lost == "it closed the connection"
    assert near.lost == "closed"


def test_silence_is_loss(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, _ = raw
    until(lambda: channel.lost)
    assert channel.lost == "nothing was heard of it for 0.5 s"


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"[1]\n", b'{"no": "kind"}\n', b"[" * 99999 + b"\n"]
)
def test_what_is_no_message_ends_the_connection(
    raw: tuple[Channel, socket.socket], garbage: bytes, until: Until
) -> None:
    channel, far = raw
    far.sendall(garbage)
    until(lambda: channel.lost)
    assert channel.lost == "it sent something that is not a message of trainrun"


def test_an_endless_line_ends_the_connection() -> None:
    lines = Lines()
    with pytest.raises(WireError, match="more than"):
        list(lines.feed(b"x" * (LIMIT + 1)))


def test_a_flood_of_messages_ends_the_connection(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, far = raw
    far.sendall(encode("again") * 1001)
    until(lambda: channel.lost)
    assert channel.lost == "it sent more messages than can be dealt with"


def test_messages_may_come_in_any_pieces() -> None:
    lines, data = Lines(), encode("a", n=1) + encode("b", n=2)
    found = [message for index in range(len(data)) for message in lines.feed(data[index : index + 1])]
    assert found == [{"kind": "a", "n": 1}, {"kind": "b", "n": 2}]


def test_clocks_are_compared_and_nonsense_is_passed_over(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, far = raw
    ahead = 3_600_000_000_000
    far.sendall(b'{"kind": "beat"}\n{"kind": "beat", "now": "noon"}\n')
    far.sendall(json.dumps({"kind": "beat", "now": time.monotonic_ns() + ahead}).encode() + b"\n")
    until(lambda: channel.offset_ns)
    assert abs(channel.offset_ns + ahead) < 1_000_000_000


def test_sending_on_a_lost_connection_raises_nothing(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, far = raw
    far.close()
    until(lambda: channel.lost)
    channel.send("anything")
