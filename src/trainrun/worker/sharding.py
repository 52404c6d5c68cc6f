"""`parallel.strategy = "fsdp"`: each rank keeps a part of every parameter, its gradient and its optimizer state.

FSDP2 changes the model in place: its parameters keep their names and become DTensors, cut along their first
dimension. The parameters of a group are gathered when the forward or backward of its module needs them, and freed
after. Everything computed from a DTensor may be a collective, so all ranks must do it alike.

`torch.distributed.fsdp` takes a second to import, so only a worker that shards does. Forked workers have it already:
it comes with torch's compiler.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from trainrun.errors import Problem, RecipeError, TaskError
from trainrun.worker import blocks
from trainrun.worker.world import World

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(model: nn.Module, device: torch.device, world: World, wrap: Sequence[str] | None) -> nn.Module:
    """Shard `model` over all ranks, in place.

    Each module that `wrap` names or `blocks.find` finds is sharded, then the rest. Call it on all ranks alike. Raises
    RecipeError for `wrap`s that cannot be, TrainingError for such models.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - see above
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    _check(model)
    groups = _found(model) if wrap is None else _named(model, wrap)
    mesh = init_device_mesh(device.type, (world.size,))
    for group in reversed(groups):  # inner ones before outer ones
        fully_shard(group, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _keep_buffers_alike(model)
    return model


def _check(model: nn.Module) -> None:
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise TaskError(
            f"the parameters {', '.join(scalars)} have no dimension, and FSDP cuts along the first one; "
            'give them the shape (1,), or set parallel.strategy = "ddp"'
        )


def _found(model: nn.Module) -> list[nn.Module]:
    found = blocks.find(model)
    tied = blocks.tied(model, found)
    return [block for block in found if block not in tied]


def _named(model: nn.Module, wrap: Sequence[str]) -> list[nn.Module]:
    named = [(name, module) for name, module in model.named_modules() if name]
    for pattern in wrap:
        if not any(blocks.fits(pattern, name, module) for name, module in named):
            names = ", ".join(f"{name} ({type(module).__name__})" for name, module in named[:3])
            raise _error(f"{pattern!r} fits no module by name or class", f"modules are called like {names}")
    chosen = {module: name for name, module in named if any(blocks.fits(pattern, name, module) for pattern in wrap)}
    for module, name in chosen.items():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            raise _error(
                f"{name} is a {type(module).__name__}, which has no forward", f"name what it holds: '{name}.*'"
            )
    tied = [chosen[module] for module in blocks.tied(model, list(chosen)) if module in chosen]
    if tied:
        raise _error(
            f"{', '.join(sorted(tied))} share parameters with modules outside", "leave them out, or name what holds all"
        )
    return list(chosen)


def _keep_buffers_alike(model: nn.Module) -> None:
    """Give all ranks rank 0's buffers before each forward, as DDP does.

    These are, for example, the running means of BatchNorm.
    """
    saved = model.state_dict(keep_vars=True)
    names = [name for name, _ in model.named_buffers() if name in saved]

    def send(*_: Any) -> None:
        kinds: dict[torch.dtype, list[torch.Tensor]] = {}
        for buffer in map(model.get_buffer, names):
            kinds.setdefault(buffer.dtype, []).append(buffer.detach())
        for buffers in kinds.values():
            packed = torch.cat([buffer.reshape(-1) for buffer in buffers])
            dist.broadcast(packed.view(torch.uint8), src=0)  # as bytes: gloo knows no bool
            pieces = torch.split(packed, [buffer.numel() for buffer in buffers])
            for buffer, piece in zip(buffers, pieces, strict=True):
                buffer.copy_(piece.view_as(buffer))

    if names:
        model.register_forward_pre_hook(send, prepend=True)


def shards(model: nn.Module) -> list[FSDPModule]:
    """Return the modules that FSDP2 gathers and frees, sharded by any code.

    The list is empty if the model is not sharded.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it no module can have been sharded
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


@contextmanager
def unreduced(modules: Sequence[FSDPModule]) -> Iterator[None]:
    """Add up gradients on each rank, without reducing them, for the body."""
    _set_reduction(modules, on=False)
    try:
        yield
    finally:
        _set_reduction(modules, on=True)


def _set_reduction(modules: Sequence[FSDPModule], *, on: bool) -> None:
    for module in modules:
        module.set_requires_gradient_sync(on, recurse=False)


def free(modules: Sequence[FSDPModule]) -> None:
    """Make all parameters shards again.

    After a forward without a backward the outermost module's are still whole.
    """
    for module in modules:
        module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a DTensor's full value as a plain tensor.

    Other tensors are returned as they are. Call it on all ranks alike.
    """
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _error(what: str, hint: str) -> RecipeError:
    return RecipeError([Problem("recipe: parallel.wrap", what, hint)])
