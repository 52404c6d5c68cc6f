"""The same work through trainrun's worker, in this process: the built-in plugins, the task, and no-op plugins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from workload import BATCH_SIZE, RATE, Batch, ClockedBatches, StepTime, build_model, loss_of

from trainrun import hookimpl
from trainrun.builtin import BUILTINS
from trainrun.plugin.instance import Instance
from trainrun.recipe.freeze import freeze
from trainrun.rundir import RunPaths
from trainrun.rundir.files import write_json
from trainrun.worker.main import train


class Work:
    """The task. `steps` is set before each trial, and the batches are read after it."""

    steps = 0
    batches: ClockedBatches

    @hookimpl
    def build_model(self) -> nn.Module:
        return build_model()

    @hookimpl
    def build_dataloader(self, split: str) -> Iterable[Batch] | None:
        if split != "train":
            return None
        Work.batches = ClockedBatches(Work.steps)
        return Work.batches

    @hookimpl
    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return loss_of(model, batch)


class NoOp:
    """One observer of five hooks of a step."""

    @hookimpl
    def on_step_start(self, run: Any, step: int) -> None:
        pass

    @hookimpl
    def on_forward_end(self, run: Any, loss: torch.Tensor) -> None:
        pass

    @hookimpl
    def on_backward_end(self, run: Any) -> None:
        pass

    @hookimpl
    def on_update_end(self, run: Any) -> None:
        pass

    @hookimpl
    def on_step_end(self, run: Any, step: int) -> None:
        pass


def run(steps: int, plugins: int) -> StepTime:
    Work.steps = steps
    with tempfile.TemporaryDirectory() as folder:
        train(_run_directory(Path(folder), plugins))
    return Work.batches.seconds


def _run_directory(root: Path, plugins: int) -> RunPaths:
    """What a launch would have written, for one worker."""
    paths = RunPaths(root)
    paths.logs.mkdir()
    paths.attempt(1).mkdir(parents=True)
    paths.recipe.write_text(freeze(_recipe()), encoding="utf-8")
    instances = [Instance(name, "builtin", target) for name, target in BUILTINS]
    instances += [Instance("work", "task", f"{__name__}:Work")]
    instances += [Instance(f"no-op-{number}", "plugin", f"{__name__}:NoOp") for number in range(plugins)]
    write_json(paths.manifest, {"instances": [instance.to_json() for instance in instances]})
    return paths


def _recipe() -> dict[str, Any]:
    return {
        "run": {"deterministic": False},
        "task": {"use": "work"},
        "train": {
            "steps": ClockedBatches(Work.steps).steps,
            "batch_size": BATCH_SIZE,
            "log_every": 1_000_000,  # nobody logs in the other loops either
            "device": "cpu",
        },
        "evaluate": {"splits": []},
        "optimizer": {"name": "sgd", "lr": RATE},
    }
