"""How decisions come from one node to the others: through the job's store, which torchrun's first agent hosts.

A rank that posts also puts the entry into the store. The leader of each node, its first rank, asks the store at every
step for new entries, one round trip. It copies entries of other nodes into a ring in its node's shared memory. So the
ranks of those nodes see an entry one delay of the reduction later than the leader.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from trainrun.errors import EnvironmentProblem, TrainingError
from trainrun.worker.shared_log import AREA, SharedLog
from trainrun.worker.world import World

_PATIENCE = timedelta(seconds=60)  # to connect, and for an entry that was announced
_COUNTER = "posted"
_MOST_AREAS = 64


class Store(Protocol):
    """What is used of `torch.distributed.Store`."""

    def add(self, key: str, value: int) -> int: ...
    def set(self, key: str, value: str) -> None: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...
    def delete_key(self, key: str) -> bool: ...


def connect(prefix: str, environment: Mapping[str, str] = os.environ) -> Store:
    """Return a connection of this worker's own to the job's store.

    It is for keys under `prefix`. Its own, because torch's may wait long for a key. Raises EnvironmentProblem if no
    store can be reached. torch bounds waiting for a key and for the connection. A call to a host that no longer
    replies, but has not closed the connection, is not bounded. A collective with that host is not either: the client
    ends the attempt.
    """
    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        raise EnvironmentProblem(
            f"MASTER_ADDR, MASTER_PORT: expected the job's store, got {host!r}, {port!r}; "
            "workers on several nodes are started by `trainrun launch --nodes` or torchrun"
        )
    try:
        # Both classes are documented under these names, but torch's modules do not mark them for type checkers.
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, int(port), is_master=False, wait_for_workers=False, timeout=_PATIENCE
        )
    except RuntimeError as error:
        raise EnvironmentProblem(f"no connection to the job's store at {host}:{port}: {error}") from error
    joined: Store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    return joined


def room(world: World) -> int:
    """Return the size of the ring for entries of other nodes.

    It is in bytes. As much as their ranks' own, up to 64 MiB.
    """
    return min(world.size - world.local_size, _MOST_AREAS) * AREA


class Relay:
    """One rank's end of the store: it sends what its rank posts, and on the leader brings what other nodes posted.

    delay: after how many steps a decision is applied; by then every leader has fetched it, and it can be forgotten.
    """

    def __init__(self, store: Store, log: SharedLog, world: World, delay: int) -> None:
        self._store = store
        self._log = log
        self._node = world.node_rank
        self._leads = world.local_rank == 0
        self._delay = delay
        self._fetched = 0
        self._sent: deque[tuple[int, int]] = deque()  # step and number

    def send(self, entry: bytes, step: int) -> None:
        """Put an entry into the store for the other nodes.

        step: at which it was posted.
        """
        with _store_needed():
            # The number first: counting waits for the store's reply and setting a key does not. Once this returns
            # every leader that asks sees the number, and then waits for the key if it must.
            number = self._store.add(_COUNTER, 1)
            self._store.set(str(number), f"{self._node} {entry.decode()}")
            self._sent.append((step, number))
            while self._sent[0][0] < step - self._delay:
                self._store.delete_key(str(self._sent.popleft()[1]))

    def fetch(self) -> None:
        """Copy what other nodes have posted to the node's ranks.

        Copies what was posted since the last call. Only on the leader.
        """
        if not self._leads:
            return
        with _store_needed():
            posted = self._store.add(_COUNTER, 0)
            if posted == self._fetched:
                return
            entries = self._store.multi_get([str(number) for number in range(self._fetched + 1, posted + 1)])
        self._fetched = posted
        for node, _, entry in (each.partition(b" ") for each in entries):
            if int(node) != self._node:
                self._log.relay(entry)


@contextmanager
def _store_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's errors of stores are RuntimeErrors
        raise TrainingError(
            f"decisions: the job's store failed ({error}); the node that hosts it may be lost"
        ) from error
