"""Where nodes meet, and what is said when they cannot."""

from __future__ import annotations

import os
import socket

import pytest

from trainrun.errors import EnvironmentProblem, UsageError
from trainrun.launch.nodes import endpoint
from trainrun.launch.nodes.endpoint import Endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node0:1234", Endpoint("node0", 1234)),
        ("node0", Endpoint("node0", 29400)),
        (" 10.0.0.1:80 ", Endpoint("10.0.0.1", 80)),
        ("[fd00::1]:29400", Endpoint("fd00::1", 29400)),
        ("[::1]", Endpoint("::1", 29400)),
    ],
)
def test_reads_host_and_port(text: str, expected: Endpoint) -> None:
    assert endpoint.parse(text) == expected
    assert endpoint.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", ":29400", "a:b", "a:0", "a:65536", "a:1:2", "fd00::1", "http://a:1", "a b:1"])
def test_refuses_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(UsageError, match="--rdzv-endpoint: expected HOST:PORT, got"):
        endpoint.parse(text)


def test_listens_on_all_addresses(free_port: int) -> None:
    port = free_port
    with endpoint.listen(Endpoint("127.0.0.1", port)), endpoint.connect(Endpoint("127.0.0.1", port), 5) as connection:
        assert connection.getpeername()[1] == port


def test_a_taken_port_names_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_BUSY", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=rf"port {port} is taken by process {os.getpid()} \(.*python"):
            endpoint.listen(Endpoint("127.0.0.1", port))


def test_a_name_that_does_not_resolve_is_told_at_once() -> None:
    with pytest.raises(EnvironmentProblem, match=r"no-such-host\.invalid:29400: the name of the host does not resolve"):
        endpoint.listen(Endpoint("no-such-host.invalid", 29400))
    assert "does not resolve" in endpoint.described(Endpoint("no-such-host.invalid", 29400))


def test_node_0_must_be_on_the_endpoints_host() -> None:
    with pytest.raises(EnvironmentProblem, match=r"192\.0\.2\.1 is no address of this machine"):
        endpoint.listen(Endpoint("192.0.2.1", 29400))
