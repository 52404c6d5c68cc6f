"""Whether all ranks train the same parameters, and hold the same values.

DDP reduces the gradients of the parameters that required one when it was made. A parameter that begins to require a
gradient afterwards would be trained by each rank for itself. One that ceases to would leave a reduction without its
end. So the flags are compared at the start of each step, and the model is wrapped anew if one has changed. So it is if
parameters were put into the model, such as a new head or adapters. torch reports when a module registers something, so
that the model is only gone through again after that.

A rank that finds a change asks the others whether they have found the same. It asks through the store that the process
group was made with: a collective would meet the ones of a rank that has found none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parallel import DistributedDataParallel

from trainrun.errors import TrainingError
from trainrun.worker.optim import unwrapped

if TYPE_CHECKING:
    from trainrun.worker.world import World

Warn = Callable[[str], None]

_SHOWN = 5
_registrations = 0  # of parameters and modules in any module of this process, once a first `Replicas` was made
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


def _count_registration(*_: object) -> None:
    global _registrations  # noqa: PLW0603 - torch's hooks are of the process, too
    _registrations += 1


@cache
def _watch_registrations() -> None:
    """Count registrations from now on. Once is enough for all models of a process."""
    register_module_parameter_registration_hook(_count_registration)
    register_module_module_registration_hook(_count_registration)


class Replicas:
    """The parameters of one rank's model, and which of them are trained.

    model: as `parallelize_model` left it. optimizer: whose groups should hold what is trained.
    wait: seconds to wait for what other ranks have found. warn: called with a sentence for the user.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, world: World, *, wait: float, warn: Warn
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._world = world
        self._wait = timedelta(seconds=wait)
        self._warn = warn
        self._changes = 0
        self._warned: set[str] = set()
        self._warned_outside = False
        _watch_registrations()
        self._read()
        self._wrapped = self._trained_parameters()

    def _read(self) -> None:
        self._registrations = _registrations
        named = dict(unwrapped(self._model).named_parameters())
        extra = [one for group in self._optimizer.param_groups for one in group["params"]]
        self.names = list(named)
        self._in_model = len(named)
        self.parameters: list[torch.Tensor] = list({id(one): one for one in [*named.values(), *extra]}.values())
        self.names += [f"optimizer parameter {place}" for place in range(len(self.parameters) - len(named))]
        self.identities = frozenset(map(id, self.parameters))
        self._trained = [one.requires_grad for one in self.parameters]

    @property
    def trained(self) -> frozenset[str]:
        """The names of the parameters that require gradients."""
        return frozenset(name for name, trains in zip(self.names, self._trained, strict=True) if trains)

    def _trained_parameters(self) -> dict[str, torch.Tensor]:
        return {name: one for (name, one), trains in zip(self.named(), self._trained, strict=True) if trains}

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each parameter with its name."""
        return zip(self.names, self.parameters, strict=True)

    def warn_left_out(self) -> None:
        """Warn of parameters to train that no optimizer group has.

        They require gradients. Each is warned of once.
        """
        held = {id(one) for group in self._optimizer.param_groups for one in group["params"]}
        left = [
            name for name, one in self.named() if one.requires_grad and id(one) not in held and name not in self._warned
        ]
        self._warned.update(left)
        if left:
            self._warn(
                "parameters that require gradients are in no group of the optimizer, so they are never updated:"
                f" {listed(left)}; add them (run.optimizer.add_param_group), or set requires_grad to False"
            )

    def warn_outside(self) -> None:
        """Warn, once for all, of trained parameters that are not the model's.

        If DDP or FSDP reduces the gradients of the model, nothing reduces theirs.
        """
        outside = [name for name, one in list(self.named())[self._in_model :] if one.requires_grad]
        reduces = isinstance(self._model, DistributedDataParallel) or any(map(_is_sharded, self.parameters))
        if outside and reduces and self._world.size > 1 and not self._warned_outside:
            self._warned_outside = True
            shapes = [tuple(one.shape) for one in self.parameters[self._in_model :] if one.requires_grad]
            self._warn(
                f"the optimizer trains parameters that the model does not hold, of shape {listed([*map(str, shapes)])},"
                " so that their gradients are not reduced over the ranks and each rank trains its own; make them"
                " parameters of the model in build_model, or all-reduce their gradients in on_gradients_ready"
            )

    def changed(self) -> bool:
        """Return whether other parameters are trained than in the step before.

        Call it at the start of a step.
        """
        if self._registrations != _registrations and self._holds_others():
            return True
        return [one.requires_grad for one in self.parameters] != self._trained

    def _holds_others(self) -> bool:
        """Return whether the model has other parameters than when it was read."""
        now = [id(one) for one in unwrapped(self._model).parameters()]
        if now != [id(one) for one in self.parameters[: self._in_model]]:
            return True
        self._registrations = _registrations
        return False

    def follow(self) -> torch.nn.Module:
        """Return the model to train after a change, wrapped anew under DDP.

        All ranks call it. Raises TrainingError if the ranks have found different changes.
        """
        before, known = self._trained_parameters(), self.identities
        self._read()
        self._changes += 1
        now = self._trained_parameters()
        began = sorted(name for name, one in now.items() if before.get(name) is not one)
        ceased = sorted(before.keys() - now.keys())
        self._require_same_change(began, ceased)
        self.warn_left_out()
        self.warn_outside()
        if isinstance(self._model, DistributedDataParallel) and not _same(now, self._wrapped):
            # Values that the task has set are alike on all ranks already; those of parameters that it made may not be.
            new = not self.identities <= known
            self._model = _wrapped_again(self._model, sync=new) if now else self._model
            self._wrapped = now
        elif unsharded := self._unsharded(now, known):
            raise TrainingError(
                f"{listed(unsharded)} came into the model after it was sharded, so that each rank would train its own;"
                " put everything that is trained into the model in build_model"
            )
        return self._model

    def _unsharded(self, now: Mapping[str, torch.Tensor], known: Container[int]) -> list[str]:
        """Return the trained parameters that are new and whole.

        FSDP shards the others of the model.
        """
        if self._world.size == 1 or not any(map(_is_sharded, self.parameters)):
            return []
        return sorted(name for name, one in now.items() if id(one) not in known and not _is_sharded(one))

    def require_unchanged(self, step: int) -> None:
        """Raise TrainingError if the flags changed since the step began.

        Call it before the gradients of the step are used.
        """
        if self._world.size > 1:
            now = dict(unwrapped(self._model).named_parameters())
            trained = self._trained_parameters()
            late = [name for name, one in self.named() if one.requires_grad is not (name in trained)]
            late += [name for name, one in now.items() if id(one) not in self.identities]
            raise TrainingError(
                f"step {step}, rank {self._world.rank}: requires_grad of {listed(late)} was changed between the start"
                " of the step and its gradients, so that they are not reduced over the ranks; change it in"
                " on_step_start or earlier, on all ranks"
            )

    def _require_same_change(self, began: list[str], ceased: list[str]) -> None:
        if self._world.size == 1:
            return
        rank = self._world.rank
        digest = hashlib.sha256("\n".join([*began, "", *ceased]).encode()).hexdigest()
        store = dist.PrefixStore(f"trainrun/trained/{self._changes}", _get_default_store())  # type: ignore[attr-defined]
        store.set(str(rank), digest)
        mine = f"rank {rank}: {listed(began)} began" if began else f"rank {rank}: {listed(ceased)} ceased"
        keys = [str(other) for other in range(self._world.size)]
        try:
            store.wait(keys, self._wait)
            found = [store.get(key).decode() for key in keys]
        except RuntimeError as error:  # which torch's errors of stores are
            raise TrainingError(
                f"{mine} to require gradients, and other ranks have changed nothing within"
                f" {self._wait.total_seconds():g} s; change requires_grad at the same step on all ranks"
            ) from error
        if unlike := [other for other, one in enumerate(found) if one != digest]:
            raise TrainingError(
                f"{mine} to require gradients, and other parameters did on rank {unlike[0]};"
                " change requires_grad of the same parameters at the same step on all ranks"
            )

    def differences(self, gather: Callable[[torch.Tensor], list[torch.Tensor]]) -> list[str]:
        """Return the names of the parameters whose bits differ between ranks.

        All ranks call it alike. It takes one pass over the parameters on their device, one transfer, and one gather of
        a number for each.
        """
        sums = [_bits(parameter).sum(dtype=torch.int64) for parameter in self.parameters]
        mine = torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)
        everywhere = torch.stack(gather(mine))
        unlike = (everywhere != everywhere[0]).any(dim=0).tolist()
        return [name for name, differs in zip(self.names, unlike, strict=True) if differs]


def _bits(parameter: torch.Tensor) -> torch.Tensor:
    """Return the elements as integers, so that equal sums mean equal bits."""
    values = parameter.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    return values.contiguous().view(_INTEGERS[values.element_size()])


def _same(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(one is others[name] for name, one in some.items())


def _is_sharded(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "full_tensor")


def _wrapped_again(model: DistributedDataParallel, *, sync: bool) -> DistributedDataParallel:
    """Return the module of `model` in a new DDP with equal settings.

    It has the same communication hooks. sync: whether all ranks get the values that rank 0 has.
    """
    # Versions of torch differ in how they name whether a forward begins with rank 0's buffers.
    buffers = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if hasattr(model, name))
    again = DistributedDataParallel(
        model.module,
        device_ids=model.device_ids,
        dim=model.dim,
        process_group=model.process_group,
        bucket_cap_mb=model.bucket_bytes_cap / 2**20,
        find_unused_parameters=model.find_unused_parameters,
        gradient_as_bucket_view=model.gradient_as_bucket_view,
        static_graph=model.static_graph,
        mixed_precision=model.mixed_precision,
        init_sync=sync,
        **{buffers: getattr(model, buffers)},
    )
    for hook, state in model._comm_hooks:
        again.register_comm_hook(state, hook)
    again.training = model.training
    return again


def listed(names: Sequence[str]) -> str:
    """Join the first few names, and say how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
