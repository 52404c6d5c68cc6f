from __future__ import annotations

import os
import random
import re
from datetime import date
from pathlib import Path

import pytest

from trainrun.errors import EnvironmentProblem, UsageError
from trainrun.rundir import RunPaths, create, find
from trainrun.rundir.create import run_ids
from trainrun.rundir.words import ADJECTIVES, ANIMALS

DAY = date(2026, 11, 21)


def make(base: Path, seed: int = 0, name: str = "digits") -> RunPaths:
    return create(base, name, today=DAY, rng=random.Random(seed))


def test_id_says_day_name_and_two_words(tmp_path: Path) -> None:
    paths = make(tmp_path / "runs")
    assert re.fullmatch(r"2026-11-21-digits-[a-z]+-[a-z]+", paths.run_id)
    assert paths.root.stat().st_mode & 0o777 == 0o700


def test_clash_draws_again(tmp_path: Path) -> None:
    first, second = make(tmp_path, seed=1), make(tmp_path, seed=1)
    assert first.root != second.root
    assert run_ids(tmp_path) == [first.run_id, second.run_id]


def test_latest_points_to_the_newest(tmp_path: Path) -> None:
    make(tmp_path, 1)
    newest = make(tmp_path, 2)
    assert (tmp_path / "latest").resolve() == newest.root
    assert find("latest", tmp_path) == newest


def test_latest_works_without_the_link(tmp_path: Path) -> None:
    make(tmp_path, 1)
    newest = make(tmp_path, 2)
    (tmp_path / "latest").unlink()
    assert find("latest", tmp_path) == newest


def test_a_folder_called_latest_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    paths = make(tmp_path)
    assert paths.root.is_dir()
    assert {entry.name for entry in tmp_path.iterdir()} == {"latest", paths.run_id}


def test_find_by_path_id_and_beginning(tmp_path: Path) -> None:
    paths, other = make(tmp_path, 1, "aaa"), make(tmp_path, 2, "bbb")
    assert find(str(paths.root), Path("elsewhere")) == paths
    assert find(paths.run_id, tmp_path) == paths
    assert find("2026-11-21-b", tmp_path) == other


def test_find_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no runs in"):
        find("latest", tmp_path)
    one, _ = make(tmp_path, 1), make(tmp_path, 2)
    with pytest.raises(UsageError, match="type more of it"):
        find("2026", tmp_path)
    with pytest.raises(UsageError, match=f"did you mean '{one.run_id}'"):
        find(one.run_id[:-1] + "x", tmp_path)
    with pytest.raises(UsageError, match="lists them"):
        find("qqq", tmp_path)


def test_no_place_for_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="no run directory can be made here"):
        make(tmp_path / "file" / "runs")


def test_words_are_words() -> None:
    for words in (ADJECTIVES, ANIMALS):
        assert len(set(words)) == len(words) > 60
        assert all(re.fullmatch("[a-z]{2,8}", word) for word in words)


@pytest.mark.parametrize("part", ["snug-mouse", "2026-11-28-digits-snug", "snug"])
def test_any_part_that_no_other_id_has_will_do(tmp_path: Path, part: str) -> None:
    wanted, *_ = runs(
        tmp_path, "2026-11-28-digits-snug-mouse", "2026-11-28-digits-calm-moose", "2026-11-28-mouse-calm-owl"
    )
    assert find(part, tmp_path).root == wanted
    with pytest.raises(UsageError, match="'mouse' is part of 2 run ids"):
        find("mouse", tmp_path)


def test_an_id_that_begins_so_comes_before_one_that_contains_it(tmp_path: Path) -> None:
    first, _ = runs(tmp_path, "digits-one", "other-digits-two")
    assert find("digits", tmp_path).root == first


def test_of_many_the_newest_five_are_listed(tmp_path: Path) -> None:
    runs(tmp_path, *(f"day-{number}" for number in range(8)))
    with pytest.raises(UsageError) as caught:
        find("day", tmp_path)
    assert str(caught.value) == (
        "'day' is part of 8 run ids: day-7, day-6, day-5, day-4, day-3 and 3 older ones; type more of it"
    )


def runs(base: Path, *names: str) -> list[Path]:
    """Make run directories, each a second younger than the one before."""
    for age, name in enumerate(names):
        for folder in ("attempts", "logs"):
            (base / name / folder).mkdir(parents=True)
        os.utime(base / name / "attempts", (1e9 + age, 1e9 + age))
    return [base / name for name in names]
