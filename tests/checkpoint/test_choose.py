from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.checkpoint import BadCheckpoint, Choice, choose, named, scan, set_aside, verify
from trainrun.rundir import create

Save = Callable[..., Path]
Damage = Callable[..., None]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest(checkpoints: Path, save: Save) -> None:
    _, newest = save(100), save(200)
    assert choose(checkpoints) == Choice(newest, [])


def test_none_there(checkpoints: Path, write: Save) -> None:
    assert choose(checkpoints) == Choice(None, [])
    write(100)
    assert choose(checkpoints) == Choice(None, [])


def test_bad_ones_are_passed_over_and_put_aside(checkpoints: Path, save: Save, damage: Damage) -> None:
    good = [save(step) for step in (100, 200, 300, 400)][1]
    damage(checkpoints / "step-000300")
    (checkpoints / "step-000400" / "state" / ".metadata").unlink()
    damage(checkpoints / "step-000100")

    choice = choose(checkpoints)

    assert choice.path == good
    assert [(path.name, reasons) for path, reasons in choice.rejected] == [
        ("bad-step-000400", ["'state/.metadata' is missing"]),
        ("bad-step-000300", ["'rank-0.pt' has other contents than were saved: its SHA-256 differs"]),
    ]
    assert names(checkpoints) == ["bad-step-000300", "bad-step-000400", "step-000100", "step-000200"]
    assert choose(checkpoints) == Choice(good, [])


def test_names_that_are_taken(checkpoints: Path, save: Save, damage: Damage) -> None:
    save(100)
    for _ in range(3):
        damage(save(200))
        choose(checkpoints)
    assert names(checkpoints) == ["bad-step-000200", "bad-step-000200-2", "bad-step-000200-3", "step-000100"]


def test_all_bad_is_an_error_that_lists_every_reason(checkpoints: Path, save: Save, damage: Damage) -> None:
    for step in (100, 200, 300):
        save(step)
    damage(checkpoints / "step-000100")
    (checkpoints / "step-000200" / "manifest.json").unlink()
    whole = (checkpoints / "step-000300" / "rank-0.pt").stat().st_size
    os.truncate(checkpoints / "step-000300" / "rank-0.pt", 3)

    for _ in range(2):  # nothing was renamed, so that asking again does not start over
        with pytest.raises(BadCheckpoint, match="none of the checkpoints is good") as caught:
            choose(checkpoints)
        assert str(caught.value).splitlines()[1:] == [
            f"    step-000300: 'rank-0.pt' has 3 bytes instead of {whole}",
            "    step-000200: it has no manifest.json: it was never completed",
            "    step-000100: 'rank-0.pt' has other contents than were saved: its SHA-256 differs",
        ]
    assert names(checkpoints) == ["step-000100", "step-000200", "step-000300"]


def test_only_ones_that_were_found_bad_earlier(checkpoints: Path) -> None:
    (checkpoints / "bad-step-000100").mkdir(parents=True)
    with pytest.raises(BadCheckpoint, match="bad-step-000100: it was found damaged earlier"):
        choose(checkpoints)


def test_only_superseded_ones_are_none(checkpoints: Path) -> None:
    """A person went on from elsewhere: that is where the run goes on from again."""
    (checkpoints / "superseded-step-000100").mkdir(parents=True)
    assert choose(checkpoints) == Choice(None, [])


def test_a_bad_one_that_cannot_be_renamed(
    checkpoints: Path, save: Save, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(100)
    damage(save(200))

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BadCheckpoint, match="cannot be renamed to bad-step-000200: Read-only file system"):
        choose(checkpoints)


def test_links_are_never_chosen(checkpoints: Path, save: Save, tmp_path: Path) -> None:
    elsewhere = save(100).rename(tmp_path / "step-000100")
    (checkpoints / "step-000100").symlink_to(elsewhere)
    assert choose(checkpoints) == Choice(None, [])


def test_named_checkpoint(save: Save, damage: Damage) -> None:
    path, _ = save(100), save(200)
    assert named(path) == path
    assert named(Path(os.path.relpath(path))) == path
    damage(path)
    with pytest.raises(BadCheckpoint, match=r"this checkpoint is not good: 'rank-0.pt' has other contents"):
        named(path)
    assert path.is_dir(), "nothing is renamed"


def test_a_link_that_a_person_names_is_followed(save: Save, tmp_path: Path) -> None:
    path = save(100)
    (tmp_path / "mine").symlink_to(path)
    assert named(tmp_path / "mine") == path


def test_named_copy(save: Save, tmp_path: Path) -> None:
    copy = save(100).rename(tmp_path / "best")
    assert named(copy) == copy


def test_named_run(save: Save, damage: Damage, tmp_path: Path, checkpoints: Path) -> None:
    run = create(tmp_path / "runs", "digits")
    run.manifest.write_text("{}")  # a run has one of its own, which makes it no checkpoint
    good, bad = save(100), save(200)
    damage(bad)
    checkpoints.rename(run.checkpoints)
    for path in (run.root, run.checkpoints):
        assert named(path) == run.checkpoints / good.name
    assert names(run.checkpoints) == ["step-000100", "step-000200"]


def test_named_run_with_bad_ones_only(save: Save, damage: Damage, checkpoints: Path) -> None:
    damage(save(100))
    with pytest.raises(BadCheckpoint, match=r"none of the checkpoints is good(.|\n)*step-000100: 'rank-0.pt'"):
        named(checkpoints)


def test_named_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="there is no such folder"):
        named(tmp_path / "nothing")
    with pytest.raises(BadCheckpoint, match="there is no such checkpoint"):
        named(tmp_path / "step-000100")
    with pytest.raises(BadCheckpoint, match="there is no checkpoint here; name a checkpoint, or a run"):
        named(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BadCheckpoint):
        named(tmp_path / "file")
    with pytest.raises(BadCheckpoint, match="no checkpoint"):
        named(create(tmp_path, "digits").root)


def test_newer_ones_are_set_aside(checkpoints: Path, save: Save, damage: Damage) -> None:
    for step in (100, 200, 300, 400):
        save(step)
    damage(checkpoints / "step-000300")
    (checkpoints / "superseded-step-000300").mkdir()
    assert [path.name for path in set_aside(checkpoints, 200)] == ["superseded-step-000400", "superseded-step-000300-2"]
    assert [found.step for found in scan(checkpoints)] == [200, 100]
    assert verify(checkpoints / "superseded-step-000400") == []
    assert set_aside(checkpoints, 200) == []
