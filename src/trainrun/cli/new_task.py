"""`trainrun new-task`: write a task with its recipe and its test, to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from trainrun.cli import scaffold
from trainrun.cli.echo import echo

_TASK = '''\
"""$name: a task for trainrun. It learns a curve from noisy points; put your own data and model in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from trainrun import Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run

SAMPLES = {"train": 800, "eval": 200}

Batch = tuple[torch.Tensor, torch.Tensor]


class Options(PluginOptions):
    """The keys of `[task]` besides `use`."""

    hidden: int = Field(32, ge=1, description="Width of the hidden layer.")
    noise: float = Field(0.1, ge=0, description="Standard deviation of the noise in the data.")


@hookimpl
def build_model(run: Run) -> nn.Module:
    width = run.options.hidden
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))


# Called for "train" and for each of the recipe's evaluate.splits; None: there is no such split.
@hookimpl
def build_dataset(run: Run, split: str) -> TensorDataset | None:
    if split not in SAMPLES:
        return None
    drawn = torch.Generator().manual_seed(list(SAMPLES).index(split))
    x = 6 * torch.rand(SAMPLES[split], 1, generator=drawn) - 3
    return TensorDataset(x, x.sin() + run.options.noise * torch.randn(x.shape, generator=drawn))


# The mean over the samples of the batch. For another unit: {"loss": mean, "weight": how many there are of it}.
@hookimpl
def training_step(model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
    x, y = batch
    return {"loss": functional.mse_loss(model(x), y)}


@hookimpl
def evaluation_step(model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
    x, y = batch
    error = model(x) - y
    return {"loss": error.square().mean(), "error": error.abs().mean()}
'''

_RECIPE = """\
[run]
name = "$name"

[task]
use = "$module.py"
hidden = 32

[train]
steps = 300
batch_size = 64

[evaluate]
every = 100

[optimizer]
name = "adamw"
lr = 1e-2
"""

_TEST = """\
from __future__ import annotations

from pathlib import Path

from trainrun.testing import LaunchRecipe, RunRecipe

RECIPE = Path(__file__).with_name("train.toml")


def test_it_learns(run_recipe: RunRecipe) -> None:
    result = run_recipe(RECIPE, overrides=["train.steps=100", "evaluate.every=50"])
    errors = result.series("eval/error")
    assert errors[100] < 0.5 * errors[50] or errors[100] < 0.2


def test_it_trains_on_two_workers(launch_recipe: LaunchRecipe) -> None:
    result = launch_recipe(RECIPE, overrides=["train.steps=4"])
    assert result.outcome.ok
    assert result.outcome.step == 4
"""

_FILES: Mapping[str, str] = {
    "$module.py": _TASK,
    "test_$module.py": _TEST,
    "train.toml": _RECIPE,
}


@click.command("new-task")
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Parent of the new folder.  [default: current directory]",
)
def command(name: str, parent: Path) -> None:
    """Create a new task with recipe and test in the folder NAME.

    The task trains as it is; replace its model and data with your own.
    """
    module = scaffold.module_of(name, "new-task")
    folder = parent / name
    scaffold.write(folder, _FILES, {"name": name, "module": module}, "new-task")
    echo(f"Wrote {folder}. Next:\n  cd {folder}\n  trainrun launch\n  trainrun smoke\n  pytest")
