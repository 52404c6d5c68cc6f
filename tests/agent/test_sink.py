"""The process that keeps what workers print: real pipes, real processes, a real full disk."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from trainrun.agent import sink
from trainrun.agent.sink import CappedFile, Sink, Source

LIMIT = 64 * 1024
NOTICE = re.compile(rb"(?m)^--- (\d+) bytes of output were dropped so far: (.*) ---\n")


class Files:
    """One worker's pipe and files in a folder."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.pipe = folder / f"rank-{rank}.pipe"
        self.path = folder / f"rank-{rank}.out"
        self.old = folder / f"rank-{rank}.1.out"

    def capped(self, limit: int = LIMIT) -> CappedFile:
        return CappedFile(str(self.path), str(self.old), limit)

    def content(self) -> bytes:
        """What is kept, without notices."""
        return b"".join(NOTICE.sub(b"", path.read_bytes()) for path in (self.old, self.path) if path.exists())

    def size(self) -> int:
        """Bytes on the disk."""
        total = 0
        for path in (self.path, self.old):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def dropped(self) -> int:
        """What the last notice tells."""
        with suppress(FileNotFoundError):  # for a moment there is none
            found = NOTICE.findall(self.path.read_bytes())
            return int(found[-1][0]) if found else 0
        return 0


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def write(file: CappedFile, data: bytes) -> None:
    file.write(memoryview(data))


def lines(count: int) -> list[bytes]:
    return [b"line %07d of what a worker prints\n" % number for number in range(count)]


def test_little_is_kept_as_it_is(files: Files) -> None:
    file = files.capped()
    data = b"\xff\xfe not text \x00\x1b[31m red \r 10%\r 100%\r\nno end"
    write(file, data)
    assert files.path.read_bytes() == data
    assert not files.old.exists()
    assert files.path.stat().st_mode & 0o777 == 0o600


def test_first_new_file_has_lost_nothing(files: Files) -> None:
    file, written = files.capped(), b"".join(lines(1500))
    write(file, written)
    assert files.old.exists()
    assert files.path.read_bytes()
    assert files.old.read_bytes() + files.path.read_bytes() == written
    assert files.old.read_bytes().endswith(b"\n")  # cut between two lines


@pytest.mark.parametrize("size", [1, 37, 1000, 100_000])
def test_what_is_dropped_is_counted_to_the_byte(files: Files, size: int) -> None:
    file, written = files.capped(8192), b"".join(lines(1500))
    for start in range(0, len(written), size):
        write(file, written[start : start + size])
        assert files.size() <= 8192
    kept, total = files.content(), len(written)
    assert written.endswith(kept)
    assert files.dropped() + len(kept) == total
    assert b"the limit is 8192 bytes" in files.path.read_bytes()
    if size >= 37:
        assert kept.startswith(b"line ")


def test_endless_line_is_kept_within_the_limit(files: Files) -> None:
    file, size = files.capped(), 10_000_000
    for _ in range(size // 100_000):
        write(file, b"x" * 100_000)
    kept = files.content()
    assert set(kept) == {ord("x")}
    assert files.dropped() + len(kept) == size
    assert LIMIT / 2 < len(kept) <= LIMIT


def test_long_line_is_whole_where_it_fits(files: Files) -> None:
    file = files.capped(40_000_000)
    write(file, b"before\n" + b"x" * 10_000_000 + b"\nafter\n")
    assert files.path.stat().st_size == 10_000_000 + 7 + 7


def test_goes_on_where_another_one_stopped(files: Files) -> None:
    written = b"".join(lines(3000))
    for start in range(0, len(written), 10_000):
        write(files.capped(), written[start : start + 10_000])  # a new one each time
    assert files.dropped() + len(files.content()) == len(written)
    assert files.dropped() > 0


def test_limit_that_was_lowered(files: Files) -> None:
    files.path.write_bytes(b"".join(lines(3000)))
    size = files.path.stat().st_size
    file = files.capped(8192)
    write(file, b"first\n")
    assert files.old.stat().st_size == size
    write(file, b"".join(lines(200)))
    assert files.old.stat().st_size < 8192
    assert files.dropped() > size - 8192


def test_files_that_somebody_removes(files: Files) -> None:
    file = files.capped(8192)
    for _ in range(20):
        write(file, b"".join(lines(30)))
        files.path.unlink(missing_ok=True)
    write(file, b"".join(lines(500)))
    assert files.content().endswith(lines(500)[-1])


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    files = Files(tmp_path / "later")
    file = files.capped()
    write(file, b"lost\n")
    (tmp_path / "later").mkdir()
    write(file, b"kept\n")
    assert (
        files.path.read_bytes() == b"--- 5 bytes of output were dropped so far: No such file or directory ---\nkept\n"
    )


def test_notice_begins_a_line_of_its_own(files: Files) -> None:
    file = files.capped()
    write(file, b"half a line")
    file._drop(3, b"why")
    write(file, b" and its end\n")
    assert files.path.read_bytes() == (
        b"half a line\n--- 3 bytes of output were dropped so far: why ---\n and its end\n"
    )


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        other, files = disk / "other", Files(disk)
        file, written = files.capped(1_000_000), b"".join(lines(20_000))
        other.write_bytes(b"x" * 100_000)
        write(file, written)
        kept = len(files.content())
        assert 100_000 < kept < 160_000
        assert written.startswith(files.content())
        write(file, b"also lost\n")
        assert files.dropped() == 0  # nowhere to tell it
        other.unlink()
        write(file, b"kept\n")
        assert files.dropped() == len(written) - kept + len(b"also lost\n")
        assert b"No space left on device" in files.path.read_bytes()
        assert files.path.read_bytes().endswith(b" ---\nkept\n")
        assert NOTICE.sub(b"", files.path.read_bytes()).count(b"---") == 0  # no half of a notice


class Running:
    """A sink in a process of its own, for some workers."""

    def __init__(self, folder: Path, ranks: int = 1, limit: int = LIMIT) -> None:
        self.files = [Files(folder, rank) for rank in range(ranks)]
        for files in self.files:
            os.mkfifo(files.pipe, 0o600)
        names = [str(name) for files in self.files for name in (files.pipe, files.path, files.old)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", sink.__file__, str(limit), f"RUN={folder}", "NODE=0", *names],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_for(lambda: all(files.path.exists() for files in self.files))

    def finish(self) -> None:
        """End it, and see that it ended well and quietly."""
        _, errors = self.process.communicate(b"\n", timeout=20)
        assert (self.process.returncode, errors) == (0, b"")

    @property
    def memory(self) -> int:
        """Resident bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) * 1024


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(**settings: int) -> Running:
        made.append(Running(tmp_path, **settings))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.communicate()


def wait_for(question: Callable[[], object], patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not question():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextmanager
def printing(command: str, pipe: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker: a shell command whose output goes into the pipe."""
    with pipe.open("wb", buffering=0) as output:
        worker = subprocess.Popen(["bash", "-c", command], stdout=output, start_new_session=True)
    try:
        yield worker
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def test_writers_come_and_go(running: Callable[..., Running]) -> None:
    one = running()
    [files] = one.files
    for number in range(3):
        with printing(f"echo {number}", files.pipe) as worker:
            worker.wait()
    one.finish()
    assert files.path.read_bytes() == b"0\n1\n2\n"
    assert not files.pipe.exists()


def test_nobody_ever_printed(running: Callable[..., Running]) -> None:
    one = running(ranks=3)
    began = time.monotonic()
    one.finish()
    assert time.monotonic() - began < 4
    assert [files.path.read_bytes() for files in one.files] == [b"", b"", b""]


def test_last_words_of_a_killed_worker(running: Callable[..., Running]) -> None:
    one = running()
    [files] = one.files
    files.pipe.open("wb", buffering=0).close()  # which waits until the process has opened its end
    one.process.send_signal(signal.SIGSTOP)  # so that all of it is still in the pipe
    with printing("printf 'its last words'; kill -9 $$", files.pipe) as worker:
        assert worker.wait() == -signal.SIGKILL
    one.process.send_signal(signal.SIGCONT)
    one.finish()
    assert files.path.read_bytes() == b"its last words"


def test_flood_of_one_disturbs_no_other_and_fills_no_disk(running: Callable[..., Running]) -> None:
    limit, flood = 1_000_000, 200_000_000
    one = running(ranks=2, limit=limit)
    loud, quiet = one.files
    with printing("yes 'the same line again and again'", loud.pipe) as worker:
        wait_for(lambda: loud.dropped() > 10 * limit)
        before = one.memory
        with printing("for i in $(seq 1000); do echo line $i; done", quiet.pipe) as other:
            assert other.wait(60) == 0
        wait_for(lambda: loud.dropped() > flood)
        assert worker.poll() is None
        assert loud.size() <= limit
        assert one.memory - before < 1024 * 1024
    one.finish()
    assert quiet.path.read_bytes() == b"".join(b"line %d\n" % number for number in range(1, 1001))


def test_follows_its_parent(tmp_path: Path) -> None:
    """The client is killed while one of its children holds the pipe that tells of it."""
    files = Files(tmp_path)
    os.mkfifo(files.pipe)
    child = "import os, subprocess, sys, time; p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
    child += "if os.fork() == 0: time.sleep(600)\nprint(p.pid, flush=True); time.sleep(600)"
    names = ["RUN=1", "NODE=0", str(files.pipe), str(files.path), str(files.old)]
    command = [sys.executable, "-I", "-S", sink.__file__, "8192", *names]
    client = subprocess.Popen([sys.executable, "-c", child, *command], stdout=subprocess.PIPE, start_new_session=True)
    assert client.stdout is not None
    try:
        pid = int(client.stdout.readline())
        with printing("printf told; sleep 0.1; printf ' all'", files.pipe) as worker:
            wait_for(files.path.exists)
            client.kill()
            worker.wait()
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())
        assert files.path.read_bytes() == b"told all"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)
        client.communicate()


def test_waits_for_a_stray_writer_only_so_long(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "_PATIENCE", 0.3)
    os.mkfifo(files.pipe)
    control, over = os.pipe()
    one = Sink([Source(str(files.pipe), files.capped())], control, os.getppid())
    os.close(over)
    with printing("yes still here", files.pipe):
        one.follow()
        one.finish()
    os.close(control)
    assert files.content().startswith(b"still here\n")
    assert not files.pipe.exists()


def stamps(path: Path) -> list[tuple[float, int]]:
    lines = path.read_text().splitlines()
    return [(float(moment), int(offset)) for moment, offset in (line.split() for line in lines)]


def test_times_are_noted_beside_the_output(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    file = files.capped()
    for passed, data in [(0.0, b"x" * 100), (0.5, b"x" * 100), (1.0, b"few"), (1.0, b"few"), (9.0, b"few"), (5.0, b"")]:
        now[0] += passed
        write(file, data)
    # In the first second one note; then one for much, and one for little after ten seconds.
    assert stamps(files.path.with_suffix(".times")) == [(1000.0, 0), (1001.5, 200), (1011.5, 206)]
    write(file, b"y" * 40_000)
    assert stamps(files.old.with_suffix(".times"))[0] == (1000.0, 0)
    assert stamps(files.path.with_suffix(".times"))[0][1] == 0


def test_times_that_cannot_be_noted_are_left_out(files: Files) -> None:
    files.path.with_suffix(".times").mkdir()
    file = files.capped()
    write(file, b"line\n" * 10_000)
    assert files.content()


@pytest.fixture
def sleeping() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that carries these variables, in a session of its own."""
    made: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **variables}
        made.append(subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True))
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.wait()


def test_ends_what_a_killed_client_has_left(
    running: Callable[..., Running], sleeping: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    run = str(tmp_path)
    orphan, stopped = sleeping(RUN=run, NODE="0"), sleeping(RUN=run, NODE="0")
    others = [sleeping(RUN=run, NODE="1"), sleeping(RUN=f"{run}-2", NODE="0"), sleeping(RUN=run)]
    stopped.send_signal(signal.SIGSTOP)
    one = running()
    one.process.communicate(timeout=20)  # the end of its stdin, and nothing said
    assert (orphan.wait(2), stopped.wait(2)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert [other.poll() for other in others] == [None] * 3


def test_ends_nothing_when_the_client_says_that_it_is_over(
    running: Callable[..., Running], sleeping: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    member = sleeping(RUN=str(tmp_path), NODE="0")
    running().finish()
    assert member.poll() is None


def test_ends_nothing_of_the_next_client(
    sleeping: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "_started", lambda _: float("inf"))
    member = sleeping(RUN="1", NODE="0")
    sink.end_orphans({b"RUN=1", b"NODE=0"})
    assert member.poll() is None


SECRETS = sink.secrets('["zq-secret-two", "zq-secret"]')


@pytest.mark.parametrize("size", [1, 2, 5, 9, 1000])
def test_secrets_are_left_out_however_they_arrive(files: Files, size: int) -> None:
    text = b"a zq-secret, zq-secret-two; zq-sec zq-zq-secret\nzq-secre"
    file = sink.Masked(files.capped(), SECRETS)
    for start in range(0, len(text), size):
        file.write(memoryview(text[start : start + size]))
    file.flush()
    expected = b"a <redacted>, <redacted>; zq-sec zq-<redacted>\nzq-secre"
    assert files.content() == expected


def test_what_may_be_the_beginning_of_a_secret_waits_for_more(files: Files) -> None:
    file = sink.Masked(files.capped(), SECRETS)
    file.write(memoryview(b"step 1 zq"))
    assert files.content() == b"step 1 "
    file.write(memoryview(b"uiet\n"))
    assert files.content() == b"step 1 zquiet\n"


def test_without_secrets_nothing_waits(files: Files) -> None:
    file = sink.Masked(files.capped(), sink.secrets(""))
    file.write(memoryview(b"zq"))
    assert files.content() == b"zq"
