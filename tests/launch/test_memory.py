from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainrun.launch import cgroup
from trainrun.launch.memory import Watch

MIB = 1024 * 1024


@pytest.mark.parametrize("version", [1, 2])
def test_the_group_and_its_limit_are_named(tmp_path: Path, version: int) -> None:
    """With files in place of control groups."""
    first = version == 1
    own, root = tmp_path / "cgroup", tmp_path / "root"
    own.write_text("12:cpu:/x\n4:memory:/user/job\n0::/\n" if first else "12:cpu:/x\n0::/user/job\n")
    folder = root / ("memory/user/job" if first else "user/job")
    folder.mkdir(parents=True)
    events = folder / ("memory.oom_control" if first else "memory.events")
    limit = folder / ("memory.limit_in_bytes" if first else "memory.max")
    events.write_text("under_oom 0\noom_kill 2\n")
    limit.write_text(f"{1500 * MIB}\n")
    watch = Watch.begin(own, root)
    assert watch.before == 2
    assert watch.shortage() is None
    events.write_text("under_oom 0\noom_kill 3\n")
    assert watch.shortage() == f"its control group ran out of memory; the limit is 1,500 MiB ({limit})"
    limit.write_text("9223372036854771712\n" if first else "max\n")
    assert watch.shortage() == "the machine ran out of memory"


def test_machine_that_does_not_say(tmp_path: Path) -> None:
    assert Watch.begin(tmp_path / "none", tmp_path).shortage() is None
    (tmp_path / "cgroup").write_text("12:cpu:/x\n")
    assert Watch.begin(tmp_path / "cgroup", tmp_path).before == 0


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine, within that of this process, with a limit of memory."""
    found = [line.split(":", 2) for line in cgroup.PROC.read_text().splitlines()]
    own = next((path for _, controllers, path in found if controllers == "memory"), None)
    if own is None or os.geteuid() != 0:
        pytest.skip("needs root and version 1 of the memory controller")
    parent = cgroup.ROOT / "memory" / own.lstrip("/")
    folder = (parent if parent.is_dir() else cgroup.ROOT / "memory") / f"trainrun-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    (folder / "memory.limit_in_bytes").write_text(str(64 * MIB))
    yield folder
    folder.rmdir()


def test_a_process_that_a_real_group_kills(group: Path) -> None:
    script = (
        "import json, os, subprocess, sys\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from trainrun.launch.memory import Watch\n"
        "watch = Watch.begin()\n"
        "code = subprocess.run([sys.executable, '-c', 'bytearray(512 * 1024 * 1024)']).returncode\n"
        "print(json.dumps([code, watch.shortage()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(group)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, shortage = json.loads(done.stdout)
    assert code == -9
    assert shortage.startswith("its control group ran out of memory; the limit is 64 MiB (")
    assert group.name in shortage
