"""A task whose end shows every draw on the way, with the samples of each step on record.

Its option `rests` names a place at which rank 0 stays, once in a run, until the launching process was told something.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import torch

from trainrun import Field, PluginOptions, hookimpl

RESTING = 20.0  # seconds that rank 0 stays where nobody tells it anything
HERE = 0.3  # seconds that it stays on: what the workers are told reaches them there
AT = 3  # the step at which it rests, in the places that come at every step


def rest():
    """Say that the place is reached, and stay until the client has written down what it was asked for."""
    run = Path(os.environ["TRAINRUN_RUN_DIR"])
    with suppress(FileExistsError):
        (run / "resting").touch(exist_ok=False)
        until = time.monotonic() + RESTING
        while not list(run.glob("attempts/*/requests.jsonl")) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(HERE)


class Numbers(torch.utils.data.Dataset):
    """Numbered samples. slow: one of them takes long to load."""

    def __init__(self, size, slow):
        generator = torch.Generator().manual_seed(1)
        self.values = torch.randn(size, 4, generator=generator)
        self.slow = slow

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        if self.slow and index == len(self) // 2:
            rest()
        return self.values[index], int(self.values[index, 0] > 0), index


class Task:
    """Two classes out of four numbers, with dropout."""

    class Options(PluginOptions):
        rests: str = Field("", description="Where rank 0 rests.")

    def __init__(self, options):
        self.rests = options.rests

    def reach(self, run, place, step=None):
        if self.rests == place and run.world.rank == 0 and run.step == (run.step if step is None else step):
            rest()

    @hookimpl
    def build_model(self, run):
        self.reach(run, "build_model")
        layers = torch.nn.Linear(4, 32), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        return torch.nn.Sequential(*layers)

    @hookimpl
    def build_dataset(self, split):
        return Numbers(64 if split == "train" else 16, slow=self.rests == "data" and split == "train")

    @hookimpl
    def training_step(self, run, model, batch):
        self.reach(run, "first step", 1)
        self.reach(run, "step", AT)
        values, classes, samples = batch
        line = {"attempt": run.attempt, "step": run.step, "samples": samples.tolist()}
        file = os.open(run.paths.root / f"samples-{run.world.rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, json.dumps(line).encode() + b"\n")
        os.close(file)
        return torch.nn.functional.cross_entropy(model(values), classes)

    @hookimpl
    def evaluation_step(self, run, model, batch):
        self.reach(run, "evaluation")
        return {"loss": torch.nn.functional.cross_entropy(model(batch[0]), batch[1])}

    @hookimpl
    def on_checkpoint_saved(self, run):
        self.reach(run, "saved")

    @hookimpl
    def on_epoch_end(self, run):
        self.reach(run, "epoch end")

    @hookimpl
    def on_train_end(self, run):
        self.reach(run, "end")
