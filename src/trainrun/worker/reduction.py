"""How gradients come from all ranks, and whether they did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from trainrun.errors import HookFailed, TrainingError
from trainrun.worker import sharding
from trainrun.worker.replicas import Replicas, listed
from trainrun.worker.world import World

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_UNCHANGED: AbstractContextManager[None] = nullcontext()
_ADVICE = "find_unused_parameters"


@contextmanager
def _advising() -> Iterator[None]:
    try:
        yield
    except HookFailed as error:
        if _ADVICE in str(error):
            error.args = (f"{error}; in the recipe: parallel.{_ADVICE} = true",)
        raise


class Reduction:
    """The gradient reduction of one rank's model. shards: its modules that FSDP shards."""

    def __init__(self, model: torch.nn.Module, shards: Sequence[FSDPModule], world: World) -> None:
        self.ddp = model if isinstance(model, DistributedDataParallel) else None
        self.plain = self.ddp is None and not shards  # whether neither DDP nor FSDP reduces
        self.explicit = self.plain and world.size > 1  # whether ranks do not meet in the backward
        self._shards = shards
        self._rank = world.rank
        self._forwarded = False
        if self.ddp is not None:
            self.ddp.register_forward_pre_hook(self._note_forward)

    def _note_forward(self, *_: object) -> None:
        self._forwarded = True

    def around(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of forward and backward of a micro-batch.

        Only the last one of an update reduces.
        """
        if last:
            return _UNCHANGED
        if self.ddp is not None:
            return self.ddp.no_sync()
        return sharding.unreduced(self._shards) if self._shards else _UNCHANGED

    def advising(self) -> AbstractContextManager[Any]:
        """Return the context of a forward.

        Torch's advice on DDP is followed by the key of the recipe.
        """
        return _UNCHANGED if self.ddp is None else _advising()

    def require_complete(self, step: int, replicas: Replicas) -> None:
        """Raise TrainingError if DDP has not reduced this rank's gradients.

        step: the one that was made.
        """
        if self.ddp is None:
            return
        if not self._forwarded:
            raise TrainingError(
                f"step {step}, rank {self._rank}: training_step did not call the model that it was given, but its"
                " module or a part of it, so that no gradient is reduced over the ranks; call model(...)"
            )
        self._forwarded = False
        try:
            # torch itself looks at the next forward, which the last step does not have.
            self.ddp.reducer._check_reducer_finalized()
        except RuntimeError as error:
            left = [name for name, one in replicas.named() if one.requires_grad and one.grad is None]
            raise TrainingError(
                f"step {step}, rank {self._rank}: {listed(left) if left else 'a parameter'} got no gradient, so that"
                " gradients are not reduced over the ranks; use all parameters in each forward, set requires_grad to"
                " False for those that are not used, or set parallel.find_unused_parameters = true"
            ) from error
