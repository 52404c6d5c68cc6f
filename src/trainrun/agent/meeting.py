"""The rendezvous of the agents of all nodes in one attempt.

Light until it is used: the agents import it before torch.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_ALONE: dict[str, Any] = {"host": "localhost", "node": 0, "nodes": 1, "timeout": 60}


@dataclass(frozen=True)
class Meeting:
    """The settings of elastic's rendezvous.

    `told`: this node has opened the store, and the others must learn its port. configs: with the node's rank, as the
    backend "static" wants it. "c10d" waits up to 0.3 s so that many nodes do not come at once, and again for nodes that
    may come late.
    """

    nodes: int
    endpoint: str
    configs: dict[str, Any]
    port: int
    told: bool
    backend: str = "static"


@contextmanager
def meeting(seat: Mapping[str, Any] | None) -> Iterator[Meeting]:
    """Open or find a new store for each attempt.

    The keys that workers leave in a store do not distinguish attempts. On node 0 it is opened here, on a port that the
    kernel chooses. elastic, asked to open one on the same port in the same process, gets this one. seat: None if there
    is one node only.
    """
    told = seat is not None
    seat = seat or _ALONE
    store = _open_store(str(seat["host"])) if seat["node"] == 0 else None
    port = int(seat["port"]) if store is None else int(store.port)
    host = f"[{seat['host']}]" if ":" in seat["host"] else seat["host"]
    configs = {"rank": seat["node"], "timeout": seat["timeout"]}
    yield Meeting(seat["nodes"], f"{host}:{port}", configs, port, told=told and store is not None)
    del store  # held until here


def _open_store(host: str) -> Any:
    """Return a store on a port that the kernel chooses.

    It is bound before any process learns the port. The port is bound here and not by torch. torch does not clear the
    entry of a former store on a port that was chosen for it. Then elastic would not get this store but an error,
    "address already in use".
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 - it takes seconds

    bound = _bind(host)
    port = bound.getsockname()[1]
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, multi_tenant=True, master_listen_fd=bound.detach()
    )


def _bind(host: str) -> socket.socket:
    """Return a listening socket.

    On one node it is for this machine only, otherwise on all of its addresses, as torch has it.
    """
    if host == _ALONE["host"]:
        return socket.create_server((host, 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
