from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from trainrun.agent import meeting as module
from trainrun.agent.meeting import meeting


def join(port: int) -> Any:
    """What elastic does: it asks for a store on the port, in the same process, and gets the one that is there."""
    return TCPStore("localhost", port, 1, True, timedelta(seconds=30), multi_tenant=True)


def test_alone_it_is_for_this_machine_only() -> None:
    with meeting(None) as place:
        assert (place.nodes, place.backend, place.told) == (1, "static", False)
        assert place.endpoint == f"localhost:{place.port}"
        join(place.port).set("key", "value")
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", place.port))


def test_node_0_opens_the_store_and_tells_its_port() -> None:
    seat = {"host": "127.0.0.1", "node": 0, "nodes": 2, "timeout": 9}
    with meeting(seat) as place:
        assert place.told
        assert place.configs == {"rank": 0, "timeout": 9}
        join(place.port).set("key", "value")


def test_other_nodes_open_nothing() -> None:
    with meeting({"host": "fe80::1", "node": 1, "nodes": 2, "timeout": 9, "port": 4711}) as place:
        assert (place.endpoint, place.told) == ("[fe80::1]:4711", False)


def test_a_port_that_comes_again_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may choose the port of an earlier attempt's store."""
    with meeting(None) as place:
        join(place.port)
        first = place.port

    def again(host: str) -> Any:
        return socket.create_server((host, first))

    monkeypatch.setattr(module, "_bind", again)
    with meeting(None) as place:
        assert place.port == first
        join(place.port).set("key", "value")
