from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.checkpoint import distrust

Save = Callable[..., Path]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def test_what_we_write_is_trusted_whatever_the_umask(save: Save, request: pytest.FixtureRequest) -> None:
    before = os.umask(0)
    request.addfinalizer(lambda: os.umask(before))
    path = save(300)
    assert (path / "rank-0.pt").stat().st_mode & 0o777 == 0o666, "as torch would leave it"
    assert distrust(path) == []


@pytest.mark.parametrize(("mode", "who"), [(0o770, "its group"), (0o707, "everybody")])
def test_a_folder_that_others_may_write_to(mode: int, who: str, save: Save) -> None:
    path = save(300)
    path.chmod(mode)
    assert f"it can be written to by {who}" in distrust(path)


@pytest.mark.parametrize(("mode", "who"), [(0o620, "its group"), (0o602, "everybody")])
@pytest.mark.parametrize("name", ["rank-0.pt", "state/.metadata", "manifest.json"])
def test_a_file_that_others_may_write_to(mode: int, who: str, name: str, save: Save) -> None:
    path = save(300)
    for file in [found for found in path.rglob("*") if found.is_file()]:
        file.chmod(0o644)
    path.chmod(0o755)
    assert distrust(path) == []
    (path / name).chmod(mode)
    assert distrust(path) == [f"'{name}' can be written to by {who}"]


@as_root
@pytest.mark.parametrize("name", [".", "rank-0.pt", "state", "state/.metadata"])
def test_somebody_elses(name: str, save: Save) -> None:
    path = save(300)
    os.chown(path / name, 12345, -1)
    assert distrust(path) == [f"{'it' if name == '.' else repr(name)} belongs to user 12345, not to 0"]


@as_root
def test_roots_is_trusted_by_everybody(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(300)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert distrust(path) == []


def test_what_is_not_there(tmp_path: Path) -> None:
    assert distrust(tmp_path / "nothing") == ["it cannot be listed: No such file or directory"]


def test_a_link_is_judged_by_its_owner(save: Save, tmp_path: Path) -> None:
    copy = shutil.copytree(save(300), tmp_path / "copy")
    (copy / "more").symlink_to("/dev/null")
    assert distrust(copy) == []
