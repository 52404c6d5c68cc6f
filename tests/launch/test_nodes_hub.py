"""Who is let into a run, who is not, and what is said."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from trainrun.errors import EnvironmentProblem
from trainrun.launch.nodes import hub, member, trust
from trainrun.launch.nodes.admission import Refused, Visitor
from trainrun.launch.nodes.channel import Channel
from trainrun.launch.nodes.endpoint import Endpoint, connect
from trainrun.launch.nodes.hub import Hub
from trainrun.launch.nodes.match import differences, recipe_differences
from trainrun.launch.nodes.messages import PROTOCOL, Attempt, Ended, Message, Over
from trainrun.rundir import Outcome, RunPaths, create

PATIENCE = 10.0
SOFTWARE = {"recipe": "1", "plugins": [["a", "dist 1 (a:A)", "hash"]], "versions": {"torch": "2"}, "workers": 2}

Until = Callable[[Callable[[], object]], None]


class Nodes:
    """One hub, and the nodes that ask to be let in."""

    def __init__(self, paths: RunPaths, nodes: int, port: int, stack: ExitStack) -> None:
        self.paths = paths
        self.said: list[str] = []
        self.where = Endpoint("127.0.0.1", port)
        self.hub = stack.enter_context(Hub(self.where, nodes, self.said.append))
        self._stack = stack

    def open(self) -> None:
        self.hub.open(self.paths, SOFTWARE)

    def enter(
        self,
        node: int = 1,
        nodes: int = 2,
        *,
        run: str | None = None,
        found: list[str] | None = None,
        seconds: float = 5,
    ) -> Channel:
        def compare(paths: RunPaths, software: Mapping[str, Any]) -> list[str]:
            assert paths == self.paths
            assert software == SOFTWARE
            return found or []

        search = member.Search(self.where, seconds, self.said.append, lambda: True)
        channel, _ = member.join(search, Visitor(node, nodes, run), compare)
        self._stack.callback(channel.close)
        return channel


@pytest.fixture
def make(tmp_path: Path, free_port: int) -> Iterator[Callable[..., Nodes]]:
    with ExitStack() as stack:

        def begin(nodes: int = 2, *, opened: bool = True) -> Nodes:
            made = Nodes(create(tmp_path / "runs", "test"), nodes, free_port, stack)
            if opened:
                made.open()
            return made

        yield begin


def test_nodes_come_and_speak_with_node_0(make: Callable[..., Nodes]) -> None:
    run = make(3)
    first, second = run.enter(1, 3), run.enter(2, 3)
    assert run.hub.gather(PATIENCE, lambda: True)
    assert [peer.node for peer in run.hub.peers] == [1, 2]
    begin = Attempt(attempt=1, host="127.0.0.1", port=1)
    run.hub.tell(begin)
    assert first.take(PATIENCE) == second.take(PATIENCE) == begin
    ended = Ended(attempt=1, code=0, ends=[])
    second.send(ended)
    assert run.hub.peers[1].channel.take(PATIENCE) == ended


def test_a_node_that_comes_before_the_run_exists_waits_at_the_door(make: Callable[..., Nodes]) -> None:
    run = make(opened=False)
    entered = threading.Thread(target=run.enter)
    entered.start()
    run.open()
    assert run.hub.gather(PATIENCE, lambda: True)
    entered.join(PATIENCE)


def test_the_missing_and_the_present_are_named(make: Callable[..., Nodes], until: Until) -> None:
    run = make(4)
    run.enter(2, 4)
    until(lambda: run.hub.missing == [1, 3])
    assert not run.hub.gather(0.1, lambda: True)
    assert run.said[-1].startswith("waiting for nodes 1, 3 of 4 at 127.0.0.1:")
    assert run.hub.absence(0.1).startswith("nodes 1, 3 of 4 has not come within 0.1 s (present: 0 on ")
    assert ", 2 on " in run.hub.present


def test_waiting_ends_when_it_is_no_longer_wanted(make: Callable[..., Nodes]) -> None:
    assert not make().hub.gather(PATIENCE * 10, lambda: False)


@pytest.mark.parametrize(
    ("visitor", "message"),
    [
        ({"node": 2}, "--node-rank 2: the other nodes of 2 are 1 to 1"),
        ({"node": 0}, "--node-rank 0: the other nodes of 2 are 1 to 1"),
        ({"nodes": 3}, "it was started with --nodes 3, node 0 with --nodes 2"),
        ({"run": "2020-01-01-other"}, "it belongs to run 2020-01-01-other, and this is "),
    ],
)
def test_a_node_that_does_not_belong_here_is_refused_at_once(
    make: Callable[..., Nodes], visitor: dict[str, Any], message: str
) -> None:
    run = make()
    with pytest.raises(Refused, match=message):
        run.enter(**visitor)
    run.hub.require_agreement()  # a stranger does not end the run
    assert message in run.hub.absence(1)
    assert run.hub.missing == [1]


def test_a_second_node_of_the_same_rank_is_refused(make: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    monkeypatch.setattr(hub, "_TAKEN", 0.2)
    run.enter()
    with pytest.raises(Refused, match=r"--node-rank 1 is taken by node 1 \("):
        run.enter()
    assert run.hub.missing == []


def test_a_node_that_was_lost_may_come_back(make: Callable[..., Nodes], until: Until) -> None:
    run = make()
    run.enter().close()
    until(lambda: run.hub.missing)
    run.enter(run=run.paths.run_id)
    assert run.hub.gather(PATIENCE, lambda: True)


def test_differences_end_both_sides_and_name_both(make: Callable[..., Nodes]) -> None:
    run = make()
    with pytest.raises(Refused, match="plugin a: node 0 has 1, node 1 has 2"):
        run.enter(found=["plugin a: node 0 has 1, node 1 has 2"])
    with pytest.raises(EnvironmentProblem, match=r"node 1 \(.*\) differs from node 0:\n  plugin a: node 0 has 1"):
        run.hub.gather(PATIENCE, lambda: True)


@pytest.mark.parametrize("damage", ["missing", "readable", "link", "pipe", "empty"])
def test_a_run_directory_that_is_not_shared_is_told_on_both_sides(
    make: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run, read_key = make(), trust.read_key
    monkeypatch.setattr(trust, "read_key", lambda path: read_key(path, 0.1))
    key = run.paths.nodes_key
    if damage == "readable":
        key.chmod(0o644)
    elif damage == "empty":
        key.write_text("")
    else:
        key.rename(key.with_name("elsewhere"))
    if damage == "link":
        key.symlink_to("elsewhere")
    if damage == "pipe":
        os.mkfifo(key)
    # It has proved nothing, so that a stranger may have said it: both sides say what is wrong, and wait.
    with pytest.raises(member.NotReached, match=r"does not see the run directory of node 0, .*; put run.dir"):
        run.enter(seconds=0.5)
    assert not run.hub.gather(0.1, lambda: True)
    told = r"127\.0\.0\.1: node 1 \(.*\) does not see the run directory: .*; put run.dir"
    assert re.search(rf"last turned away: {told}", run.hub.absence(1))
    assert [line for line in run.said if re.match(f"turned away {told}", line)]


def test_another_key_is_no_proof_in_either_direction(
    make: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()
    monkeypatch.setattr(trust, "read_key", lambda path: "0" * 64)
    with pytest.raises(member.NotReached, match="its proof of seeing the run directory is wrong"):
        run.enter(seconds=0.3)
    run.hub.require_agreement()
    same = trust.same  # node 0 lets anything through, so that the other side gets to check
    monkeypatch.setattr(
        trust, "same", lambda given, right: threading.current_thread().name == "door" or same(given, right)
    )
    with pytest.raises(member.NotReached, match="what listens there does not see the run directory that it names"):
        run.enter(found=["never asked"], seconds=0.3)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"protocol": PROTOCOL + 1, "new": 1}, "another version of the protocol"),
        ({"protocol": PROTOCOL}, "which node it is"),
        ({"protocol": PROTOCOL, "node": "x"}, "no message of trainrun"),
    ],
)
def test_an_unknown_dialect_is_refused(make: Callable[..., Nodes], said: dict[str, Any], reason: str) -> None:
    run = make()
    with connect(run.where, 5) as stranger, stranger.makefile() as answers:
        stranger.sendall(json.dumps({"kind": "hello", **said}).encode() + b"\n")
        refused = json.loads(answers.readline())
        assert answers.readline() == ""
    assert refused["kind"] == "refused"
    assert reason in refused["reason"]


def test_strangers_at_the_door_keep_nobody_out(make: Callable[..., Nodes]) -> None:
    run = make()
    with ExitStack() as crowd:
        for _ in range(20):
            crowd.enter_context(connect(run.where, 5)).sendall(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(20):
            crowd.enter_context(connect(run.where, 5))
        run.enter()
        assert run.hub.gather(PATIENCE, lambda: True)


def test_nobody_at_the_endpoint_is_told_with_its_addresses_and_the_last_error(free_port: int) -> None:
    said: list[str] = []
    search = member.Search(Endpoint("localhost", free_port), 0.3, said.append, lambda: True)
    with pytest.raises(
        member.NotReached, match=r"localhost:\d+ \(.*127\.0\.0\.1.*within 0\.3 s: Connection refused; is it"
    ):
        member.join(search, Visitor(1, 2), lambda *_: [])
    assert len(said) == 1
    assert "waiting for node 0 at localhost:" in said[0]


def test_a_host_that_does_not_exist_is_told_in_bounded_time() -> None:
    search = member.Search(Endpoint("no-such-host.invalid", 1), 0.3, lambda _: None, lambda: True)
    with pytest.raises(member.NotReached, match=r"no-such-host\.invalid:1 \(its name does not resolve"):
        member.join(search, Visitor(1, 2), lambda *_: [])


def test_the_end_is_told_and_the_key_is_gone(make: Callable[..., Nodes]) -> None:
    run = make()
    channel = run.enter()
    assert run.hub.gather(PATIENCE, lambda: True)
    assert run.paths.nodes_key.stat().st_mode & 0o777 == 0o600

    last: list[Message | None] = []

    def leave() -> None:
        last.append(channel.take(PATIENCE))
        channel.close()

    left = threading.Thread(target=leave)
    left.start()
    run.hub.farewell(Outcome("finished", 0, "all steps are done"))
    left.join(PATIENCE)
    assert last == [Over(outcome=Outcome("finished", 0, "all steps are done"))]
    assert run.hub.peers == []
    run.hub.close()
    assert not run.paths.nodes_key.exists()
    with pytest.raises(OSError, match="refused"):
        connect(run.where, 1)


def software(**changed: Any) -> dict[str, Any]:
    return {**SOFTWARE, "plugins": [["a", "dist 1 (a:A)", "x"], ["b", "built-in b", "y"]], **changed}


@pytest.mark.parametrize(
    ("mine", "expected"),
    [
        (software(), []),
        (software(versions={"torch": "3"}), ["torch: node 0 has 2, node 1 (h) has 3"]),
        (software(versions={}), ["torch: node 0 has 2, node 1 (h) has None"]),
        (software(workers=4), ["launch.workers: node 0 starts 2 workers, node 1 (h) would start 4"]),
        (
            software(plugins=[["a", "dist 2 (a:A)", "x"], ["b", "built-in b", "y"]]),
            ["plugin a: node 0 has dist 1 (a:A), node 1 (h) has dist 2 (a:A)"],
        ),
        (
            software(plugins=[["a", "dist 1 (a:A)", "z"], ["b", "built-in b", "y"]]),
            ["plugin a: the source of dist 1 (a:A) on node 1 (h) is not that of node 0"],
        ),
        (software(plugins=[["b", "built-in b", "y"]]), ["plugin a: node 0 has dist 1 (a:A), node 1 (h) has none"]),
        (
            software(plugins=[*software()["plugins"], ["c", "c", ""]]),
            ["plugin c: node 0 has none, node 1 (h) has c"],
        ),
        (
            software(plugins=software()["plugins"][::-1]),
            ["order of plugins: node 0 has a, b; node 1 (h) has b, a"],
        ),
    ],
)
def test_differences_name_plugin_node_and_both_versions(mine: dict[str, Any], expected: list[str]) -> None:
    assert differences(software(), mine, "node 1 (h)") == expected


def test_keys_of_recipes_that_differ_are_named() -> None:
    first, mine = '[optimizer]\nlr = 0.1\nname = "sgd"\n', '[optimizer]\nlr = 0.2\nname = "sgd"\n[data]\nworkers = 1\n'
    assert recipe_differences(first, mine, "node 1") == [
        "optimizer.lr: node 0 has 0.1, node 1 has 0.2",
        "data.workers: node 0 has nothing, node 1 has 1",
    ]
