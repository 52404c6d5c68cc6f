from __future__ import annotations

import subprocess
from pathlib import Path

from trainrun.launch.manifest import git, plugin_set, versions
from trainrun.plugin.instance import Instance


def test_git_tells_commit_and_changes(tmp_path: Path) -> None:
    assert git(tmp_path) is None
    run = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*run, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*run, "add", "file"], check=True)
    subprocess.run([*run, "commit", "-q", "-m", "one"], check=True)
    clean = git(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert git(tmp_path) == {**clean, "dirty": True}


def test_plugin_set_depends_on_version_and_order() -> None:
    a, b = Instance("a", "plugin", "a:A", version="1"), Instance("b", "plugin", "b:B", version="1")
    newer = Instance("a", "plugin", "a:A", version="2")
    assert plugin_set((a, b)) == plugin_set((a, b))
    assert len({plugin_set((a, b)), plugin_set((b, a)), plugin_set((newer, b))}) == 3


def test_versions_are_known() -> None:
    assert all(versions().values())
