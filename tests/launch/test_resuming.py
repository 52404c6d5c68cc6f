from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainrun.errors import BadCheckpoint
from trainrun.launch import resuming
from trainrun.launch.differences import Present
from trainrun.launch.handle import GoingOn, Launch
from trainrun.launch.manifest import versions
from trainrun.launch.resuming import prepare_start
from trainrun.recipe import Recipe
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_json, read_lines

Write = Callable[..., Path]


@pytest.fixture
def launch(paths: RunPaths, make: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A launch without plugins."""
    made = make(paths)

    def present(resolved: Any, known: Any, world: int) -> Present:
        return Present({"task": {"use": "x"}, "train": {"steps": 10, "batch_size": 64}}, {}, known, world)

    monkeypatch.setattr(resuming, "present", present)
    return made


@pytest.fixture
def save(paths: RunPaths, write_checkpoint: Write) -> Write:
    """Write a checkpoint of an earlier launch of the run."""
    return lambda step, **changes: write_checkpoint(paths.checkpoints, step, **{"versions": versions(), **changes})


def prepared(launch: Launch, attempt: int = 1, **wish: Any) -> tuple[dict[str, Any], list[str]]:
    """What is written down for the attempt, and what is said."""
    said: list[str] = []
    going_on = GoingOn(**{"since": 1, **wish})
    prepare_start(replace(launch, attempt=attempt, going_on=going_on), said.append)
    return read_json(launch.paths.start(attempt)) or {}, said


def events(launch: Launch, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(launch.paths.events)[0] if event["event"] == kind]


def with_mode(launch: Launch, mode: str) -> Launch:
    data = {"task": {"use": "x"}, "train": {"steps": 10, "batch_size": 64}, "checkpoint": {"resume": mode}}
    return replace(launch, recipe=Recipe.from_data(data))


def test_new_run_starts_at_step_0_without_a_word(launch: Launch) -> None:
    start, said = prepared(launch)
    assert start == {
        "checkpoint": None,
        "reason": "there is no checkpoint yet",
        "allow_changes": False,
        "trust": False,
        "differences": {},
    }
    assert said == []
    assert events(launch, "resume") == []


def test_attempt_goes_on_from_the_newest_checkpoint(launch: Launch, save: Write) -> None:
    save(5), save(7)
    start, said = prepared(launch, attempt=2)
    assert start["checkpoint"] == str(launch.paths.checkpoints / "step-000007")
    assert said == ["resuming from step 7 (checkpoints/step-000007)"]
    (event,) = events(launch, "resume")
    assert (event["attempt"], event["step"], event["checkpoint"]) == (2, 7, start["checkpoint"])
    assert event["differences"] == {}


def test_attempt_that_starts_over_says_so(launch: Launch) -> None:
    _, said = prepared(launch, attempt=2)
    assert said == ["starting at step 0: there is no checkpoint yet"]


def test_damaged_checkpoint_is_left_out_kept_and_told(
    launch: Launch, save: Write, damage: Callable[[Path], None]
) -> None:
    save(5)
    damage(save(7))
    start, said = prepared(launch, attempt=2)
    assert start["checkpoint"].endswith("step-000005")
    assert "kept as checkpoints/bad-step-000007" in said[0]
    assert said[-1] == "resuming from step 5 (checkpoints/step-000005)"
    (event,) = events(launch, "quarantine")
    assert event["checkpoint"].endswith("bad-step-000007")
    assert "SHA-256" in event["reasons"][0]


def test_run_never_starts_over_because_its_checkpoints_are_bad(
    launch: Launch, save: Write, damage: Callable[[Path], None]
) -> None:
    damage(save(5)), damage(save(7))
    with pytest.raises(BadCheckpoint, match="none of the checkpoints is good") as caught:
        prepared(launch, attempt=2)
    assert caught.value.exit_code == 4
    assert "step-000005: " in str(caught.value)
    assert "step-000007: " in str(caught.value)
    assert not launch.paths.start(2).exists()


def test_what_a_dead_attempt_was_writing_is_removed(launch: Launch, save: Write) -> None:
    save(5)
    left = launch.paths.checkpoints / ".tmp-000007-1-1f3a9c0d"
    (left / "state").mkdir(parents=True)
    prepared(launch, attempt=2)
    assert not left.exists()


def test_never_starts_over_and_puts_aside_what_is_in_the_way(launch: Launch, save: Write) -> None:
    save(5)
    start, said = prepared(with_mode(launch, "never"), attempt=2)
    assert start["checkpoint"] is None
    assert said == [
        "note: a newer checkpoint is moved aside as checkpoints/superseded-step-000005",
        'starting at step 0: checkpoint.resume is "never"',
    ]
    assert [event["checkpoint"][-11:] for event in events(launch, "set_aside")] == ["step-000005"]


# --- a checkpoint of another run ---


@pytest.fixture
def other(write_checkpoint: Write, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "other" / "checkpoints", 3, versions=versions())


def test_first_attempt_starts_from_the_named_checkpoint(launch: Launch, save: Write, other: Path) -> None:
    save(5)
    start, said = prepared(launch, first=other, fallback=other, reason="checkpoint.resume names it")
    assert start["checkpoint"] == str(other)
    assert said == [f"resuming from step 3 ({other})"]


def test_later_attempts_prefer_the_runs_own(launch: Launch, save: Write, other: Path) -> None:
    start, _ = prepared(with_mode(launch, str(other)), attempt=2, first=other, fallback=other)
    assert start["checkpoint"] == str(other)
    save(5)
    start, _ = prepared(with_mode(launch, str(other)), attempt=3, first=other, fallback=other)
    assert start["checkpoint"].endswith("step-000005")


def test_checkpoint_that_others_can_write_to_is_refused(launch: Launch, other: Path) -> None:
    (other / "state" / "__0_0.distcp").chmod(0o666)
    other.chmod(0o777)
    with pytest.raises(BadCheckpoint, match="--trust-checkpoint") as caught:
        prepared(launch, first=other)
    assert caught.value.exit_code == 4


def test_trust_is_told_and_logged(launch: Launch, other: Path) -> None:
    other.chmod(0o777)
    start, said = prepared(launch, first=other, trust=True)
    assert start["trust"] is True
    assert said[0].startswith(f"warning: {other} is trusted")
    assert events(launch, "trusted")[0]["reasons"]


# --- what changed ---


def test_changes_reach_the_workers_and_the_terminal(launch: Launch, save: Write) -> None:
    save(5, world_size=4)
    start, said = prepared(launch, attempt=2, since=2)
    assert start["differences"] == {"world": [4, 2]}
    assert "number of workers has changed: 4 → 2" in said[-1]
    assert events(launch, "resume")[0]["differences"] == {"world": [4, 2]}


def test_changes_of_the_training_are_refused_unless_allowed(launch: Launch, save: Write) -> None:
    save(5, recipe={"task": {"use": "x"}, "train": {"steps": 10, "batch_size": 32}})
    with pytest.raises(Exception, match=r"train.batch_size: 32 → 64"):
        prepared(launch, attempt=2, since=2)
    start, said = prepared(launch, attempt=2, since=2, allow_changes=True)
    assert start["differences"] == {"recipe": {"train.batch_size": [32, 64]}}
    assert said[-1] == "note: train.batch_size has changed: 32 → 64"


def test_what_this_launch_wrote_itself_cannot_differ(launch: Launch, save: Write) -> None:
    save(5, attempt=2, recipe={"train": {"batch_size": 32}})
    start, _ = prepared(launch, attempt=3, since=2)
    assert start["differences"] == {}


def test_own_checkpoint_that_others_can_write_to_is_refused_too(launch: Launch, save: Write) -> None:
    save(5).chmod(0o777)
    with pytest.raises(BadCheckpoint, match="--trust-checkpoint"):
        prepared(launch, attempt=2, since=2)
    assert prepared(launch, attempt=2, since=2, trust=True)[0]["checkpoint"].endswith("step-000005")
