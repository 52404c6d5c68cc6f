from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from trainrun.doctor import network
from trainrun.doctor.finding import Finding
from trainrun.doctor.network import proxy_note

Ask = Callable[..., Finding]

HOST = "trainrun.doctor.network:host_name"
PORTS = "trainrun.doctor.network:ports"


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pretend(*addresses: str) -> None:
        def lookup(name: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
            if not addresses:
                raise socket.gaierror(-2, "Name or service not known")
            return [(0, 0, 0, "", (address, 0)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)

    return pretend


def test_ports(ask: Ask) -> None:
    finding = ask(PORTS)
    assert finding.status == "ok", finding
    assert "IPv4" in finding.facts["families"]


def test_localhost_does_not_resolve(ask: Ask, resolves: Any) -> None:
    resolves()
    finding = ask(PORTS)
    assert finding.status == "failed"
    assert "/etc/hosts" in str(finding.advice)


def test_localhost_is_somewhere_else(ask: Ask, resolves: Any) -> None:
    resolves("192.0.2.1")
    assert ask(PORTS).status == "failed"


def test_no_loopback(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    finding = ask(PORTS)
    assert finding.status == "failed"
    assert "ip link set lo up" in str(finding.advice)


@pytest.mark.parametrize("value", ["nosuch0", "=nosuch0"])
def test_an_interface_that_is_not_there(ask: Ask, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", value)
    finding = ask(PORTS)
    assert finding.status == "failed"
    assert "GLOO_SOCKET_IFNAME names nosuch0" in finding.finding


@pytest.mark.parametrize("value", ["lo", "eth,lo", "^docker"])
def test_interfaces_that_may_be_there(ask: Ask, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
    assert ask(PORTS).status == "ok"


@pytest.mark.parametrize(
    ("addresses", "nodes", "status"),
    [
        (("127.0.0.1",), 1, "ok"),
        (("127.0.0.1",), 2, "warning"),
        (("192.0.2.1",), 1, "warning"),
        (("192.0.2.1", "127.0.1.1"), 1, "ok"),
        ((), 1, "warning"),
    ],
)
def test_host_name(ask: Ask, resolves: Any, addresses: tuple[str, ...], nodes: int, status: str) -> None:
    resolves(*addresses)
    finding = ask(HOST, nodes=nodes)
    assert finding.status == status
    assert not any(address in str(finding) for address in addresses), "addresses are nobody else's business"
    assert socket.gethostname() not in str(finding)


@pytest.mark.parametrize(
    ("environment", "note"),
    [
        ({}, "none is set"),
        ({"http_proxy": ""}, "none is set"),
        ({"HTTP_PROXY": "http://me:secret@p"}, "does not name localhost"),
        ({"https_proxy": "http://p", "no_proxy": "example.org, localhost"}, "spares localhost"),
        ({"all_proxy": "http://p", "NO_PROXY": "*"}, "spares localhost"),
    ],
)
def test_proxy(environment: dict[str, str], note: str) -> None:
    assert note in proxy_note(environment)
    assert "secret" not in proxy_note(environment)


def test_a_proxy_is_only_noted(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@p")
    assert ask("trainrun.doctor.network:proxy").status == "ok"
    assert network.addresses("localhost")
