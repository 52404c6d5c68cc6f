"""Saves that fail, overlap, or meet a plugin that cannot give its state: training hears of it and goes on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.checkpoint import commit, read_manifest, scan, verify
from trainrun.errors import TrainingError
from trainrun.rundir.files import read_lines
from trainrun.worker.checkpoint.reader import read_tensors
from trainrun.worker.checkpoint.writer import Writer

PATIENCE = 30.0

Trainer = Callable[..., Any]


def fail_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The disk is full at the saves of these steps."""
    begin = commit.begin

    def full(checkpoints: Path, step: int, attempt: int) -> Path:
        if step in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return begin(checkpoints, step, attempt)

    monkeypatch.setattr(commit, "begin", full)


def told(trained: Any, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(trained.paths.events)[0] if event["event"] == kind]


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_ranks_hear_of_it_and_the_next_one_works(
    ranks: int, training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 2)
    table = {"every": 2, "at_end": False}
    trained = training(regression, ranks=ranks, train={"steps": 4}, checkpoint=table)
    assert len(trained.reports) == ranks
    assert trained.outcome.state == "finished"
    assert [(one["decision"], one["hook"]) for one in trained.saves] == [
        ("unsaved", "step-000002"),
        ("saved", "step-000004"),
    ]
    (warning,) = told(trained, "warning")
    assert "the checkpoint of step 2 was not saved: rank 0: OSError" in warning["reason"]
    assert "No space left" in warning["reason"]
    assert [found.step for found in scan(trained.paths.checkpoints)] == [4]


class Hears:
    """Writes down on each rank what became of checkpoints."""

    @hookimpl
    def on_checkpoint_saved(self, run: Any, checkpoint: str) -> None:
        self._note(run, f"{checkpoint} saved")

    @hookimpl
    def on_checkpoint_failed(self, run: Any, checkpoint: str, reason: str) -> None:
        self._note(run, f"{checkpoint} failed: {reason}")

    def _note(self, run: Any, text: str) -> None:
        with (run.paths.root / f"heard-{run.world.rank}").open("a") as file:
            file.write(f"{text.removeprefix(str(run.paths.checkpoints))}\n")


@pytest.mark.parametrize("background", [True, False])
def test_plugins_hear_of_it_on_all_ranks(
    background: bool, training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 2)
    table = {"every": 2, "at_end": False, "background": background}
    trained = training(regression, Hears, ranks=2, train={"steps": 4}, checkpoint=table)
    for rank in range(2):
        failed, saved = (trained.paths.root / f"heard-{rank}").read_text().splitlines()
        assert failed.startswith("/step-000002 failed: rank 0: OSError")
        assert saved == "/step-000004 saved"


def test_the_ends_of_saves_are_heard_in_their_order_also_at_once(
    training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first save fails only when the second is about to begin, so that both are told at the end of the run."""
    begun, begin = threading.Event(), commit.begin

    class Begins:
        @hookimpl
        def on_checkpoint_start(self, run: Any) -> None:
            if run.step == 2:
                begun.set()

    def late(checkpoints: Path, step: int, attempt: int) -> Path:
        if step == 1:
            assert begun.wait(PATIENCE)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return begin(checkpoints, step, attempt)

    monkeypatch.setattr(commit, "begin", late)
    trained = training(regression, Hears, Begins, train={"steps": 2}, checkpoint={"every": 1, "at_end": False})
    failed, saved = (trained.paths.root / "heard-0").read_text().splitlines()
    assert failed.startswith("/step-000001 failed")
    assert saved == "/step-000002 saved"
    assert [one["decision"] for one in trained.saves] == ["unsaved", "saved"]


@pytest.mark.parametrize("background", [True, False])
def test_too_many_in_a_row_stop_the_training(
    background: bool, training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, *range(2, 10))
    table = {"every": 2, "at_end": False, "max_failures": 2, "background": background}
    trained = training(regression, train={"steps": 30}, checkpoint=table)
    assert (trained.outcome.state, trained.outcome.stop.origin) == ("stopped", "saves")
    assert "2 saves in a row failed (checkpoint.max_failures)" in trained.outcome.reason
    assert 4 <= trained.outcome.step < 10


def test_the_last_one_must_work(training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 4)
    with pytest.raises(TrainingError, match="the checkpoint of step 4, the last, could not be saved"):
        training(regression, train={"steps": 4}, checkpoint={"at_end": True})


class Keep:
    """What the model is at the end of each step."""

    at: dict[int, list[list[float]]]

    @hookimpl
    def on_step_end(self, run: Any, step: int) -> None:
        type(self).at[step] = [one.tolist() for one in run.model.parameters()]


def test_a_save_that_takes_long_holds_what_was_then_and_the_next_one_waits(
    training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first save goes on only when training has made two more steps: what it writes must be those of step 2."""
    moved_on, running, most = threading.Event(), [0], [0]
    write = Writer.write

    def slow(self: Writer, taken: Any) -> Path:
        running[0] += 1
        most[0] = max(most[0], running[0])
        assert taken.step != 2 or moved_on.wait(PATIENCE)
        try:
            return write(self, taken)
        finally:
            running[0] -= 1

    class Release:
        @hookimpl
        def on_step_end(self, run: Any, step: int) -> None:
            if step == 4:
                moved_on.set()

    keep = type("Keep", (Keep,), {"at": {}})
    monkeypatch.setattr(Writer, "write", slow)
    table = {"every": 2, "at_end": False, "keep": 9}
    trained = training(regression, keep, Release, train={"steps": 7}, checkpoint=table)
    assert most == [1]
    assert [found.step for found in scan(trained.paths.checkpoints)] == [6, 4, 2]
    for found in scan(trained.paths.checkpoints):
        assert verify(found.path) == []
        assert [one.tolist() for one in read_tensors(found.path, "model/").values()] == keep.at[found.step]


class Good:
    @hookimpl
    def on_step_end(self) -> None:
        """It is here for its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"a": torch.ones(2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Raises(Good):
    asked = 0

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked > 1:  # it is asked before the first step too
            raise RuntimeError("no state today")
        return {}


class Lambda(Raises):
    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        return {"f": lambda: 1} if self.asked > 1 else {}


@pytest.mark.parametrize(("bad", "why"), [(Raises, "no state today"), (Lambda, "state['f'] is a function")])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_plugin_without_a_state_to_save_is_named_and_the_rest_is_saved(
    ranks: int, bad: type, why: str, training: Trainer, regression: type
) -> None:
    trained = training(regression, bad, Good, ranks=ranks, train={"steps": 3}, checkpoint={"at_end": True})
    assert len(trained.reports) == ranks
    (found,) = scan(trained.paths.checkpoints)
    assert verify(found.path) == []
    manifest = read_manifest(found.path)
    assert list(manifest.missing) == [bad.__name__.lower()]
    assert why in manifest.missing[bad.__name__.lower()]
    assert [name for name in manifest.files if name.startswith("plugins/")] == ["plugins/good.pt"]
