"""The callbacks around a run, all in one launch, which fails: what they leave behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainrun import RecipeError, hookimpl
from trainrun.testing import LaunchRecipe

RECIPE = """
run = { name = "hygiene" }
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 7, batch_size = 16, log_every = 1 }
evaluate = { every = 2, batch_size = 359 }

[plugins.git-info]
[plugins.latest-link]
[plugins.environment]
[plugins.result]
[plugins.run-time]
[plugins.exception-checkpoint]
[plugins.early-stopping]
monitor = "eval/accuracy"
mode = "max"
"""


class FailsOnRankOne:
    """Raises at the end of step 5 on rank 1."""

    @hookimpl(trylast=True)
    def on_step_end(self, run: Any, step: int) -> None:
        if step == 5 and run.world.rank == 1:
            raise ValueError("as asked")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which the test is."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (folder / "train.py").write_text("one\n", encoding="utf-8")
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], [*author, "commit", "-q", "-m", "First"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    monkeypatch.chdir(folder)
    return folder


def test_everything_around_a_run_that_fails(launch_recipe: LaunchRecipe, repository: Path) -> None:
    (repository / "train.py").write_text("two\n", encoding="utf-8")
    result = launch_recipe(RECIPE, FailsOnRankOne)
    root = result.paths.root
    assert "as asked" in result.outcome.reason

    told = read(root / "result.json")
    assert (told["state"], told["ok"], told["exit_code"]) == ("failed", False, 1)
    assert told["step"] in {5, 6}, "rank 0 may have begun the next"
    assert told["failure"] == {"rank": 1, "type": "ValueError", "message": told["failure"]["message"]}
    assert set(told["best"]) == {"eval/accuracy"}
    assert told["metrics"]["eval/accuracy"]["step"] == 4
    assert told["seconds"] > 0

    git = read(root / "git" / "info.json")
    assert (git["branch"], git["dirty"], git["changed"]) == ("main", True, ["train.py"])
    assert "+two" in (root / "git" / "changes.patch").read_text(encoding="utf-8")

    client = read(root / "environment" / "client.json")
    assert client["packages"]["trainrun"]
    node = read(root / "environment" / "attempt-1-node-0.json")
    assert node["torch"]["version"]

    assert (root.parent / "latest-hygiene").readlink() == Path(root.name)
    assert not (root.parent / "latest-finished").exists()

    (event,) = [event for event in result.events if event["event"] == "run_time"]
    assert set(event["attempts"]) == {"1"}
    assert event["seconds"] >= event["attempts"]["1"] > event["training"] > 0
    assert list(result.series("run_time/training"))[:4] == [1, 2, 3, 4]

    report = read(root / "failures" / "attempt-1-rank-1" / "report.json")
    assert report["weights_of_step"] == 5
    assert (root / "failures" / "attempt-1-rank-1" / "optimizer.pt").exists()


def test_a_dirty_tree_is_refused(launch_recipe: LaunchRecipe, repository: Path) -> None:
    (repository / "train.py").write_text("two\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"plugin git-info: clean = true, and files are changed: train\.py; commit"):
        launch_recipe(RECIPE, overrides=["plugins.git-info.clean=true"])
