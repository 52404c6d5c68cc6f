"""Sharded tensors in the state of plugins.

They are written next to those of the model, each rank its own shards, so that any number of ranks can resume from them.
In the plugin's own file a small table stands in the place of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, empty

from trainrun.errors import BadCheckpoint
from trainrun.worker.checkpoint.reader import Tensors

PREFIX = "plugins/"

_NAME, _CUT = "__sharded__", "__cut__"


def take_out(states: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the states without their sharded tensors, and these by name.

    They are to be written under these names.
    """
    found: dict[str, torch.Tensor] = {}

    def replaced(value: Any, place: str) -> Any:
        if isinstance(value, DTensor):
            name = next(name for name in _names(place) if name not in found)
            found[name] = value
            return {_NAME: name, _CUT: [_cut(placement) for placement in value.placements]}
        if isinstance(value, dict):
            return {key: replaced(item, f"{place}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(replaced(item, f"{place}/{index}") for index, item in enumerate(value))
        return value

    return {name: replaced(state, f"{PREFIX}{name}") for name, state in states.items()}, found


def put_back(states: Mapping[str, Any], source: Tensors, model: torch.nn.Module) -> dict[str, Any]:
    """Return the states with their sharded tensors read from `source`.

    They are sharded as `model` is. If the model is not sharded they are whole, in host memory. Call it on all ranks
    alike.

    Raises BadCheckpoint if a tensor is missing.
    """
    mesh = next((one.device_mesh for one in model.parameters() if isinstance(one, DTensor)), None)
    rooms: dict[str, torch.Tensor] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, dict) and _NAME in value:
            name = value[_NAME]
            rooms[name] = _room(source, name, value.get(_CUT), mesh)
            return rooms[name]
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        return type(value)(map(replaced, value)) if isinstance(value, list | tuple) else value

    whole = {name: replaced(state) for name, state in states.items()}
    if rooms:
        with torch.no_grad():
            source.read(rooms)
    return whole


def _names(place: str) -> Iterator[str]:
    while True:
        yield place
        place += "'"


def _cut(placement: Placement) -> int | None:
    """Return the dimension along which a tensor is cut.

    None if every rank has all of it.
    """
    return placement.dim if isinstance(placement, Shard) else None


def _room(source: Tensors, name: object, cut: object, mesh: DeviceMesh | None) -> torch.Tensor:
    stored = source.stored.get(name) if isinstance(name, str) and name.startswith(PREFIX) else None
    if stored is None or not isinstance(cut, list):
        raise BadCheckpoint(f"{source.folder}: {name!r}, a sharded tensor of a plugin, is not there")
    if mesh is None:
        return torch.empty(stored.size, dtype=stored.properties.dtype)
    placements = [_placement(one, len(stored.size)) for one in cut] if len(cut) == mesh.ndim else None
    return empty(stored.size, dtype=stored.properties.dtype, device_mesh=mesh, placements=placements)


def _placement(cut: object, dimensions: int) -> Placement:
    return Shard(cut) if isinstance(cut, int) and 0 <= cut < dimensions else Replicate()
