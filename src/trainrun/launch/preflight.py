"""What must hold on this machine before anything is created: asked without torch, checked again by the workers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainrun.errors import EnvironmentProblem
from trainrun.launch import limits

if TYPE_CHECKING:
    from trainrun.recipe import Recipe

_DEVICES = Path("/dev")
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Placement:
    """How many workers each node gets, and the environment that they need for it."""

    workers: int
    environment: Mapping[str, str]


def place(recipe: Recipe, devices: Path = _DEVICES, environment: Mapping[str, str] = os.environ) -> Placement:
    """Decide on the number of workers.

    Raises EnvironmentProblem if their device is missing or a limit is too low.
    """
    gpus = 0 if recipe.train.device == "cpu" else count_gpus(devices, environment)
    asked = recipe.launch.workers
    local = recipe.launch.backend == "local"
    if local and recipe.train.device == "cuda" and gpus == 0:
        raise EnvironmentProblem(
            'train.device: "cuda" is asked for, and this machine shows no NVIDIA GPU; use "auto" or "cpu"'
        )
    if local and recipe.train.device == "cuda" and asked != "auto" and asked > gpus:
        raise EnvironmentProblem(f"launch.workers: {asked} workers on CUDA need {asked} GPUs, and {gpus} can be seen")
    workers = max(1, gpus) if asked == "auto" else asked
    each = threads(recipe, workers, environment)
    if local:
        limits.require(workers, int(each) if each.isdigit() else 1)
    return Placement(workers, {_THREADS: each})


def threads(recipe: Recipe, workers: int, environment: Mapping[str, str] = os.environ) -> str:
    """Return the value of OMP_NUM_THREADS.

    torchrun sets it for several workers only, which changes the last bits of results. The value is one thread if the
    recipe asks for determinism, so that a result does not depend on the number of cores. Otherwise the cores are shared
    out.
    """
    if environment.get(_THREADS):
        return environment[_THREADS]
    return "1" if recipe.run.deterministic else str(max(1, len(os.sched_getaffinity(0)) // workers))


def count_gpus(devices: Path = _DEVICES, environment: Mapping[str, str] = os.environ) -> int:
    """Return how many NVIDIA GPUs the workers will see."""
    try:
        present = sum(re.fullmatch(r"nvidia\d+", entry.name) is not None for entry in devices.iterdir())
    except OSError:
        return 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    listed = [part.strip() for part in visible.split(",")]
    named = [part for part in listed if part and not part.startswith("-")]
    return min(present, len(named))
