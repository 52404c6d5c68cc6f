"""What workers print, from their descriptors to the files: real processes, also such that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from trainrun.launch import output
from trainrun.launch.output import Output
from trainrun.rundir import RunPaths, create, process

LIMIT = 1_000_000
WORKER = """
import sys
from pathlib import Path
from trainrun.rundir import RunPaths
from trainrun.worker import output
output.redirect(RunPaths(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
exec(sys.argv[4])
"""


class Node:
    """A node with workers that do nothing but print."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._outputs: list[Output] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def output(self, attempt: int = 1, workers: int = 1, limit: int = LIMIT) -> Output:
        self._outputs.append(Output(self.paths, attempt, range(workers), limit))
        self._outputs[-1].start()
        return self._outputs[-1]

    def worker(self, does: str, rank: int = 0, attempt: int = 1) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, str(self.paths.root), str(attempt), str(rank), does]
        environment = {**os.environ, process.RUN_DIR_VARIABLE: str(self.paths.root)}
        with self.paths.client_log.open("ab") as file:  # a stream that begins as a file, as in a real launch
            worker = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.PIPE, start_new_session=True
            )
        self._workers.append(worker)
        return self._workers[-1]

    def runs(self, does: str, rank: int = 0, attempt: int = 1) -> int:
        """Wait for such a worker's end."""
        worker = self.worker(does, rank, attempt)
        _, errors = worker.communicate(timeout=60)
        assert errors == b""  # all of it goes into the pipe
        return worker.returncode

    def end(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate()
        for one in self._outputs:
            one.close()
            assert one.reader is None


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return create(tmp_path / "runs", "test")


@pytest.fixture
def node(paths: RunPaths) -> Iterator[Node]:
    made = Node(paths)
    yield made
    made.end()


def wait_for(question: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not question():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def kill_reader(one: Output) -> int:
    pid = one.reader
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: one.reader is None)
    return pid


def old_enough(one: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each reader for one that has worked for long."""
    monkeypatch.setattr(output, "_QUICK", 0.0)


def test_each_rank_has_its_file(node: Node) -> None:
    one = node.output(workers=2)
    for rank in (0, 1):
        does = f"print('out', {rank}); print('error', file=sys.stderr); __import__('os').system('echo child')"
        assert node.runs(does, rank) == 0
    one.close()
    for rank in (0, 1):
        assert node.paths.rank_output(rank).read_bytes() == b"out %d\nerror\nchild\n" % rank
    assert list(node.paths.attempt(1).iterdir()) == []
    assert node.paths.agent_log.read_bytes() == b""


def test_text_that_is_none_ends_no_worker(node: Node) -> None:
    one = node.output()
    assert node.runs(r"print('\udcff'); sys.stdout.buffer.write(b'\xff\0\x1b[31m no end')") == 0
    one.close()
    assert node.paths.rank_output(0).read_bytes() == b"\\udcff\n\xff\0\x1b[31m no end"


def test_huge_line(node: Node) -> None:
    one = node.output(limit=40_000_000)
    assert node.runs("print('x' * 10_000_000)") == 0
    one.close()
    assert node.paths.rank_output(0).stat().st_size == 10_000_001


def test_killed_within_a_line(node: Node) -> None:
    one = node.output()
    does = "import os; print('whole'); os.write(1, b'x' * 50_000); os.kill(os.getpid(), 9)"
    assert node.runs(does) == -signal.SIGKILL
    one.close()
    assert node.paths.rank_output(0).read_bytes() == b"whole\n" + b"x" * 50_000


def test_attempts_are_appended(node: Node) -> None:
    for attempt, text in ((1, "one"), (2, "two"), (3, "three")):
        one = node.output(attempt)
        assert node.runs(f"sys.stdout.write({text!r})", attempt=attempt) == 0
        one.close()
    assert node.paths.rank_output(0).read_text() == "one\n--- attempt 2 ---\ntwo\n--- attempt 3 ---\nthree"


def test_reader_is_no_member_of_the_run(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.RUN_DIR_VARIABLE, str(node.paths.root))  # as in a launch from within a worker
    one = node.output()
    pid = one.reader
    assert pid is not None
    assert os.getsid(pid) == pid
    assert process.members(node.paths.root) == []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(pid, number)
    assert node.runs("print('still read')") == 0
    one.poll()
    assert one.reader == pid
    one.close()
    assert node.paths.rank_output(0).read_bytes() == b"still read\n"


def test_signals_reach_the_client_as_before(node: Node) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    node.output()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_killed_reader_is_replaced_and_nothing_is_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    one = node.output(limit=40_000_000)
    old_enough(one, monkeypatch)
    worker = node.worker("for i in range(60_000): print(i, 'x' * 40)")
    killed = set()
    while worker.poll() is None:
        one.poll()
        if len(killed) < 5:
            killed.add(kill_reader(one))
    assert worker.returncode == 0
    assert len(killed) == 5
    one.close()
    kept = node.paths.rank_output_old(0).read_text() if node.paths.rank_output_old(0).exists() else ""
    lines = (kept + node.paths.rank_output(0).read_text()).splitlines()
    # A killed reader takes with it what it had read and not written: one chunk at most, and only then.
    lost = 60_000 - sum(1 for line in lines if line.endswith("x" * 40))
    assert lost * 40 <= 5 * 256 * 1024
    assert lines[-1] == f"59999 {'x' * 40}"


def test_worker_waits_while_nobody_reads(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    one = node.output(limit=40_000_000)
    old_enough(one, monkeypatch)
    kill_reader(one)
    worker = node.worker("print('x' * 5_000_000)")
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.5)
    one.poll()
    assert worker.wait(60) == 0
    one.close()
    assert node.paths.rank_output(0).stat().st_size == 5_000_001


def test_reader_that_dies_at_the_end_is_replaced(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    one = node.output()
    old_enough(one, monkeypatch)
    wait_for(node.paths.rank_output(0).exists)
    kill_reader(one)
    assert node.runs("print('last words')") == 0
    one.close()
    assert node.paths.rank_output(0).read_bytes() == b"last words\n"


def test_reader_that_never_works_holds_up_nobody(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no use')")
    monkeypatch.setattr(output, "_SINK", broken)
    one = node.output()
    worker = node.worker("print('x' * 5_000_000)")
    wait_for(lambda: one.poll() or worker.poll() is not None)
    assert worker.returncode == 0
    one.close()
    told = node.paths.rank_output(0).read_text()
    assert told.startswith("--- 5000001 bytes of output were dropped: ")
    assert node.paths.agent_log.read_text().count("no use") == 3


def test_no_process_can_be_started(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    one = node.output()
    for _ in range(5):
        one.poll()
    assert node.paths.output_pipe(1, 0).exists(), "a worker could not even open its output"
    one.close()
    assert not node.paths.output_pipe(1, 0).exists()


@pytest.mark.parametrize("number", ["EPERM", "EOPNOTSUPP", "ENOSYS"])
def test_file_system_without_pipes(node: Node, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    import errno

    def mkfifo(path: Path, mode: int) -> None:
        raise OSError(getattr(errno, number), "no pipes here", str(path))

    monkeypatch.setattr(os, "mkfifo", mkfifo)
    one = node.output()
    one.poll()
    assert one.reader is None
    assert node.runs("print('straight')") == 0
    one.close()
    assert node.paths.rank_output(0).read_bytes() == b"straight\n"


def test_pipe_that_nobody_reads_is_not_waited_for(node: Node) -> None:
    """What a launch left behind that was killed."""
    pipe = node.paths.output_pipe(1, 0)
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    assert node.runs("print('straight')") == 0
    assert node.paths.rank_output(0).read_bytes() == b"straight\n"
    one = node.output()
    assert node.runs("print('through the pipe')") == 0
    one.close()
    assert node.paths.rank_output(0).read_bytes() == b"straight\nthrough the pipe\n"


def test_killed_client_leaves_no_reader_and_loses_nothing(node: Node) -> None:
    source = """
import sys, time
from pathlib import Path
from trainrun.launch.output import Output
from trainrun.rundir import RunPaths
output = Output(RunPaths(Path(sys.argv[1])), 1, [0], 1_000_000)
output.start()
print(output.reader, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", source, str(node.paths.root)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        started = process.start_time(pid)
        assert started is not None
        worker = node.worker("import time; print('before'); time.sleep(600)")
        wait_for(lambda: node.paths.rank_output(0).exists() and b"before\n" in node.paths.rank_output(0).read_bytes())
        client.kill()
        client.wait()
        os.killpg(worker.pid, signal.SIGKILL)
        wait_for(lambda: not process.alive(pid, started))
        assert node.paths.rank_output(0).read_bytes().startswith(b"before\n")
        assert not node.paths.output_pipe(1, 0).exists()
    finally:
        client.kill()
        client.communicate()


def test_nothing_is_left_open(node: Node) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    one = node.output(workers=4)
    assert descriptors() > before
    one.close()
    one.close()
    assert descriptors() == before
