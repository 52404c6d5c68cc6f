"""Can workers on this machine find one another: ports, names, proxies."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from trainrun.doctor.finding import Context, Finding, Verdict, reason

_WAIT = 5.0  # seconds for a connection to this machine itself
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
_NET = Path("/sys/class/net")
_LOCAL = {"localhost", "127.0.0.1"}


def ports(context: Context) -> Iterator[Finding]:
    """Bind a free port on each loopback address and connect to it.

    It is also checked that `localhost` means one of them.
    """
    verdict = Verdict("ports")
    works = [name for family, name in _FAMILIES.items() if _loopback(context, verdict, family)]
    if works:
        verdict.say(f"free ports on localhost can be used, by {' and '.join(works)}")
    context.doing("resolving localhost")
    try:
        found = addresses("localhost")
    except OSError as error:
        verdict.fail(f"localhost does not resolve: {reason(error)}", "add `127.0.0.1 localhost` to /etc/hosts")
        found = []
    if found and not any(address == "::1" or address.startswith("127.") for address in found):
        verdict.fail(f"localhost resolves to {', '.join(found)}", "set it to 127.0.0.1 in /etc/hosts")
    _judge_interfaces(verdict)
    yield verdict.finding(families=works, localhost=found)


def host_name(context: Context) -> Iterator[Finding]:
    """Check that this machine's name leads to this machine.

    gloo and torchrun ask for it. Neither name nor address is shown.
    """
    context.doing("resolving this machine's name")
    verdict = Verdict("host name")
    try:
        found = addresses(socket.gethostname())
    except OSError as error:
        verdict.warn(f"this machine's own name does not resolve: {reason(error)}", "add it to /etc/hosts")
        yield verdict.finding()
        return
    own = [address for address in found if _is_own(address)]
    loopback = all(address == "::1" or address.startswith("127.") for address in own)
    if not own:
        what = "this machine's name resolves to addresses that are not its own"
        verdict.warn(what, 'correct it in /etc/hosts; getent hosts "$(hostname)" shows them')
    elif loopback and context.settings.nodes > 1:
        what = "this machine's name resolves to a loopback address, by which other nodes cannot reach it"
        verdict.warn(what, "name node 0 by an address that they can reach")
    else:
        verdict.say(f"it resolves to {'a loopback address' if loopback else 'an address of this machine'}")
    yield verdict.finding(addresses=len(found), own=len(own), loopback=loopback)


def proxy(_: Context) -> Iterator[Finding]:
    """Report variables that send connections to a proxy.

    Their values are not shown: they may hold a password.
    """
    verdict = Verdict("proxy")
    verdict.say(proxy_note(os.environ))
    yield verdict.finding()


def proxy_note(environment: Mapping[str, str]) -> str:
    """Explain what the variables mean for connections to this machine."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    found = [name for low in names for name in (low, low.upper()) if environment.get(name)]
    if not found:
        return "none is set"
    spared = {part.strip() for name in ("no_proxy", "NO_PROXY") for part in environment.get(name, "").split(",")}
    if spared & {*_LOCAL, "*"}:
        return f"{', '.join(found)} is set, and no_proxy spares localhost"
    # torch's own connections take no proxy; dashboards and plugins that speak HTTP do.
    return f"{', '.join(found)} is set and no_proxy does not name localhost: HTTP to this machine takes the proxy"


def addresses(name: str) -> list[str]:
    """Return the addresses of a name, without repetition."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


_FAMILIES: Mapping[socket.AddressFamily, str] = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def _loopback(context: Context, verdict: Verdict, family: socket.AddressFamily) -> bool:
    context.doing(f"connecting to {_LOOPBACK[family]}")
    try:
        with socket.socket(family) as server:
            server.bind((_LOOPBACK[family], 0))
            server.listen(1)
            with socket.create_connection(server.getsockname()[:2], timeout=_WAIT):
                return True
    except OSError as error:
        if family == socket.AF_INET or error.errno not in _ABSENT:
            what = f"no connection to {_LOOPBACK[family]} is possible: {reason(error)}"
            hint = "bring the interface lo up (ip link set lo up), and let no firewall block it"
            (verdict.fail if family == socket.AF_INET else verdict.warn)(what, hint)
        return False


def _is_own(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family) as server:
        server.bind((address, 0))
        return True
    return False


def _judge_interfaces(verdict: Verdict) -> None:
    present = {entry.name for entry in _NET.iterdir()} if _NET.is_dir() else set()
    for variable in _INTERFACES:
        # NCCL also takes lists, prefixes and exclusions: only one plain name can be looked up.
        name = os.environ.get(variable, "").removeprefix("=")
        if name and present and name.isalnum() and not any(one.startswith(name) for one in present):
            what = f"{variable} names {name}, and there is no such interface"
            verdict.fail(what, f"unset it, or choose from {', '.join(sorted(present))}")
