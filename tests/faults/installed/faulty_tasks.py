"""A user's task that works, or does not: the option `fault` names the method that stands in for its step."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from trainrun import Field, PluginOptions, hookimpl

KEPT = []


class Loading(TensorDataset):
    """Loads its eighth sample in another way: `fault` names the method."""

    def __init__(self, fault, *tensors):
        super().__init__(*tensors)
        self.fault = fault

    def __getitem__(self, index):
        if index == 7:
            getattr(self, self.fault)()
        return super().__getitem__(index)

    def sleeps(self):
        while True:
            time.sleep(3600)

    def raises(self):
        class Lost(KeyError):
            def __init__(self, name, needed):
                super().__init__(f"{name} is lost")

        raise Lost("sample seven", 2)


class Task:
    """Two classes out of four numbers."""

    class Options(PluginOptions):
        samples: int = Field(32, description="How many samples the dataset has.")
        fault: str = Field("loss", description="What its step does.")
        loading: str = Field("", description="What loading its eighth sample does.")

    def __init__(self, options):
        self.options = options

    @hookimpl
    def build_model(self):
        return torch.nn.Linear(4, 2)

    @hookimpl
    def build_dataset(self, split):
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(self.options.samples, 4, generator=generator)
        tensors = values, (values[:, 0] > 0).long()
        return Loading(self.options.loading, *tensors) if self.options.loading else TensorDataset(*tensors)

    @hookimpl
    def build_dataloader(self):
        return [] if self.options.fault == "empty_loader" else None

    @hookimpl
    def training_step(self, run, model, batch):
        return getattr(self, self.options.fault)(run, model, batch)

    def loss(self, run, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def no_loss(self, run, model, batch):
        return {"accuracy": 1.0}

    def no_answer(self, run, model, batch):
        model(batch[0])

    def wide_loss(self, run, model, batch):
        return model(batch[0]).sum(dim=1)

    def nan_loss(self, run, model, batch):
        loss = self.loss(run, model, batch)
        return loss * float("nan") if run.step == 3 else loss

    def raises(self, run, model, batch):
        """Raises on one rank only."""
        if run.step == 3 and run.world.rank == 1:
            raise ValueError("the task's mistake\nwith a second line")
        return self.loss(run, model, batch)

    def leaves(self, run, model, batch):
        """One rank leaves as if all were well."""
        if run.step == 3 and run.world.rank == 1:
            os._exit(0)
        return self.loss(run, model, batch)

    def waits(self, run, model, batch):
        """One rank says who it is, and waits to be killed."""
        if run.step == 3 and run.world.rank == 1:
            Path("ready").write_text(str(os.getpid()))
            signal.pause()
        return self.loss(run, model, batch)

    def prints(self, run, model, batch):
        """Prints without measure, and not even text."""
        sys.stdout.buffer.write(b"\xff\xfe\x1b[31m\x00 no text " * 200_000 + b"\n")
        sys.stdout.buffer.flush()
        print("a line\n" * 20_000)  # noqa: T201 - what a task may do
        return self.loss(run, model, batch)

    def keeps_model(self, run, model, batch):
        """Keeps the parallel model, and with it the process group, beyond the end of training."""
        KEPT.append(model)
        return self.loss(run, model, batch)

    def is_slow(self, run, model, batch):
        """Leaves the client the time to look at the run more than once."""
        time.sleep(0.3)
        return self.loss(run, model, batch)
