"""Two hosts on this machine: network namespaces with a virtual cable between them, which can be pulled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import process

HERE = Path(__file__).parent
PATIENCE = 120.0  # seconds for one command: a launch takes a few, on a machine that does nothing else
SUBNET = "10.77.0."

RECIPE = f"""\
[run]
name = "nodes"

[task]
use = "{HERE}/task.py:Task"

[launch]
workers = 1
nodes = 2
grace = "10s"

[train]
steps = 30
batch_size = 8
log_every = 5
device = "cpu"

[optimizer]
name = "sgd"
lr = 0.1

[evaluate]
splits = []

[plugins.notes]
use = "{HERE}/notes.py:Notes"
"""


class Hosts:
    """Two hosts, 0 and 1, with the addresses 10.77.0.1 and 10.77.0.2 on an interface named cable."""

    def __init__(self) -> None:
        self._names = [f"trainrun-{os.getpid()}-{time.monotonic_ns()}-{host}" for host in range(2)]

    def up(self) -> None:
        """Make the hosts and connect them."""
        for name in self._names:
            _ip("netns", "add", name)
        first, second = self._names
        _ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for host, name in enumerate(self._names):
            _ip("-n", name, "addr", "add", f"{SUBNET}{host + 1}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "cable", "up")

    def down(self) -> None:
        """End whatever runs on the hosts and remove them."""
        for name in self._names:
            with suppress(subprocess.CalledProcessError):
                for pid in _ip("netns", "pids", name).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def on(self, host: int, command: list[str]) -> list[str]:
        """The command that runs `command` on a host."""
        return ["ip", "netns", "exec", self._names[host], *command]

    def pull_cable(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        _ip("-n", self._names[0], "link", "set", "cable", "down")

    def plug_in(self) -> None:
        """Put the cable back."""
        _ip("-n", self._names[0], "link", "set", "cable", "up")


class Here:
    """This machine in place of both hosts."""

    def on(self, host: int, command: list[str]) -> list[str]:
        """The command as it is."""
        return command


class Node:
    """The launching process of one node."""

    def __init__(self, command: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for its end; answers with its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {seconds:g} s; it said:\n{self.said}") from None


class Cluster:
    """A folder that both hosts see, with a recipe, and the launches that were started on them."""

    def __init__(self, hosts: Any, folder: Path, cache: Path, endpoint: str, interface: str) -> None:
        self.hosts = hosts
        self.folder = folder
        self.endpoint = endpoint
        self.nodes: list[Node] = []
        self.environment = {
            **os.environ,
            "TRAINRUN_CACHE_DIR": str(cache),
            "GLOO_SOCKET_IFNAME": interface,
            "COLUMNS": "200",
            "NO_COLOR": "1",
        }
        (folder / "train.toml").write_text(RECIPE)

    def launch(self, host: int, *options: str, before: Sequence[str] = (), **environment: str) -> Node:
        """`trainrun launch` as node `host`, an --rdzv-endpoint among `options` wins. before: a command to run it by."""
        place = ["--node-rank", str(host), "--rdzv-endpoint", self.endpoint]
        command = [sys.executable, "-m", "trainrun", "launch", "train.toml", *place, *options]
        log = self.folder / f"node-{host}-{len(self.nodes)}.log"
        node = Node(self.hosts.on(host, [*before, *command]), self.folder, log, {**self.environment, **environment})
        self.nodes.append(node)
        return node

    def both(self, *options: str) -> tuple[Node, Node]:
        """Launch on both hosts."""
        return self.launch(0, *options), self.launch(1, *options)

    @property
    def run(self) -> Path:
        """The newest run."""
        return (self.folder / "runs" / "latest").resolve()

    @property
    def outcome(self) -> dict[str, Any]:
        """How the newest run ended."""
        found: dict[str, Any] = json.loads((self.run / "outcome.json").read_text())
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind of the newest run."""
        lines = [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == kind]

    def steps(self, rank: int, attempt: int = 1) -> list[int]:
        """The steps that a rank has begun."""
        path = self.run / f"steps-{attempt}-{rank}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def weights(self, rank: int) -> str:
        """A rank's parameters at the end of training."""
        return (self.run / f"weights-{rank}").read_text()

    def wait_for(self, question: Callable[[], object]) -> None:
        """Wait until a question has an answer; fails when a launch ends instead."""
        deadline = time.monotonic() + PATIENCE
        while not question():
            assert time.monotonic() < deadline, "\n".join(["waited in vain", *(node.said for node in self.nodes)])
            time.sleep(0.02)

    def left(self) -> list[int]:
        """What still runs of any run in the folder."""
        return [pid for run in (self.folder / "runs").glob("*-*") for pid in process.members(run.resolve())]

    def close(self) -> None:
        """End the launches."""
        for node in self.nodes:
            node.process.kill()
            node.process.wait(PATIENCE)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts need root and iproute2, to make network namespaces")
    made = Hosts()
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def cluster(hosts: Hosts, tmp_path: Path, trainrun_cache: Path) -> Iterator[Cluster]:
    folder = tmp_path / "shared"
    folder.mkdir()
    made = Cluster(hosts, folder.resolve(), trainrun_cache, f"{SUBNET}1:29400", "cable")
    yield made
    made.close()
    made.wait_for(lambda: made.left() == [])


@pytest.fixture
def on_localhost(tmp_path: Path, trainrun_cache: Path) -> Iterator[Callable[[str], Cluster]]:
    """Make clusters whose nodes are all on this machine, each in a folder and on a port of its own."""
    clusters: list[Cluster] = []

    def make(name: str) -> Cluster:
        folder = tmp_path / name
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        clusters.append(Cluster(Here(), folder.resolve(), trainrun_cache, endpoint, "lo"))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.close()
        cluster.wait_for(lambda cluster=cluster: cluster.left() == [])


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0 and "Operation not permitted" in done.stderr:
        pytest.skip("two hosts need the right to make network namespaces, which this container does not have")
    done.check_returncode()
    return done.stdout
