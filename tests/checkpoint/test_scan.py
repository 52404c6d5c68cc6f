from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.checkpoint import BadCheckpoint, put_aside, scan

Save = Callable[..., Path]


def test_newest_first_by_number(checkpoints: Path, save: Save) -> None:
    for step in (900_000, 100, 1_000_000):
        save(step)
    assert [found.step for found in scan(checkpoints)] == [1_000_000, 900_000, 100]
    assert {found.manifest.step for found in scan(checkpoints) if found.manifest} == {1_000_000, 900_000, 100}


def test_what_is_no_checkpoint(checkpoints: Path, save: Save, write: Save) -> None:
    path = save(100)
    write(200)
    (checkpoints / "step-000300").symlink_to(path)
    (checkpoints / "step-000400").symlink_to("nowhere")
    (checkpoints / "step-000500").touch()
    (checkpoints / "latest").symlink_to(path)
    for name in ("step-600", "step-0000100", "best", "bad-step-000100", "superseded-step-000700-2"):
        (checkpoints / name).mkdir()
    assert [found.path for found in scan(checkpoints)] == [path]
    assert [found.name for found in put_aside(checkpoints)] == ["bad-step-000100", "superseded-step-000700-2"]


def test_an_empty_folder_is_a_bad_checkpoint(checkpoints: Path) -> None:
    (checkpoints / "step-000100").mkdir(parents=True)
    assert [found.problem for found in scan(checkpoints)] == ["it has no manifest.json: it was never completed"]


def test_contents_are_not_read(checkpoints: Path, save: Save, damage: Callable[[Path], None]) -> None:
    damage(save(100))
    assert [found.problem for found in scan(checkpoints)] == [None]


def test_no_folder_has_no_checkpoints(checkpoints: Path) -> None:
    assert scan(checkpoints) == []
    assert put_aside(checkpoints) == []


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(checkpoints: Path) -> None:
    checkpoints.touch()
    with pytest.raises(BadCheckpoint, match="cannot be listed: Not a directory"):
        scan(checkpoints)


def test_one_that_is_removed_meanwhile_is_no_bad_one(
    checkpoints: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainrun.checkpoint import scan as module_function
    from trainrun.checkpoint.manifest import read_manifest

    save(100), save(200)

    def read(folder: Path) -> object:
        if folder.name == "step-000100" and folder.exists():
            folder.rename(folder.with_name(".tmp-000100-0-0a"))
        return read_manifest(folder)

    monkeypatch.setitem(module_function.__globals__, "read_manifest", read)
    assert [found.step for found in scan(checkpoints)] == [200]
