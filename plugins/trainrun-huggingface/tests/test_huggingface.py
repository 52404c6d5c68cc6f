"""Uploading to a fake of the model hub, through the process that sends, with the hub's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from safetensors.torch import load_file
from trainrun_huggingface import HuggingFace, HuggingFaceOptions

from trainrun import Recipe
from trainrun.cli.main import run as command
from trainrun.testing import LaunchRecipe
from trainrun.worker.checkpoint.reader import read_tensors

RECIPE = """
task = {{ use = "digits", channels = 2, hidden = 8 }}
train = {{ steps = 6, batch_size = 16, log_every = 1 }}
evaluate = {{ every = 2, batch_size = 359 }}
checkpoint = {{ every = 3 }}
run = {{ name = "digits" }}

[plugins.best-checkpoint]
monitor = "eval/loss"

[plugins.huggingface]
weights = "{weights}"
"""


def test_what_is_there_goes_up_in_one_commit(make_run: Any, hub: Any, tmp_path: Path) -> None:
    hub.start()
    run = make_run(weights="best", code=True, artifacts=["recipe.toml", "metrics.jsonl"])
    for name in ("weights", "source"):
        (run.paths.root / name).mkdir()
    (run.paths.root / "weights" / "best-000008.safetensors").write_bytes(b"weights")
    (run.paths.root / "weights" / "best.safetensors").symlink_to("best-000008.safetensors")
    (run.paths.source / "task.py").write_text("pass\n")
    (run.paths.trackers / ".huggingface-left").mkdir()  # by an upload that was ended in the middle
    run.log(1, 2)
    run.start()
    assert str(run.end()) == "all 2 records were sent"
    (commit,) = hub.commits
    files = ["README.md", "metrics.jsonl", "model.safetensors", "recipe.toml", "source/task.py"]
    assert (commit["repo"], commit["files"]) == ("someone/digits", files)
    assert commit["summary"] == "run-1: finished at step 9"
    assert commit["description"].splitlines() == ["it finished", "", "train/loss: 0.5"]
    assert hub.file("model.safetensors").read_bytes() == b"weights"
    assert hub.file("recipe.toml").read_text() == run.paths.recipe.read_text()
    assert 'load_file("model.safetensors")' in hub.file("README.md").read_text()
    assert hub.notes[0] == {"created": "someone/digits", "visibility": "private"}
    assert not (tmp_path / "home").exists(), "something was written outside the run"
    assert not list(run.paths.trackers.glob(".huggingface-*"))


def test_a_repetition_commits_what_is_new_only_and_leaves_the_card(make_run: Any, hub: Any) -> None:
    hub.start()
    run = make_run(repo="team/model", weights="none", artifacts=["recipe.toml", "metrics.jsonl"])
    run.log(1)
    run.start()
    run.end()
    hub.file("README.md", "team/model").write_text("a page of our own\n")
    run.start(resumed=True)  # nothing is new: no empty commit
    assert run.end().complete
    run.log(2)
    run.start(resumed=True)
    run.end()
    assert [commit["files"] for commit in hub.commits] == [
        ["README.md", "metrics.jsonl", "recipe.toml"],
        ["metrics.jsonl"],
    ]
    assert hub.file("README.md", "team/model").read_text() == "a page of our own\n"


@pytest.mark.parametrize(("unfinished", "commits"), [(False, 0), (True, 1)])
def test_a_run_that_failed_is_uploaded_only_where_that_is_asked_for(
    make_run: Any, hub: Any, unfinished: bool, commits: int
) -> None:
    hub.start()
    run = make_run(weights="none", unfinished=unfinished)
    run.start()
    assert run.end("failed", 1).complete
    assert len(hub.commits) == commits


def test_a_hub_that_is_down_or_breaks_gets_it_later(make_run: Any, hub: Any, until: Any) -> None:
    run = make_run(weights="none")
    run.log(1)
    run.start()
    until(lambda: run.events == ["tracker_outage"])
    hub.start()
    until(lambda: run.events == ["tracker_outage", "tracker_back"])
    (hub.folder / "broken").touch()  # the commit fails once
    assert run.end().complete
    assert run.events == ["tracker_outage", "tracker_back"] * 2
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("token", "options", "words"),
    [
        ("wrong", {"create": True}, "Invalid"),
        pytest.param("secret", {"create": False}, "someone/digits", marks=pytest.mark.long),
        pytest.param("secret", {"weights": "best"}, "weights = 'best': there is neither", marks=pytest.mark.long),
        pytest.param("secret", {}, "no weights to upload", marks=pytest.mark.long),
    ],
)
def test_what_cannot_be_is_told(
    make_run: Any, hub: Any, monkeypatch: pytest.MonkeyPatch, token: str, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.start()
    run = make_run(**options)
    run.start()
    delivery = run.end()
    assert not delivery.complete
    assert words in str(delivery), str(delivery)
    assert not hub.commits


def test_two_repositories_are_two_places() -> None:
    recipe = Recipe.from_data({"run": {"name": "digits"}, "task": {"use": "digits"}, "train": {"steps": 1}})

    def place(**options: Any) -> str:
        return HuggingFace.place(HuggingFaceOptions(**options), recipe)

    assert place() == place(repo="digits") != place(repo="someone/digits")


@pytest.mark.parametrize("repo", ["a/b/c", "a b", "-a", "a--b", "a..b", "a.", "", "a/", "a.git", "x" * 97])
def test_names_that_the_hub_does_not_have(repo: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="repo"):
        HuggingFaceOptions(repo=repo)


@pytest.mark.parametrize("repo", ["a", "someone/a", "some-one/a_b.c-1"])
def test_names_that_the_hub_has(repo: str) -> None:
    assert HuggingFaceOptions(repo=repo).repo == repo


@pytest.mark.parametrize("weights", ["newest", pytest.param("best", marks=pytest.mark.long)])
def test_a_launch_uploads_what_it_has_trained(launch_recipe: LaunchRecipe, hub: Any, weights: str) -> None:
    """And `trainrun sync` does it, where the hub was away until the end."""
    if weights == "newest":
        hub.start()
    result = launch_recipe(RECIPE.format(weights=weights))
    assert result.outcome.state == "finished"
    if weights == "best":
        hub.start()
        assert command(["sync", result.paths.run_id, "--dir", str(result.paths.root.parent)]) == 0
    (commit,) = hub.commits
    assert commit["files"] == ["README.md", "model.safetensors", "recipe.toml"]
    checkpoint = result.paths.checkpoints / ("step-000006" if weights == "newest" else "best")
    trained, sent = read_tensors(checkpoint.resolve(), "model/"), load_file(hub.file("model.safetensors"))
    assert trained
    assert sent.keys() == trained.keys()
    assert all(torch.equal(sent[name], trained[name]) for name in trained)
