"""The port of node 0: who may come in, and how little those may do who may not.

One thread serves all connections that have not proved that they belong to the run. Each may send two short messages in
a limited time; when there are too many, the one that said least and waited longest is dropped. A connection that has
proved it gets a thread and a channel of its own.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from trainrun.launch.nodes import messages
from trainrun.launch.nodes.admission import NotShared, Reception, Refused, Visitor
from trainrun.launch.nodes.channel import Channel, address, told
from trainrun.launch.nodes.messages import SMALL, Lines, Message, WireError, encode, fit
from trainrun.launch.terminal import Say
from trainrun.printing import inline

_STRANGERS = 64  # connections that have not proved who they are
_STEPS = 16  # connections that have, and are still comparing what they train with
_PATIENCE = 20.0  # seconds for the proof: a network file system may take some to show the key
_READ = 4096
_AT_ONCE = 64  # connections that are taken before those that are here are read again
_LOOK = 0.2
_CALM = 0.15  # seconds between two looks while no node is missing: a flood then costs training little
_SAID = 10  # refusals that are reported one by one; then each tenfold of their number
_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Refusals:
    """Reports who was turned away, in a bounded number of lines. `last` is for the message that a node is missing."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._count = 0
        self._last = ""
        self._unseen = ""

    @property
    def last(self) -> str:
        """Return the last one.

        One that does not see the run directory counts more than garbage that came later.
        """
        with self._lock:
            return self._unseen or self._last

    def note(self, where: str, refused: Exception) -> None:
        """Count one, and report it if it is among the first ones."""
        with self._lock:
            self._count += 1
            count, self._last = self._count, fit(inline(f"{where}: {refused}"))
            if isinstance(refused, NotShared):
                self._unseen = self._last
        if count <= _SAID:
            self._say(f"turned away {self._last}" + (_QUIET if count == _SAID else ""))
        elif str(count).strip("0") == "1":
            self._say(f"turned away {count} connections so far; the last: {self._last}")

    def forget(self) -> None:
        """Forget earlier refusals.

        A node came in, and they explain no absence any more.
        """
        with self._lock:
            self._last = self._unseen = ""


_QUIET = "; more of them are only counted"


@dataclass(eq=False)
class _Stranger:
    """A connection, and what has been said on it."""

    connection: socket.socket
    where: str
    reception: Reception
    lines: Lines = field(default_factory=lambda: Lines(SMALL))
    since: float = field(default_factory=time.monotonic)

    @property
    def worth(self) -> tuple[bool, float]:
        """Return the key for dropping the least first.

        Silent ones are dropped first, then the oldest.
        """
        return self.reception.visitor is not None, self.since


class Door:
    """Serves the port. receive: lets a node in that has proved who it is, on a thread of its own.

    calm: whether no node is missing.
    """

    def __init__(
        self,
        listener: socket.socket,
        greet: Callable[[], Reception],
        receive: Callable[[Channel, Visitor], None],
        refusals: Refusals,
        calm: Callable[[], bool],
    ) -> None:
        self._listener = listener
        self._greet = greet
        self._receive = receive
        self._refusals = refusals
        self._calm = calm
        self._strangers: set[_Stranger] = set()
        self._steps = threading.BoundedSemaphore(_STEPS)
        self._closed = threading.Event()
        self._selector = selectors.DefaultSelector()

    def open(self) -> None:
        """Begin to serve."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, name="door", daemon=True).start()

    def close(self) -> None:
        """Stop serving.

        The thread ends by itself, with all connections that it still has.
        """
        self._closed.set()

    def _serve(self) -> None:
        try:
            while not self._closed.wait(_CALM if self._calm() else 0):
                for key, _ in self._selector.select(_LOOK):
                    if key.data is None:
                        self._accept()
                    elif key.data in self._strangers:
                        self._read(key.data)
                self._expire()
        finally:
            for stranger in list(self._strangers):
                self._forget(stranger).close()
            self._selector.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _FULL:
                    self._evict()
                self._closed.wait(_CALM)  # out of descriptors, or the port is being closed
                return
            self._take_in(connection)

    def _take_in(self, connection: socket.socket) -> None:
        if len(self._strangers) >= _STRANGERS:
            self._evict()
        try:
            connection.setblocking(False)
            stranger = _Stranger(connection, address(connection), self._greet())
            self._selector.register(connection, selectors.EVENT_READ, stranger)
        except OSError:  # it has gone already
            connection.close()
        else:
            self._strangers.add(stranger)
            self._read(stranger)  # at once: a node speaks first, and must not be taken for one that is silent

    def _evict(self) -> None:
        """Make room. The address with the most connections pays, so that it keeps no other out."""
        if self._strangers:
            often = Counter(stranger.where for stranger in self._strangers)
            most = max(often.values())
            crowd = [stranger for stranger in self._strangers if often[stranger.where] == most]
            least = min(crowd, key=lambda stranger: stranger.worth)
            self._drop(least, Refused(f"more than {_STRANGERS} connections that did not prove who they are"))

    def _expire(self) -> None:
        late = time.monotonic() - _PATIENCE
        for stranger in [stranger for stranger in self._strangers if stranger.since < late]:
            self._drop(stranger, Refused(f"it has not proved who it is for {_PATIENCE:g} s"))

    def _read(self, stranger: _Stranger) -> None:
        try:
            data = stranger.connection.recv(_READ)
            if not data:
                raise ConnectionError("it closed the connection before it had proved who it is")
            for message in stranger.lines.feed(data):
                self._send(stranger, stranger.reception.reply(message))
                if stranger.reception.proved:
                    self._hand_over(stranger)
                    return
        except BlockingIOError:
            return
        except WireError as error:
            self._drop(stranger, Refused(f"it sent {error}"))
        except Refused as refused:
            self._drop(stranger, refused)
        except OSError as error:  # no node is left to be informed
            self._refusals.note(stranger.where, Refused(told(error)))
            self._forget(stranger).close()

    def _send(self, stranger: _Stranger, message: Message) -> None:
        data = encode(message)
        if stranger.connection.send(data) < len(data):  # short messages fit, unless nothing is read there
            raise Refused("it does not read what is sent to it")

    def _hand_over(self, stranger: _Stranger) -> None:
        connection = self._forget(stranger)
        if not self._steps.acquire(blocking=False):
            connection.close()  # it tries again
            return
        thread = threading.Thread(target=self._let_in, args=(connection, stranger), name="joining node", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads can be started just now
            self._steps.release()
            connection.close()

    def _let_in(self, connection: socket.socket, stranger: _Stranger) -> None:
        assert stranger.reception.visitor is not None
        try:
            self._receive(Channel(connection, stranger.lines), stranger.reception.visitor)
        except OSError:
            connection.close()
        finally:
            self._steps.release()

    def _drop(self, stranger: _Stranger, refused: Refused) -> None:
        self._refusals.note(stranger.where, refused)
        connection = self._forget(stranger)
        with suppress(OSError):
            connection.send(encode(messages.Refused(reason=fit(str(refused)))))
            connection.shutdown(socket.SHUT_WR)
            # Closing with something unread would reset the connection, and with it the reason that is on its way.
            connection.recv(SMALL)
        connection.close()

    def _forget(self, stranger: _Stranger) -> socket.socket:
        self._strangers.discard(stranger)
        with suppress(KeyError, ValueError):
            self._selector.unregister(stranger.connection)
        return stranger.connection
