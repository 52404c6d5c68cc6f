"""The model's weights as one file of safetensors, while a training continues."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor

from trainrun.checkpoint import sync
from trainrun.worker.checkpoint import safetensors
from trainrun.worker.checkpoint.capture import model_tensors
from trainrun.worker.sharding import whole


def gather(model: torch.nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Return the whole model's tensors on rank 0, nothing on the others.

    They are in host memory. Call it on all ranks alike.
    """
    found = {}
    for name, tensor in model_tensors(model).items():
        full = whole(tensor.detach())
        if rank == 0:
            found[name] = full.cpu()
    return found


def own(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return this rank's part of the model, and its place.

    Asks no other rank. The tensors are in host memory. Of a part there is its `shape` in the whole and the `offset` of
    its first element; whole tensors have none.
    """
    tensors = model_tensors(model)
    sharded = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    places = {}
    for item in create_default_local_save_plan(sharded, False).items if sharded else []:
        data = item.tensor_data
        assert data is not None
        places[item.index.fqn] = {"shape": list(data.size), "offset": list(data.chunk.offsets)}
    local = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
    return {name: tensor.detach().cpu() for name, tensor in local.items()}, places


def write(path: Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Any]) -> None:
    """Write the file and wait until it is on the disk.

    It appears whole or not at all, and replaces an existing one. Raises OSError, and UsageError for a tensor of a kind
    that the format does not have.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in notes.items()}
    try:
        with scratch.open("xb") as file:
            safetensors.write(file, tensors, {"format": "pt", **texts})
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()
    sync(path.parent)
