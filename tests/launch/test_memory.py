from __future__ import annotations

from pathlib import Path

from trainrun.launch.memory import kills


def test_kills_are_read_from_the_own_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("12:cpu:/x\n0::/user/job\n")
    folder = tmp_path / "root" / "user" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert kills(tmp_path / "cgroup", tmp_path / "root") == 2


def test_machine_that_does_not_say(tmp_path: Path) -> None:
    assert kills(tmp_path / "none", tmp_path) == 0
    (tmp_path / "cgroup").write_text("12:cpu:/x\n")
    assert kills(tmp_path / "cgroup", tmp_path) == 0
