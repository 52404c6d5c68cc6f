from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
from trainrun_callbacks.latest_link import LatestLink, LatestLinkOptions

from trainrun import Outcome


def launch(base: Path, run_id: str, name: str = "digits") -> Any:
    root = base / run_id
    root.mkdir(exist_ok=True)
    recipe = SimpleNamespace(run=SimpleNamespace(name=name))
    return SimpleNamespace(paths=SimpleNamespace(root=root), run_id=run_id, recipe=recipe)


def latest(**options: Any) -> LatestLink:
    return LatestLink(LatestLinkOptions(**options))


def links(base: Path) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in base.iterdir() if path.is_symlink()}


def test_each_name_has_its_own(tmp_path: Path) -> None:
    latest().on_launch_start(launch(tmp_path, "one"))
    latest().on_launch_start(launch(tmp_path, "two", "chargpt"))
    latest().on_launch_start(launch(tmp_path, "three"))
    assert links(tmp_path) == {"latest-digits": "three", "latest-chargpt": "two"}


@pytest.mark.parametrize(("code", "finished"), [(0, {"latest-finished": "one"}), (1, {}), (75, {})])
def test_only_a_run_that_went_well_has_finished(tmp_path: Path, code: int, finished: dict[str, str]) -> None:
    latest().on_launch_end(launch(tmp_path, "one"), Outcome("finished" if code == 0 else "failed", code, ""))
    assert links(tmp_path) == finished


def test_either_may_be_left_out(tmp_path: Path) -> None:
    plugin = latest(launched=None, finished=None)
    plugin.on_launch_start(launch(tmp_path, "one"))
    plugin.on_launch_end(launch(tmp_path, "one"), Outcome("finished", 0, ""))
    assert links(tmp_path) == {}


def test_launches_that_race_leave_one_good_link_and_nothing_else(tmp_path: Path) -> None:
    launches = [launch(tmp_path, f"run-{number}") for number in range(8)]

    def start(one: Any) -> None:
        for _ in range(50):
            latest().on_launch_start(one)
            assert (tmp_path / "latest-digits").resolve().is_dir()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, launches))
    assert len(links(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 9


def test_a_folder_of_that_name_stays(tmp_path: Path) -> None:
    (tmp_path / "latest-digits").mkdir()
    with pytest.raises(OSError, match="latest-digits"):
        latest().on_launch_start(launch(tmp_path, "one"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest-digits", "one"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "{run}"])
def test_links_stay_beside_the_runs(name: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        latest(launched=name)
