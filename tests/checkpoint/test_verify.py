from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.checkpoint import read_manifest, scan, verify

Save = Callable[..., Path]

FILES = ["manifest.json", "state/.metadata", "state/__0_0.distcp", "training.pt", "rank-0.pt", "plugins/clock.pt"]
each_file = pytest.mark.parametrize("name", FILES)

SIZES = {
    "to nothing": lambda size: 0,
    "to half": lambda size: size // 2,
    "by one": lambda size: size - 1,
    "and grown": lambda size: size + 1,
}


def problem(path: Path) -> str | None:
    """What the cheap look says."""
    return {found.path: found.problem for found in scan(path.parent)}[path]


@each_file
@pytest.mark.parametrize("how", SIZES)
def test_truncated(name: str, how: str, save: Save) -> None:
    path = save(300)
    os.truncate(path / name, SIZES[how]((path / name).stat().st_size))
    assert len(verify(path)) == 1
    assert name in verify(path)[0]
    assert problem(path) is not None


@each_file
def test_flipped_bits(name: str, save: Save) -> None:
    path = save(300)
    content = (path / name).read_bytes()
    for bit in random.Random(name).sample(range(len(content) * 8), 32):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(flipped)
        assert len(verify(path)) == 1
    (path / name).write_bytes(content)
    assert verify(path) == []


@each_file
def test_deleted(name: str, save: Save) -> None:
    path = save(300)
    (path / name).unlink()
    said = "it has no manifest.json: it was never completed" if name == "manifest.json" else f"{name!r} is missing"
    assert verify(path) == [said]
    assert problem(path) == said


@each_file
def test_swapped_with_another_step(name: str, save: Save) -> None:
    path, other = save(300), save(400)
    shutil.copyfile(other / name, path / name)
    assert verify(path)
    assert verify(other) == []


def test_a_folder_with_the_name_of_another_step(save: Save) -> None:
    path = save(300).rename(save(400).with_name("step-000500"))
    assert verify(path) == ["its manifest is that of step 300"]
    assert problem(path) == "its manifest is that of step 300"


def test_a_copy_under_a_name_of_ones_own_is_good(save: Save, tmp_path: Path) -> None:
    assert verify(shutil.copytree(save(300), tmp_path / "best")) == []


@pytest.mark.parametrize(
    "name", ["further", "state/__1_0.distcp", "plugins/x/y.pt", ".hidden", "bad\udcffname", "\x1b[31m"]
)
def test_an_extra_file(name: str, save: Save) -> None:
    path = save(300)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).touch()
    reasons = verify(path)
    assert any("is not in its manifest" in reason for reason in reasons)
    assert "; ".join(reasons).isprintable()


def test_an_extra_folder(save: Save) -> None:
    path = save(300)
    (path / "more").mkdir()
    assert verify(path) == ["'more' is not in its manifest"]


def test_the_folder_of_plugins_may_be_empty_or_missing(checkpoints: Path) -> None:
    from trainrun.checkpoint import Manifest, begin, publish

    facts = {"run": "r", "attempt": 1, "epoch": 1, "samples_seen": 1, "world_size": 1, "created": 1.0}
    path = publish(begin(checkpoints, 300, 1), Manifest(step=300, **facts))
    assert verify(path) == []
    (path / "plugins").rmdir()
    assert verify(path) == []


@each_file
@pytest.mark.parametrize("target", ["same", "nowhere", "itself"])
def test_a_link_in_place_of_a_file(name: str, target: str, save: Save, tmp_path: Path) -> None:
    """Also one to the right contents: what it leads to may change after this look."""
    path = save(300)
    (path / name).rename(tmp_path / "same")
    (path / name).symlink_to(Path(name).name if target == "itself" else tmp_path / target)
    assert len(verify(path)) == 1
    assert problem(path)


def test_a_link_in_place_of_a_folder(save: Save, tmp_path: Path) -> None:
    path = save(300)
    (path / "state").rename(tmp_path / "state")
    (path / "state").symlink_to(tmp_path / "state")
    assert any("state" in reason for reason in verify(path))


def test_a_link_to_a_checkpoint(save: Save) -> None:
    path = save(300)
    link = path.with_name("latest")
    link.symlink_to(path)
    assert verify(link) == ["it is a symbolic link"]


@pytest.mark.parametrize("name", FILES[1:])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name: str, save: Save) -> None:
    path = save(300)
    (path / name).unlink()
    os.mkfifo(path / name)
    assert verify(path) == [f"{name!r} is not a plain file"]


def test_every_reason_is_told(save: Save, damage: Callable[..., None]) -> None:
    path = save(300)
    damage(path, "rank-0.pt")
    damage(path, "training.pt")
    assert [reason.partition(" ")[0] for reason in verify(path)] == ["'training.pt'", "'rank-0.pt'"]
    (path / "state/.metadata").unlink()
    (path / "more").touch()
    assert verify(path) == ["'state/.metadata' is missing", "'more' is not in its manifest"]


def test_what_is_no_folder(tmp_path: Path) -> None:
    assert verify(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert verify(tmp_path / "file")


def test_many_files(checkpoints: Path, save: Save) -> None:
    """More than there are threads, in the order of the manifest."""
    path = save(300)
    assert verify(path) == []
    assert list(read_manifest(path).files) == FILES[1:]
