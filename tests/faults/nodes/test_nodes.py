"""What happens to a run on two hosts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainrun.launch.ends import read_record
from trainrun.rundir import RunPaths, process

if TYPE_CHECKING:
    from conftest import Cluster, Node

SOON = 25.0  # seconds in which all nodes know of an end that closes connections
SILENT = 35.0  # the same where a node is lost by its silence only


def ends(first: Node, second: Node, code: int, seconds: float | None = None) -> None:
    """Both launches end with a code; within `seconds` from now, where that matters."""
    began = time.monotonic()
    codes = first.end(), second.end()
    assert codes == (code, code), first.said + second.said
    assert seconds is None or time.monotonic() - began < seconds


@pytest.mark.parametrize(("start", "workers"), [("warm", 2), pytest.param("cold", 1, marks=pytest.mark.long)])
def test_trains_to_the_end_with_equal_parameters(cluster: Cluster, start: str, workers: int) -> None:
    options = [f"launch.start={start}", f"launch.workers={workers}", "train.steps=5"]
    first, second = cluster.both(*(part for option in options for part in ("-o", option)))
    ends(first, second, 0)
    size = 2 * workers
    assert len({cluster.weights(rank) for rank in range(size)}) == 1
    for rank in range(size):
        place = f"{rank} of {size}, {rank % workers} of {workers} on node {rank // workers}"
        assert (cluster.run / f"place-{rank}").read_text() == place
    assert f"run: {cluster.run} (node 1 of 2)" in second.said
    assert "finished: 5/5 steps" in second.said
    assert not (cluster.run / "nodes.key").exists()
    assert cluster.left() == []


# --- one node fails ---


def test_an_error_on_one_node_ends_both_and_the_next_attempt_goes_on(cluster: Cluster) -> None:
    options = ["-o", "train.steps=6", "-o", "launch.max_restarts=1"]
    options += ["-o", "checkpoint.every=2", "-o", "checkpoint.background=false"]
    first, second = (cluster.launch(host, *options, RAISE_AT="1:4") for host in range(2))
    ends(first, second, 0)
    assert first.said.count("as it was told") >= 1
    (restart,) = cluster.events("restart")
    assert "rank 1" in restart["reason"]
    assert cluster.steps(0, attempt=2) == cluster.steps(1, attempt=2) == [3, 4, 5, 6]
    assert cluster.weights(0) == cluster.weights(1)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_worker_is_named_wherever_it_ran(cluster: Cluster, rank: int) -> None:
    first, second = cluster.both("-o", "launch.max_restarts=0", "-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(rank)) > 3)
    worker = process_of(cluster, rank)
    killed = time.monotonic()
    process.kill_group(worker)
    ends(first, second, 1, SOON)
    assert time.monotonic() - killed < SOON
    assert f"rank {rank} was killed by SIGKILL" in cluster.outcome["reason"]
    assert f"rank {rank} was killed by SIGKILL" in second.said


def test_a_hang_is_explained_with_the_stacks_of_all_nodes(cluster: Cluster) -> None:
    options = ["-o", "launch.timeout=2", "-o", "launch.max_restarts=0", "-o", "train.steps=1000"]
    first, second = (cluster.launch(host, *options, HANG_AT="1:4") for host in range(2))
    ends(first, second, 1)
    where = "rank 1 sits in on_step_start of plugin notes at step 4"
    assert f"no rank advanced for 2 s: {where}; rank 0 waits in backward" in cluster.outcome["reason"]
    assert where in second.said
    stacks = [RunPaths(cluster.run).stacks(1, rank).read_text() for rank in range(2)]
    assert "in backward" in stacks[0]
    assert "in on_step_start" in stacks[1]
    assert cluster.left() == []


def process_of(cluster: Cluster, rank: int) -> process.Recorded:
    record = read_record(RunPaths(cluster.run), 1, rank)
    assert record is not None
    return record


# --- a node is lost ---


@pytest.mark.long
def test_a_pulled_cable_ends_both_as_resumable(cluster: Cluster) -> None:
    first, second = cluster.both("-o", "launch.node_timeout=2", "-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    cluster.hosts.pull_cable()
    ends(first, second, 75, SILENT)
    assert "node 1 (" in cluster.outcome["reason"]
    assert "was lost: nothing was heard of it for 10 s" in cluster.outcome["reason"]
    assert "node 1 of 2 has not come within 2 s (present: 0 on " in cluster.outcome["reason"]
    assert cluster.outcome["first_failure"]["kind"] == "node"
    assert "node 0 was lost: nothing was heard of it for 10 s" in second.said
    assert cluster.left() == []


def test_when_the_cable_is_put_back_the_next_attempt_goes_on(cluster: Cluster) -> None:
    first, second = cluster.both("-o", "train.steps=40")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    cluster.hosts.pull_cable()
    cluster.wait_for(lambda: "node 0 was lost" in second.said and "node 1 of 2 at" in first.said.partition("lost")[2])
    cluster.hosts.plug_in()
    ends(first, second, 0)
    (restart,) = cluster.events("restart")
    assert "was lost" in restart["reason"]
    assert restart["why"].startswith("restart 1 of 10 after the loss of a node")
    assert cluster.steps(0, attempt=2) == cluster.steps(1, attempt=2) == list(range(1, 41))
    assert cluster.weights(0) == cluster.weights(1)


@pytest.mark.long
def test_a_node_whose_launch_was_killed_comes_back_by_another(cluster: Cluster) -> None:
    first, second = cluster.both("-o", "train.steps=20")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    second.process.kill()
    cluster.wait_for(lambda: "was lost: it closed the connection" in first.said)
    third = cluster.launch(1, "-o", "train.steps=20")
    ends(first, third, 0)
    assert cluster.steps(1, attempt=2) == list(range(1, 21))
    assert cluster.weights(0) == cluster.weights(1)


@pytest.mark.long
def test_losses_of_nodes_have_a_budget(cluster: Cluster) -> None:
    first, second = cluster.both("-o", "launch.max_node_losses=0", "-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    second.process.kill()
    assert first.end(SOON) == 75, first.said


def test_without_node_0_the_others_end_soon_and_leave_nothing(cluster: Cluster) -> None:
    first, second = cluster.both("-o", "launch.node_timeout=2", "-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    first.process.kill()
    killed = time.monotonic()
    cluster.wait_for(lambda: cluster.left() == [])
    assert time.monotonic() - killed < 5
    assert second.end(SOON) == 75, second.said
    assert "node 0 was lost: it closed the connection" in second.said
    assert "node 0 could not be reached within 2 s: Connection refused" in second.said


@pytest.mark.long
def test_a_node_does_not_join_a_later_run_by_mistake(cluster: Cluster) -> None:
    first, second = cluster.both("-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    first.process.kill()
    cluster.wait_for(lambda: "Connection refused" in second.said.partition("was lost")[2])
    third = cluster.launch(0, "-o", "launch.node_timeout=3")
    assert second.end(SOON) == 75, second.said
    assert "it belongs to run " in second.said
    assert third.end(SOON) == 4, third.said


# --- the beginning ---


def test_a_node_that_never_comes_is_named(cluster: Cluster) -> None:
    first = cluster.launch(0, "-o", "launch.node_timeout=1")
    assert first.end(SOON) == 4, first.said
    assert "node 1 of 2 has not come within 1 s (present: 0 on " in cluster.outcome["reason"]
    second = cluster.launch(1, "-o", "launch.node_timeout=1")
    assert second.end(SOON) == 4, second.said
    assert "--rdzv-endpoint 10.77.0.1:29400: node 0 could not be reached within 1 s: Connection refused" in second.said


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_that_does_not_exist(cluster: Cluster, host: int) -> None:
    node = cluster.launch(host, "--rdzv-endpoint", "no-such-host.invalid:29400", "-o", "launch.node_timeout=1")
    assert node.end(SOON) == 4, node.said
    assert "no-such-host.invalid:29400" in node.said
    assert "does not resolve" in node.said


def test_a_taken_port_names_its_holder_before_anything_is_made(cluster: Cluster) -> None:
    code = "import socket, sys; s = socket.create_server(('', 29400)); print(flush=True); sys.stdin.read()"
    command = cluster.hosts.on(0, [sys.executable, "-c", code])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        first = cluster.launch(0)
        assert first.end(SOON) == 4, first.said
        holder.kill()
    assert f"port 29400 is taken by process {holder.pid} (" in first.said
    assert not (cluster.folder / "runs").exists()


@pytest.mark.long
def test_a_second_launch_of_the_same_node_is_refused(cluster: Cluster) -> None:
    first, second = cluster.both("-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    third = cluster.launch(1, "-o", "train.steps=1000")
    assert third.end(SILENT) == 4, third.said
    assert "--node-rank 1 is taken by node 1 (" in third.said
    first.process.send_signal(signal.SIGINT)
    ends(first, second, 130)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({0: "1.0", 1: "1.1"}, "plugin extra: node 0 has extra-plugin 1.0 (extra:Extra), node 1 has extra-plugin 1.1"),
        ({0: "1.0"}, "extra"),
    ],
    ids=["another version", "not installed"],
)
def test_other_plugins_end_both(cluster: Cluster, sites: Mapping[int, str], message: str) -> None:
    nodes = []
    for host in range(2):
        site = install(cluster.folder / f"site-{host}", sites.get(host))
        nodes.append(cluster.launch(host, "-p", "extra", PYTHONPATH=str(site)))
    assert nodes[0].end(SOON) == 4, nodes[0].said
    assert nodes[1].end(SOON) in {2, 4}, nodes[1].said
    assert message in nodes[1].said
    assert "node 1 (" in cluster.outcome["reason"]
    assert message in cluster.outcome["reason"]


def install(site: Path, version: str | None) -> Path:
    """A folder with a distribution that brings a plugin, for PYTHONPATH."""
    site.mkdir()
    if version is not None:
        (site / "extra.py").write_text("class Extra:\n    pass\n")
        metadata = site / f"extra_plugin-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: extra-plugin\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text("[trainrun]\nextra = extra:Extra\n")
    return site


def test_another_recipe_ends_both_and_names_the_keys(cluster: Cluster) -> None:
    first, second = cluster.launch(0), cluster.launch(1, "-o", "optimizer.lr=0.2")
    ends(first, second, 4)
    assert "optimizer.lr: node 0 has 0.1, node 1 has 0.2" in second.said
    assert "optimizer.lr: node 0 has 0.1, node 1 has 0.2" in cluster.outcome["reason"]


def test_a_run_directory_that_is_not_shared_is_told_on_both_with_advice(cluster: Cluster) -> None:
    (cluster.folder / "runs").mkdir()
    first = cluster.launch(0, "-o", "launch.node_timeout=8")
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none runs && exec "$@"', "sh"]
    second = cluster.launch(1, "-o", "launch.node_timeout=8", before=hidden)
    # Neither can prove to the other who it is, so that both say what is wrong, and wait for the right one.
    cluster.wait_for(lambda: "turned away 10.77.0.2: node 1 (" in first.said and "waiting for node 0" in second.said)
    ends(first, second, 4)
    for said in (second.said, cluster.outcome["reason"]):
        assert "does not see the run directory" in said
        assert "put run.dir (or --dir) on a file system that all nodes share" in said


# --- being asked to stop ---


@pytest.mark.parametrize(
    ("host", "number", "code"),
    [
        (1, signal.SIGINT, 130),
        pytest.param(0, signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(0, signal.SIGTERM, 75, marks=pytest.mark.long),
        pytest.param(1, signal.SIGTERM, 75, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_any_node_stops_all_at_one_step(
    cluster: Cluster, host: int, number: signal.Signals, code: int
) -> None:
    nodes = cluster.both("-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    nodes[host].process.send_signal(number)
    ends(*nodes, code, SOON)
    assert cluster.steps(0)[-1] == cluster.steps(1)[-1]
    assert cluster.weights(0) == cluster.weights(1)


@pytest.mark.long
@pytest.mark.parametrize("host", [0, 1])
def test_a_second_ctrl_c_ends_all_at_once(cluster: Cluster, host: int) -> None:
    nodes = cluster.both("-o", "train.steps=1000", "-o", "launch.grace=60")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    for worker in (process_of(cluster, 0), process_of(cluster, 1)):
        process.send(worker, signal.SIGSTOP)  # they will not stop by themselves
    nodes[host].process.send_signal(signal.SIGINT)
    cluster.wait_for((cluster.run / "attempts/1/requests.jsonl").exists)
    nodes[host].process.send_signal(signal.SIGINT)
    ends(*nodes, 130, SOON)
    assert cluster.left() == []


def test_ctrl_c_while_waiting_for_the_others_ends_it(cluster: Cluster) -> None:
    first, second = cluster.launch(0), cluster.launch(1, "--rdzv-endpoint", "10.77.0.1:1")
    cluster.wait_for(lambda: "waiting for node 1" in first.said and "waiting for node 0" in second.said)
    for node in (first, second):
        node.process.send_signal(signal.SIGINT)
    assert first.end(SOON) == 130, first.said
    assert second.end(SOON) == 130, second.said


@pytest.mark.long
@pytest.mark.parametrize("host", [0, 1])
def test_the_stop_command_works_from_any_host(cluster: Cluster, host: int) -> None:
    nodes = cluster.both("-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    command = [sys.executable, "-m", "trainrun", "stop", str(cluster.run), "--reason", "seen enough"]
    subprocess.run(cluster.hosts.on(host, command), check=True, env=cluster.environment)
    ends(*nodes, 0, SOON)
    assert "seen enough" in cluster.outcome["reason"]
    assert cluster.steps(0)[-1] == cluster.steps(1)[-1]
    assert cluster.weights(0) == cluster.weights(1)


@pytest.mark.long
@pytest.mark.parametrize("host", [0, 1])
def test_a_checkpoint_is_asked_of_all_ranks_at_one_step(cluster: Cluster, host: int) -> None:
    nodes = cluster.both("-o", "train.steps=1000")
    cluster.wait_for(lambda: len(cluster.steps(1)) > 3)
    nodes[host].process.send_signal(signal.SIGUSR1)
    cluster.wait_for(lambda: [event for event in cluster.events("decision") if event["decision"] == "checkpoint"])
    nodes[host].process.send_signal(signal.SIGINT)
    ends(*nodes, 130, SOON)
    (asked,) = [event for event in cluster.events("decision") if event["decision"] == "checkpoint"]
    assert "SIGUSR1" in asked["reason"]
