"""Running averages of a model's parameters, and exchanging them with the parameters themselves.

All work is on plain tensors: of a sharded parameter each rank averages its own shard. An average of half-precision
parameters is kept in single precision, which small steps would otherwise not change at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from trainrun import TrainingError

_HALF = (torch.float16, torch.bfloat16)


class Averages:
    """The averages of the parameters in `named`, next to them or, with `offload`, in pinned memory of the host.

    Nothing here waits for a GPU but `swap_in`, `state` and `load`. Parameters are copied to the host while the next
    update is made, and averaged there after that.
    """

    def __init__(self, named: Mapping[str, torch.Tensor], *, offload: bool = False) -> None:
        self._parameters = {name: parameter.detach() for name, parameter in named.items()}
        self._current = [_local(parameter) for parameter in self._parameters.values()]
        self._offload = offload and any(tensor.is_cuda for tensor in self._current)
        self._averages = [self._room(tensor, _kept_as(tensor.dtype)) for tensor in self._current]
        self._staged = [self._room(tensor, tensor.dtype) for tensor in self._current] if self._offload else []
        self._copied: torch.cuda.Event | None = None
        self._waiting: float | None = None  # the weight of what is staged and not averaged yet
        self._originals: list[torch.Tensor] | None = None

    @property
    def swapped(self) -> bool:
        """Whether the parameters hold the averages."""
        return self._originals is not None

    @torch.no_grad()
    def update(self, weight: float) -> None:
        """Move the averages towards the current parameters.

        weight: the part of the way, from 0 to 1.
        """
        if not self._offload:
            self._blend(self._current, weight)
            return
        self._catch_up()
        self._stage()
        self._waiting = weight

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the averages into the parameters, and keep what was in there."""
        self._catch_up()
        if self._offload:
            self._stage()
            self._originals = self._staged
        else:
            self._originals = [tensor.clone() for tensor in self._current]
        torch._foreach_copy_(self._current, self._averages, non_blocking=True)

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put back what `swap_in` kept, if it was called."""
        if self._originals is not None:
            torch._foreach_copy_(self._current, self._originals, non_blocking=True)
            self._originals = None

    @torch.no_grad()
    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages by name.

        Those of sharded parameters are sharded in the same way.
        """
        self._catch_up()
        pairs = zip(self._parameters.items(), self._averages, strict=True)
        return {name: _like(parameter, average) for (name, parameter), average in pairs}

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load averages that `state` returned.

        Raises TrainingError if they are of other parameters.
        """
        _require_same(self._parameters, state)
        for (name, parameter), average in zip(self._parameters.items(), self._averages, strict=True):
            average.copy_(_share_of(parameter, state[name]))

    def _room(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._offload:
            return torch.empty(tensor.shape, dtype=dtype, pin_memory=True)
        return torch.empty_like(tensor, dtype=dtype)

    def _stage(self) -> None:
        """Have the GPU copy the parameters to the host later.

        It does so when it comes to that.
        """
        torch._foreach_copy_(self._staged, self._current, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()

    def _catch_up(self) -> None:
        """Average what was staged at the last update.

        Its copies have long been made.
        """
        if self._copied is not None and self._waiting is not None:
            self._copied.synchronize()
            self._blend(self._staged, self._waiting)
            self._waiting = None

    def _blend(self, current: list[torch.Tensor], weight: float) -> None:
        if weight == 1.0:
            torch._foreach_copy_(self._averages, current)
            return
        same = [tensor.to(_kept_as(tensor.dtype)) for tensor in current]
        torch._foreach_lerp_(self._averages, same, weight)


def _kept_as(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of the tensor is on this rank; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return average
    return DTensor.from_local(
        average.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _share_of(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return this rank's share of an average.

    It may have been kept whole or sharded in another way.
    """
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    if not isinstance(whole, DTensor):
        return distribute_tensor(whole.to(parameter.device), mesh, placements).to_local()
    return whole.redistribute(mesh, placements).to_local()


def _require_same(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    wrong = sorted(mine.keys() ^ theirs.keys())
    wrong += [name for name in mine.keys() & theirs.keys() if mine[name].shape != theirs[name].shape]
    if wrong:
        raise TrainingError(
            f"the checkpoint's averages are of other parameters than those trained now: {', '.join(wrong[:5])}"
            f"{' and more' if len(wrong) > 5 else ''}; train the same parameters, or turn the plugin off"
        )
