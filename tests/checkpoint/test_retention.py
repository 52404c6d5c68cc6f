from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.checkpoint import BadCheckpoint, begin, clear, linked, prune, retention, scan, verify

Save = Callable[..., Path]


def steps(checkpoints: Path) -> list[int]:
    return [found.step for found in scan(checkpoints)]


@pytest.mark.parametrize(("keep", "left"), [(-1, 2), (0, 2), (1, 2), (2, 2), (3, 3), (5, 5), (9, 5)])
def test_the_newest_stay_and_never_fewer_than_two(keep: int, left: int, checkpoints: Path, save: Save) -> None:
    paths = [save(step) for step in (100, 200, 300, 400, 500)]
    assert prune(checkpoints, keep) == paths[: 5 - left]
    assert steps(checkpoints) == [500, 400, 300, 200, 100][:left]
    assert len(list(checkpoints.iterdir())) == left, "nothing else is left"


def test_bad_ones_stay_and_do_not_count(checkpoints: Path, save: Save) -> None:
    for step in (100, 200, 300, 400):
        save(step)
    (checkpoints / "step-000400" / "rank-0.pt").unlink()
    (checkpoints / "step-000100" / "rank-0.pt").unlink()
    (checkpoints / "bad-step-000050").mkdir()
    assert prune(checkpoints, 2) == []
    save(500)
    assert prune(checkpoints, 2) == [checkpoints / "step-000200"]
    assert steps(checkpoints) == [500, 400, 300, 100]
    assert (checkpoints / "bad-step-000050").exists()


def test_protected_ones_stay(checkpoints: Path, save: Save) -> None:
    paths = [save(step) for step in (100, 200, 300, 400)]
    relative = Path(os.path.relpath(paths[0]))
    assert prune(checkpoints, 2, protect=[relative]) == [paths[1]]
    assert steps(checkpoints) == [400, 300, 100]


def test_what_a_link_leads_to_stays_while_it_does(checkpoints: Path, save: Save) -> None:
    paths = [save(step) for step in (100, 200, 300, 400, 500)]
    (checkpoints / "best").symlink_to(paths[0].name)
    (checkpoints / "named").symlink_to(paths[1])
    (checkpoints / "chain").symlink_to("best")
    assert prune(checkpoints, 2) == [paths[2]]
    assert steps(checkpoints) == [500, 400, 200, 100], "each is listed once"
    assert linked(checkpoints) == {paths[0].resolve(): ["best", "chain"], paths[1].resolve(): ["named"]}
    (checkpoints / "best").unlink()
    assert prune(checkpoints, 2) == [paths[0]]


def test_links_that_lead_nowhere_or_elsewhere_protect_nothing(checkpoints: Path, save: Save) -> None:
    paths = [save(step) for step in (100, 200, 300)]
    for name, target in {"lost": "step-000050", "circle": "circle", "file": paths[0] / "rank-0.pt", "up": ".."}.items():
        (checkpoints / name).symlink_to(target)
    assert linked(checkpoints) == {}
    assert prune(checkpoints, 2) == paths[:1]


def test_a_link_that_moves_on_while_others_are_read(
    checkpoints: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`best-2` is read before it gets the old best, and `best` after it has got the new one."""
    paths = [save(step) for step in (100, 200, 300, 400)]
    half_seen = {paths[3].resolve(): ["best"]}
    looks = iter([half_seen, {**half_seen, paths[0].resolve(): ["best-2"]}])
    monkeypatch.setattr(retention, "linked", lambda _: next(looks, half_seen))
    assert prune(checkpoints, 2) == [paths[1]]


def test_what_is_being_written_stays(checkpoints: Path, save: Save) -> None:
    for step in (100, 200, 300):
        save(step)
    temp = begin(checkpoints, 400, 1)
    prune(checkpoints, 2)
    assert temp.is_dir()


@pytest.mark.parametrize("until", range(1, 4))
def test_stopped_while_removing(until: int, checkpoints: Path, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left of one has no longer the name of a checkpoint, and goes at the next start."""
    kept = [save(step) for step in (100, 200, 300)][1:]
    left = iter(range(until))

    def unlink(path: str, **more: object) -> None:
        if next(left, None) is None:
            raise OSError(errno.EIO, "Input/output error")
        original(path, **more)

    original = os.unlink
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(OSError, match="Input/output"):
            prune(checkpoints, 2)
    assert [found.path for found in scan(checkpoints)] == kept[::-1]
    assert [verify(path) for path in kept] == [[], []]
    assert len(clear(checkpoints)) == 1
    assert len(list(checkpoints.iterdir())) == 2


def test_the_new_name_is_durable_before_anything_is_removed(
    checkpoints: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (100, 200, 300):
        save(step)
    done: list[str] = []
    fsync, rmtree = os.fsync, shutil.rmtree
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(shutil, "rmtree", lambda path: (done.append("remove"), rmtree(path)))
    prune(checkpoints, 2)
    assert done == ["sync", "remove"]


def test_nothing_there(checkpoints: Path) -> None:
    assert prune(checkpoints, 2) == []


def test_a_folder_that_cannot_be_listed(checkpoints: Path) -> None:
    checkpoints.touch()
    with pytest.raises(BadCheckpoint, match="cannot be listed"):
        prune(checkpoints, 2)
