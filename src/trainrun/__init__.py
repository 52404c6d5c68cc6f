"""A training runner: a TOML recipe, torchrun workers, and every hook a pluggy hookimpl.

The public names. They are imported when they are first used, so that `import trainrun` costs nothing
and the command line stays free of torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainrun.errors import (
        EnvironmentProblem,
        ExitCode,
        HookFailed,
        PluginProblem,
        Problem,
        RecipeError,
        TrainingError,
        TrainrunError,
        UsageError,
    )
    from trainrun.launch.handle import Launch
    from trainrun.launch.launch import launch
    from trainrun.launch.resume import resume
    from trainrun.marker import hookimpl, hookspec
    from trainrun.plugin.options import Field, PluginOptions
    from trainrun.recipe.model import Duration, Recipe
    from trainrun.rundir.access import read_metrics, runs, status
    from trainrun.rundir.records import Outcome
    from trainrun.worker.run import Run
    from trainrun.worker.world import World

__version__ = "0.1.0"

__all__ = [
    "Duration",
    "EnvironmentProblem",
    "ExitCode",
    "Field",
    "HookFailed",
    "Launch",
    "Outcome",
    "PluginOptions",
    "PluginProblem",
    "Problem",
    "Recipe",
    "RecipeError",
    "Run",
    "TrainingError",
    "TrainrunError",
    "UsageError",
    "World",
    "__version__",
    "hookimpl",
    "hookspec",
    "launch",
    "read_metrics",
    "resume",
    "runs",
    "status",
]

_HOMES = {
    "Duration": "trainrun.recipe.model",
    "EnvironmentProblem": "trainrun.errors",
    "ExitCode": "trainrun.errors",
    "Field": "trainrun.plugin.options",
    "HookFailed": "trainrun.errors",
    "Launch": "trainrun.launch.handle",
    "Outcome": "trainrun.rundir.records",
    "PluginOptions": "trainrun.plugin.options",
    "PluginProblem": "trainrun.errors",
    "Problem": "trainrun.errors",
    "Recipe": "trainrun.recipe.model",
    "RecipeError": "trainrun.errors",
    "Run": "trainrun.worker.run",
    "TrainingError": "trainrun.errors",
    "TrainrunError": "trainrun.errors",
    "UsageError": "trainrun.errors",
    "World": "trainrun.worker.world",
    "hookimpl": "trainrun.marker",
    "hookspec": "trainrun.marker",
    "launch": "trainrun.launch.launch",
    "read_metrics": "trainrun.rundir.access",
    "resume": "trainrun.launch.resume",
    "runs": "trainrun.rundir.access",
    "status": "trainrun.rundir.access",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `trainrun.launch` the function: importing the subpackage of that name would put the module there."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "launch" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
