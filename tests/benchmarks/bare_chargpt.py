"""chargpt as a bare torchrun script: the same model, data, batches, optimizer and DDP settings as throughput.toml."""

from __future__ import annotations

import itertools
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from clocked_chargpt import WARM_UP, write_rate
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from trainrun.examples.chargpt import GPT, TRAIN_SHARE, ChargptOptions, Windows, standard_library

RECIPE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("throughput.toml").read_text(encoding="utf-8"))
BATCH_SIZE: int = RECIPE["train"]["batch_size"]


def batches(options: ChargptOptions) -> Iterator[Any]:
    text = standard_library(options.size)
    dataset = Windows(text[: int(len(text) * TRAIN_SHARE)], options.context)
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, BATCH_SIZE // dist.get_world_size(), sampler=sampler, drop_last=True)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from loader


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    options = ChargptOptions(**{key: value for key, value in RECIPE["task"].items() if key != "use"})
    model = DistributedDataParallel(GPT(options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["optimizer"]["lr"])
    steps, started = RECIPE["train"]["steps"], 0.0
    for step, (given, wanted) in enumerate(itertools.islice(batches(options), steps), 1):
        if step == WARM_UP:
            started = time.perf_counter()
        elif step == steps and dist.get_rank() == 0:
            write_rate(started, step - WARM_UP, BATCH_SIZE * options.context)
        loss = functional.cross_entropy(model(given).flatten(0, 1), wanted.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % RECIPE["train"]["log_every"] == 0 and dist.get_rank() == 0:
            print(step, loss.item(), flush=True)  # noqa: T201 - what a bare script logs with
    del model
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
