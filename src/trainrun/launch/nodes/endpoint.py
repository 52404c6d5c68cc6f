"""The address at which the nodes connect: `HOST:PORT` of node 0."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trainrun.errors import EnvironmentProblem, UsageError

PORT = 29400

_BUSY = 3.0  # seconds that a port may stay taken by a launch that is just ending
_SHAPE = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s:/\[\]]+))(?::(?P<port>\d{1,5}))?")
_LISTEN = "0A"


class Endpoint(NamedTuple):
    """The host and port of node 0, as the user named them."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(text: str) -> Endpoint:
    """Parse `HOST:PORT`, `HOST` or `[IPv6 address]:PORT`. Raise UsageError for any other text."""
    found = _SHAPE.fullmatch(text.strip())
    port = int(found["port"] or PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise UsageError(f"--rdzv-endpoint: expected HOST:PORT, got {text!r}; for example node0:{PORT}")
    return Endpoint(found["six"] or found["host"], port)


def addresses(endpoint: Endpoint) -> list[str]:
    """Return the addresses of the host's name. Raise OSError if it does not resolve."""
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def listen(endpoint: Endpoint) -> socket.socket:
    """Open the port on all addresses of this machine.

    This machine must be the endpoint's host.
    """
    _require_here(endpoint)
    deadline = time.monotonic() + _BUSY
    while True:
        try:
            return _listener(endpoint.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise EnvironmentProblem(_cannot_listen(endpoint, error)) from error
        time.sleep(0.1)


def connect(endpoint: Endpoint, seconds: float) -> socket.socket:
    """Try once to connect to node 0. Raise OSError if that fails."""
    return socket.create_connection((endpoint.host, endpoint.port), timeout=seconds)


def described(endpoint: Endpoint) -> str:
    """Return the endpoint with what its name resolves to now, for messages."""
    try:
        found = ", ".join(addresses(endpoint))
    except OSError as error:
        return f"{endpoint} (its name does not resolve: {error.strerror})"
    return str(endpoint) if found == endpoint.host else f"{endpoint} ({found})"


def holder(port: int) -> str | None:
    """Return which process of this machine listens on a TCP port.

    Returns None if this user may not know.
    """
    inodes = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit() and _has_open(process, inodes):
            return f"process {process.name} ({_command(process)})"
    return None


def _require_here(endpoint: Endpoint) -> None:
    try:
        found = addresses(endpoint)
    except OSError as error:
        raise EnvironmentProblem(
            f"--rdzv-endpoint {endpoint}: the name of the host does not resolve: {error.strerror}; "
            "it must be a name or an address of node 0 that all nodes know"
        ) from error
    if not any(map(_is_own, found)):
        raise EnvironmentProblem(
            f"--rdzv-endpoint {endpoint}: {', '.join(found)} is no address of this machine, and node 0 waits for the "
            "others there; use --node-rank 0 on the machine that the endpoint names"
        )


def _is_own(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def _listener(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _cannot_listen(endpoint: Endpoint, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"--rdzv-endpoint {endpoint}: cannot listen on port {endpoint.port}: {error.strerror}"
    by = holder(endpoint.port) or "a process of another user"
    return (
        f"--rdzv-endpoint {endpoint}: port {endpoint.port} is taken by {by}; end it, or use another port on all nodes"
    )


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _has_open(process: Path, names: set[str]) -> bool:
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                if os.readlink(descriptor) in names:  # noqa: PTH115 - no path: "socket:[4711]"
                    return True
    return False


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    return " ".join(words).strip()[:100]
