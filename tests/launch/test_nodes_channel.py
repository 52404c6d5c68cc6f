"""Connections between nodes, over real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from trainrun.launch.nodes.channel import Channel
from trainrun.launch.nodes.messages import Ask, Beat, Lines, Nudge, Stop, encode

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
    sent = [Nudge(attempt=number) for number in range(100)]
    for message in sent:
        near.send(message)
    far.send(Stop(attempt=1, reason="grüße\n"))
    assert [far.take(PATIENCE) for _ in range(100)] == sent
    assert near.take(PATIENCE) == Stop(attempt=1, reason="grüße\n")


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
    near.send(Nudge(attempt=1))
    near.close()
    assert far.take(PATIENCE) == Nudge(attempt=1)
    assert far.take(PATIENCE) is None
    assert far.lost == "it closed the connection"
    assert near.lost == "closed"


def test_silence_is_loss(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, _ = raw
    until(lambda: channel.lost)
    assert channel.lost == "nothing was heard of it for 0.5 s"


def test_what_is_no_message_ends_the_connection(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, far = raw
    far.sendall(b"GET / HTTP/1.1\r\n\r\n")
    until(lambda: channel.lost)
    assert channel.lost == "it sent no message of trainrun (Invalid JSON: expected value at line 1 column 1)"


def test_a_flood_of_messages_ends_the_connection(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, far = raw
    far.sendall(encode(Nudge(attempt=1)) * 1001)
    until(lambda: channel.lost)
    assert channel.lost == "it sent more messages than can be dealt with"


def test_clocks_are_compared(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, far = raw
    ahead = 3_600_000_000_000
    far.sendall(encode(Beat(now=time.monotonic_ns() + ahead)))
    until(lambda: channel.offset_ns)
    assert abs(channel.offset_ns + ahead) < 1_000_000_000


def test_what_came_with_the_handshake_is_not_lost() -> None:
    near, far = pair()
    lines = Lines()
    pending = lines.feed(encode(Nudge(attempt=1)) + encode(Nudge(attempt=2)) + encode(Nudge(attempt=3))[:5])
    assert next(pending) == Nudge(attempt=1)
    channel = Channel(near, lines)
    far.sendall(encode(Nudge(attempt=3))[5:])
    assert [channel.take(PATIENCE), channel.take(PATIENCE)] == [Nudge(attempt=2), Nudge(attempt=3)]
    channel.close()
    far.close()


def test_sending_on_a_lost_connection_raises_nothing(raw: tuple[Channel, socket.socket], until: Until) -> None:
    channel, far = raw
    far.close()
    until(lambda: channel.lost)
    channel.send(Ask(request="stop", source="SIGINT", now=False))
