"""The example of docs/checkpoints.md, with a real launch: what a resume announces is what is trained with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import trainrun
from trainrun.cli.main import run as command
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.files import read_lines
from trainrun.worker.checkpoint.reader import read_values

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 8, batch_size = 16, log_every = 1 }
evaluate.splits = []
launch = { workers = 1, max_restarts = 0 }
optimizer = { name = "adamw", lr = 1e-2 }
scheduler.name = "cosine"
checkpoint = { every = 4, keep = 9 }
"""
CHANGES = ["optimizer.lr=1e-4", "optimizer.weight_decay=0.5", "checkpoint.every=1"]


def saved(outcome: Outcome, step: int) -> dict[str, Any]:
    """The first parameter group after a step: its rate is that of the next step."""
    values = read_values(RunPaths(Path(outcome.run)).checkpoints / f"step-{step:06}" / "training.pt")
    group: dict[str, Any] = values["optimizer"]["groups"][0]
    return group


def rate(base: float, done: int) -> float:
    return base * 0.5 * (1 + math.cos(math.pi * done / 8))


def test_changed_rate_is_trained_with_in_the_run_and_in_a_new_one(
    tmp_path: Path, trainrun_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
    recipe = tmp_path / "train.toml"
    recipe.write_text(RECIPE)
    first = trainrun.launch(recipe, dir=tmp_path / "runs", quiet=True)
    assert saved(first, 4)["lr"] == pytest.approx(rate(1e-2, 4))
    start = Path(first.run) / "checkpoints" / "step-000004"
    told = f"at step 5 the rate goes from {rate(1e-2, 4):.6g} to {rate(1e-4, 4):.6g}"
    other = trainrun.launch(
        recipe, [*CHANGES, f"checkpoint.resume={start}"], dir=tmp_path / "runs", allow_changes=True, quiet=True
    )
    again = trainrun.resume(first.run, CHANGES, start=4, allow_changes=True, quiet=True)
    for outcome in (again, other):
        assert outcome.ok
        for step in (5, 6, 7):
            group = saved(outcome, step)
            assert group["lr"] == pytest.approx(rate(1e-4, step), rel=1e-9)
            assert group["weight_decay"] == 0.5
        reasons = [event["reason"] for event in read_lines(RunPaths(Path(outcome.run)).events)[0] if "reason" in event]
        assert f"optimizer: lr was 0.01 and is 0.0001; {told}" in reasons
        capsys.readouterr()
        assert command(["why", outcome.run]) == 0
        shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert {"4 optimizer.lr 0.01 0.0001", "4 optimizer.weight_decay not set 0.5"} <= set(shown)
    with pytest.raises(trainrun.UsageError, match=r"optimizer\.name: adamw → sgd"):
        trainrun.resume(first.run, ["optimizer.name=sgd"], start=4, allow_changes=True, quiet=True)
