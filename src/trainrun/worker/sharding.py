"""`parallel.strategy = "fsdp"`: each rank keeps a part of every parameter, its gradient and its optimizer state.

FSDP2 changes the model in place: its parameters keep their names and become DTensors, cut along their first
dimension. A group of parameters is gathered when the forward or backward of its module needs it, and freed after.

`torch.distributed.fsdp` takes about as long to import as torch itself, so only a worker that shards imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainrun.errors import Problem, RecipeError
from trainrun.worker.world import World

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_LISTS = (nn.ModuleList, nn.Sequential)


def shard(model: nn.Module, device: torch.device, world: World, wrap: Sequence[str] | None) -> nn.Module:
    """Shard `model` over all ranks, in place: each block that `wrap` or `blocks_of` finds as a group, then the rest.

    To be called on all ranks alike. Raises RecipeError for a pattern of `wrap` that fits no module, and for modules
    that cannot be groups of their own.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - see above
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device.type, (world.size,))
    for block in reversed(blocks_of(model) if wrap is None else _chosen(model, wrap)):  # inner ones before outer ones
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The children of the model's lists (ModuleList, Sequential) that have parameters.

    Of a list within a list the longer one counts: the layers of a backbone, not the backbone beside the head.
    """
    found: list[nn.Module] = []
    for blocks in _lists(model):
        for block in blocks:
            inner = any(len(deeper) > len(blocks) for deeper in _lists(block))
            found += blocks_of(block) if inner or isinstance(block, nn.ModuleList | nn.ModuleDict) else [block]
    return found


def _lists(module: nn.Module) -> list[list[nn.Module]]:
    """The outermost lists in `module`, itself included, as their children that have parameters."""
    if isinstance(module, _LISTS):
        return [[child for child in module if any(True for _ in child.parameters())]]
    return [found for child in module.children() for found in _lists(child)]


def _chosen(model: nn.Module, wrap: Sequence[str]) -> list[nn.Module]:
    """The modules that a pattern fits, outer ones before inner ones."""
    named = [(name, module) for name, module in model.named_modules() if name]
    for pattern in wrap:
        if not any(_fits(pattern, name, module) for name, module in named):
            names = ", ".join(f"{name} ({type(module).__name__})" for name, module in named[:3])
            raise _error(f"{pattern!r} fits no module by name or class", f"modules are called like {names}")
    return [module for name, module in named if any(_fits(pattern, name, module) for pattern in wrap)]


def _fits(pattern: str, name: str, module: nn.Module) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    named = len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
    return named or fnmatchcase(type(module).__name__, pattern)


def shards(model: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP2 gathers and frees, whoever has sharded them; none where the model is not sharded."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it nobody can have sharded a module
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


@contextmanager
def unreduced(modules: Sequence[FSDPModule]) -> Iterator[None]:
    """Backwards in here add up gradients on each rank, and do not reduce them."""
    _set_reduction(modules, on=False)
    try:
        yield
    finally:
        _set_reduction(modules, on=True)


def _set_reduction(modules: Sequence[FSDPModule], *, on: bool) -> None:
    for module in modules:
        module.set_requires_gradient_sync(on, recurse=False)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A DTensor's full value as a plain tensor; other tensors as they are. To be called on all ranks alike."""
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _error(what: str, hint: str) -> RecipeError:
    return RecipeError([Problem("recipe: parallel.wrap", what, hint)])
