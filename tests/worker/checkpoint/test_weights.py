"""`run.save_weights`: the same tensors as a checkpoint of that step, whatever the model is spread over."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainrun.marker import hookimpl
from trainrun.worker.checkpoint import weights
from trainrun.worker.checkpoint.reader import read_tensors

SPREAD = [(1, "none"), (2, "ddp"), (2, "fsdp")]


class Writes:
    """Saves the weights of step 2, whole and each rank's own."""

    @hookimpl(mutates=True)
    def on_step_end(self, run: Any, step: int) -> None:
        if step == 2:
            run.save_weights(run.paths.root / "weights" / "whole.safetensors")
            run.save_weights(run.paths.root / f"own-{run.world.rank}.safetensors", local=True)


@pytest.mark.parametrize(("ranks", "strategy"), SPREAD)
def test_they_are_those_of_the_checkpoint(training: Any, regression: Any, ranks: int, strategy: str) -> None:
    tables = {"train": {"steps": 2}, "checkpoint": {"at_end": True}, "parallel": {"strategy": strategy}}
    paths = training(regression, Writes, ranks=ranks, **tables).paths
    wanted = read_tensors(paths.checkpoints / "step-000002", "model/")
    file = paths.root / "weights" / "whole.safetensors"
    found = load_file(file)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [path.name for path in file.parent.iterdir()] == ["whole.safetensors"]
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "run": paths.run_id, "step": "2"}


@pytest.mark.parametrize(("ranks", "strategy"), SPREAD)
def test_each_ranks_own_say_where_they_belong(training: Any, regression: Any, ranks: int, strategy: str) -> None:
    tables = {"train": {"steps": 2}, "parallel": {"strategy": strategy}}
    root = training(regression, Writes, ranks=ranks, **tables).paths.root
    wanted = load_file(root / "weights" / "whole.safetensors")
    built = {name: torch.full_like(tensor, torch.nan) for name, tensor in wanted.items()}
    for rank in range(ranks):
        file = root / f"own-{rank}.safetensors"
        with safe_open(file, "pt") as opened:
            notes = opened.metadata()
        assert notes["rank"] == str(rank)
        parts = json.loads(notes["parts"])
        assert bool(parts) == (strategy == "fsdp")
        for name, tensor in load_file(file).items():
            first = parts[name]["offset"][0] if name in parts else 0
            built[name][first : first + len(tensor)] = tensor
    assert all(torch.equal(built[name], wanted[name]) for name in wanted)


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.safetensors"
    weights.write(file, {"w": torch.ones(2)}, {})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            weights.write(file, {"w": torch.zeros(2)}, {})
    assert load_file(file)["w"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [file]


def test_before_there_is_a_model(training: Any, regression: Any) -> None:
    class TooSoon:
        @hookimpl
        def on_worker_start(self, run: Any) -> None:
            run.save_weights(run.paths.root / "w.safetensors")

    with pytest.raises(Exception, match=r"there is no model yet; call it from on_train_start on"):
        training(regression, TooSoon, train={"steps": 1})
