"""What workers print without measure, in real launches: it neither fills the disk nor holds up or ends a run."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

Wait = Callable[[Callable[[], object]], None]

PLUGIN = r"""
import os, signal, sys
from trainrun import Field, PluginOptions, hookimpl


class Options(PluginOptions):
    flood: int = Field(0, description="Megabytes that rank 1 prints in each step.")
    killed: int = Field(0, description="The step at which rank 0 is killed within a line.")


class Prints:
    Options = Options

    def __init__(self, options):
        self.options = options

    @hookimpl
    def on_step_end(self, run):
        print(f"step {run.step} of rank {run.world.rank}", file=sys.stderr)
        if run.world.rank == 1:
            for _ in range(self.options.flood):
                os.write(1, b"\xff\x1b[31m no text\x00 at all \r 10%\r\n" * 30_000)
        elif run.step == self.options.killed:
            os.write(1, b"last words")
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def prints(project: Any) -> list[str]:
    """The overrides that enable the plugin."""
    (project.folder / "prints.py").write_text(PLUGIN)
    return ["-o", "plugins.prints.use=prints.py:Prints", "-o", "launch.output_limit=1", "-o", "launch.max_restarts=0"]


@pytest.fixture
def readers(project: Any) -> Iterator[Callable[[], list[int]]]:
    """The processes that keep the output of this project's runs. They are no members of a run, so ended here too."""

    def find() -> list[int]:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _reads(entry)]

    def _reads(entry: Path) -> bool:
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            return any(word.endswith(b"sink.py") for word in words) and os.fsencode(project.folder) in b" ".join(words)
        return False

    yield find
    for pid in find():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_flood_and_last_words(project: Any, prints: list[str], readers: Callable[[], list[int]]) -> None:
    ended = project(
        *("launch", "train.toml", *prints, "--ranks", "0,1"),
        *("-o", "plugins.prints.flood=4", "-o", "plugins.prints.killed=6"),
    )
    assert ended.code == 1
    assert ended.verdict.startswith("failed: rank 0 was killed"), ended.verdict
    assert readers() == []
    logs = ended.run / "logs"
    assert (logs / "rank-0.out").read_bytes() == b"".join(
        b"step %d of rank 0\n" % n for n in range(1, 7)
    ) + b"last words"

    kept = [logs / "rank-1.1.out", logs / "rank-1.out"]
    assert 2**19 < sum(path.stat().st_size for path in kept) <= 2**20
    notice = re.match(
        rb"--- (\d+) bytes of output were dropped so far: the limit is 1048576 bytes ---\n", kept[1].read_bytes()
    )
    assert notice is not None
    assert int(notice[1]) > 4_000_000
    assert b"\xff\x1b[31m no text\x00 at all \r 10%\r\n" in kept[1].read_bytes()

    lines = ended.stderr.split("\n")
    shown = [line for line in lines if line.startswith("[rank 0] ")]
    assert shown[-2:] == ["[rank 0] step 6 of rank 0", "[rank 0] last words"]
    assert "[rank 1]  10%" in lines
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", ended.stderr)
    assert list((ended.run / "attempts" / "1").glob("*.pipe")) == []


@pytest.mark.long
def test_reader_is_killed_while_a_run_goes_on(
    project: Any, prints: list[str], readers: Callable[[], list[int]], wait_for: Wait
) -> None:
    command = project.start("launch", "train.toml", *prints, "-o", "task.fault=is_slow", "-o", "train.steps=12")
    wait_for(lambda: _printed(project, b"step 2 "))
    [reader] = readers()
    os.kill(reader, signal.SIGKILL)
    wait_for(lambda: readers() not in ([], [reader]))
    ended = project.finish(command)
    assert ended.code == 0, ended.stderr
    for rank in (0, 1):
        found = (ended.run / "logs" / f"rank-{rank}.out").read_text()
        assert found == "".join(f"step {step} of rank {rank}\n" for step in range(1, 13))
    assert readers() == []


@pytest.mark.long
def test_client_is_killed(project: Any, prints: list[str], readers: Callable[[], list[int]], wait_for: Wait) -> None:
    command = project.start("launch", "train.toml", *prints, "-o", "task.fault=is_slow", "-o", "train.steps=1000")
    wait_for(lambda: _printed(project, b"step 2 "))
    assert len(readers()) == 1
    command.kill()
    command.wait()
    wait_for(lambda: project.left() == [])
    wait_for(lambda: readers() == [])
    project.finish(command)


def _printed(project: Any, text: bytes) -> bool:
    with suppress(FileNotFoundError):
        return text in (project.folder / "runs" / "latest" / "logs" / "rank-0.out").read_bytes()
    return False
