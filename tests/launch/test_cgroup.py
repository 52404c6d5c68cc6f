from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.launch.cgroup import Limits, limits


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "fs").mkdir()
    return tmp_path / "fs"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def found(root: Path, own: str) -> Limits:
    (root.parent / "own").write_text(own)
    return limits(root.parent / "own", root)


def test_version_2_takes_the_tightest_on_the_way_up(root: Path) -> None:
    write(
        root,
        {
            "a/memory.max": "1000",
            "a/b/memory.max": "max",
            "a/b/memory.current": "10",
            "a/memory.current": "500",
            "a/cpu.max": "150000 100000",
            "a/b/cpu.max": "max 100000",
            "a/b/pids.max": "64",
        },
    )
    assert found(root, "0::/a/b\n") == Limits(1000, 10, 1.5, 64)


def test_version_2_in_a_container_whose_path_is_the_hosts(root: Path) -> None:
    write(root, {"memory.max": "1000", "memory.current": "1", "cpu.max": "50000 100000"})
    assert found(root, "0::/../../docker/abc\n") == Limits(1000, 1, 0.5, None)


def test_version_1(root: Path) -> None:
    write(
        root,
        {
            "memory/job/memory.limit_in_bytes": "2000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/job/memory.usage_in_bytes": "5",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/job/cpu.cfs_quota_us": "200000",
            "cpu/job/cpu.cfs_period_us": "100000",
            "pids/pids.max": "max",
        },
    )
    assert found(root, "4:memory:/job\n3:cpu,cpuacct:/job\n2:pids:/\n0::/\n") == Limits(2000, 5, 2.0, None)


def test_nothing_to_see(root: Path) -> None:
    assert found(root, "") == Limits()
    assert found(root, "0::/\n4:memory:/gone\n") == Limits()
    assert limits(root / "nothing", root) == Limits()


def test_this_machine() -> None:
    assert isinstance(limits(), Limits)
