"""Damage to a checkpoint of a real training: always found, and an older one or a refusal is what follows."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainrun import hookimpl
from trainrun.checkpoint import BadCheckpoint, choose, named, verify
from trainrun.rundir import RunPaths

RECIPE = {
    "train": {"steps": 6},
    "optimizer": {"name": "adamw"},
    "checkpoint": {"every": 2, "keep": 3, "at_end": False, "background": False},
}

Trainer = Callable[..., Any]


class Hoarder:
    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "far enough" if run.step == self.at else None

    at = 4  # a vote is known to all a step later

    def state_dict(self) -> dict[str, Any]:
        return {"hoard": torch.arange(9)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["hoard"].tolist() == list(range(9))


@pytest.fixture
def run(training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """Stopped at step 5, with checkpoints of the steps 2 and 4."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    paths: RunPaths = training(regression, Hoarder, **RECIPE).paths
    assert sorted(path.name for path in paths.checkpoints.iterdir()) == ["step-000002", "step-000004"]
    return paths


def damages(checkpoint: Path, older: Path, seed: int = 0) -> Iterator[tuple[str, str, bytes | None]]:
    """What is done, to which file, and what is then in it; None: it is gone."""
    draws = random.Random(seed)
    for path in sorted(one for one in checkpoint.rglob("*") if one.is_file()):
        name, data = str(path.relative_to(checkpoint)), path.read_bytes()
        for length in (0, 1, len(data) // 2, len(data) - 1):
            yield f"cut to {length}", name, data[:length]
        for bit in draws.sample(range(8 * len(data)), 32):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit}", name, bytes(changed)
        yield "deleted", name, None
        if (other := (older / name).read_bytes()) != data:
            yield "of another step", name, other


def put(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def test_all_of_it_is_found_and_an_older_one_is_taken(run: RunPaths) -> None:
    newest, older = run.checkpoints / "step-000004", run.checkpoints / "step-000002"
    cases = list(damages(newest, older))
    kept = {name: (newest / name).read_bytes() for _, name, _ in cases}
    missed = []
    for what, name, content in cases:
        put(newest / name, content)
        choice = choose(run.checkpoints)
        bad = run.checkpoints / "bad-step-000004"
        if choice.path != older or [path for path, _ in choice.rejected] != [bad] or not verify(bad):
            missed.append((what, name))
        bad.rename(newest)
        with pytest.raises(BadCheckpoint, match="this checkpoint is not good"):
            named(newest)
        (newest / name).write_bytes(kept[name])
    assert missed == []
    assert verify(newest) == []
    assert len(kept) == 6
    assert len(cases) >= 6 * (4 + 32 + 1)


@pytest.mark.parametrize("name", ["manifest.json", "state/.metadata", "state/__0_0.distcp", "rank-0.pt"])
def test_a_training_goes_on_from_the_older_one_bit_for_bit(
    name: str, run: RunPaths, training: Trainer, regression: type, keeper: Any
) -> None:
    whole = training(regression, keeper, report=keeper.report, **RECIPE)
    data = bytearray((run.checkpoints / "step-000004" / name).read_bytes())
    data[len(data) // 2] ^= 4
    put(run.checkpoints / "step-000004" / name, bytes(data))
    again = training(
        regression, type("Hoarder", (Hoarder,), {"at": 0}), keeper, report=keeper.report, after=run, **RECIPE
    )
    assert again.reports == whole.reports
    assert {path.name for path in run.checkpoints.iterdir()} >= {"bad-step-000004", "step-000004", "step-000002"}
    assert verify(run.checkpoints / "step-000004") == []


def test_none_is_good(run: RunPaths, training: Trainer, regression: type) -> None:
    for path in run.checkpoints.iterdir():
        put(path / "training.pt", b"")
    with pytest.raises(BadCheckpoint, match="none of the checkpoints is good"):
        training(regression, Hoarder, after=run, **RECIPE)


def test_a_checkpoint_of_another_step_under_this_name(run: RunPaths) -> None:
    shutil.rmtree(run.checkpoints / "step-000004")
    shutil.copytree(run.checkpoints / "step-000002", run.checkpoints / "step-000004")
    assert choose(run.checkpoints).path == run.checkpoints / "step-000002"
