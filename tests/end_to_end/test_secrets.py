"""Secrets reach the plugins, and no file of the run."""

from __future__ import annotations

from pathlib import Path

import trainrun

TASK = """
import torch

from trainrun import PluginOptions, hookimpl


class Options(PluginOptions):
    api_token: str


@hookimpl
def build_model(run):
    if run.options.api_token != "hunter" + "2" or run.recipe.task.options["api_token"] != "hunter" + "2":
        raise ValueError("the secret did not arrive")
    return torch.nn.Linear(4, 1)


@hookimpl
def build_dataset(split):
    return torch.utils.data.TensorDataset(torch.ones(8, 4))


@hookimpl
def training_step(model, batch):
    return model(batch[0]).mean()
"""

RECIPE = """
[task]
use = "task.py"
api_token = "hunter2"

[launch]
workers = 1

[train]
steps = 1
batch_size = 4

[evaluate]
splits = []
"""


def test_secrets_reach_the_workers_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "train.toml").write_text(RECIPE)
    outcome = trainrun.launch(tmp_path / "train.toml", dir=tmp_path / "runs", quiet=True)
    assert outcome.exit_code == 0, outcome.reason
    files = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if b"hunter2" in file.read_bytes()]
