"""One connection to another node, kept alive, and known to be lost soon after it is."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress

from trainrun.launch.nodes.messages import LIMIT, Beat, Lines, Message, WireError, encode

BEAT = 1.0  # seconds between two signs of life
SILENCE = 10.0  # seconds without one after which the other side is lost: its machine, or the cable

_WAITING = 1000  # messages that may wait to be taken
_READ = 64 * 1024
_DRAIN = 2.0  # seconds to wait for the other side to close too


class Channel:
    """Sends and receives messages, once both sides have proved who they are.

    A thread of its own reads and gives signs of life, independent of the program. Only the monotonic clock counts, here
    and on the other side.

    lines: what has come already and belongs to the next message.
    """

    def __init__(
        self, connection: socket.socket, lines: Lines | None = None, *, beat: float = BEAT, silence: float = SILENCE
    ) -> None:
        connection.settimeout(silence)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = address(connection)
        self._connection = connection
        self._beat, self._silence = beat, silence
        self._lines = lines or Lines()
        self._lines.limit = LIMIT
        self._inbox: deque[Message] = deque()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._lost: str | None = None
        self._offset_ns: int | None = None
        threading.Thread(target=self._run, name=f"channel to {self.address}", daemon=True).start()

    @property
    def lost(self) -> str | None:
        """Return why the connection is no more; None while it is."""
        return self._lost

    @property
    def offset_ns(self) -> int:
        """Return the offset of the other side's monotonic clock.

        It is to be added to a reading of that clock. The sum can be compared with this side's clock.
        """
        return self._offset_ns or 0

    def send(self, message: Message) -> None:
        """Send a message. One that cannot be sent is a lost connection, and no error here."""
        try:
            with self._sending:
                self._connection.sendall(encode(message))
        except OSError as error:
            self._lose(told(error))

    def take(self, seconds: float = 0.0) -> Message | None:
        """Return the next message, waiting for at most `seconds`.

        Returns None if none came in time, or none will come any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._lost, seconds)
            return self._inbox.popleft() if self._inbox else None

    def close(self, why: str = "closed") -> None:
        """End the connection; what has been sent still arrives."""
        self._lose(why)

    def _run(self) -> None:
        try:
            self._serve()
        except WireError as error:
            self._lose(f"it sent {error}")
        except OSError as error:
            self._lose(told(error))
        with suppress(OSError):
            self._drain()
        self._connection.close()

    def _drain(self) -> None:
        # Closing with something unread would reset the connection, and with it what is still on its way out.
        self._connection.settimeout(_DRAIN)
        deadline = time.monotonic() + _DRAIN
        while self._connection.recv(_READ) and time.monotonic() < deadline:
            pass

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        self._hear(b"")  # what came with the last message of the handshake
        heard = time.monotonic()
        due = heard
        while self._lost is None:
            if time.monotonic() >= due:
                self.send(Beat(now=time.monotonic_ns()))
                due = time.monotonic() + self._beat
            if poller.poll(max(0.0, due - time.monotonic()) * 1000):
                self._read()
                heard = time.monotonic()
            elif time.monotonic() - heard > self._silence:
                self._lose(f"nothing was heard of it for {self._silence:g} s")

    def _read(self) -> None:
        data = self._connection.recv(_READ)
        if not data:
            self._lose("it closed the connection")
        self._hear(data)

    def _hear(self, data: bytes) -> None:
        for message in self._lines.feed(data):
            if isinstance(message, Beat):
                # The beat that travelled fastest comes closest to the truth.
                offset = time.monotonic_ns() - message.now
                self._offset_ns = offset if self._offset_ns is None else min(self._offset_ns, offset)
            else:
                self._deliver(message)

    def _deliver(self, message: Message) -> None:
        with self._changed:
            if len(self._inbox) >= _WAITING:
                raise WireError("more messages than can be dealt with")
            self._inbox.append(message)
            self._changed.notify_all()

    def _lose(self, why: str) -> None:
        with self._changed:
            if self._lost is not None:
                return
            self._lost = why
            self._changed.notify_all()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)


def address(connection: socket.socket) -> str:
    """Return the address of the other side. Raises OSError if it has gone already."""
    return str(connection.getpeername()[0]).removeprefix("::ffff:")


def told(error: Exception) -> str:
    """Return why a connection failed, in words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
