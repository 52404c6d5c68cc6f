"""digits as a bare torchrun script: the same model, data, batches and optimizer as start.toml. Arguments: STEPS."""

from __future__ import annotations

import itertools
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from clock import note
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from trainrun.examples.digits import read_digits

RECIPE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("start.toml").read_text(encoding="utf-8"))
CHANNELS, HIDDEN = 16, 128


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(CHANNELS, 2 * CHANNELS, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * CHANNELS, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 10),
    )


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    dataset = TensorDataset(*read_digits())
    loader = DataLoader(
        dataset, RECIPE["train"]["batch_size"] // dist.get_world_size(), sampler=DistributedSampler(dataset)
    )
    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["optimizer"]["lr"])
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, (images, labels) in enumerate(itertools.islice(batches, int(sys.argv[1])), 1):
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        note(dist.get_rank(), step)
    del model
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
