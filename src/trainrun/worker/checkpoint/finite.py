"""Whether all numbers of a training are finite: its losses, its weights, and what is kept for each weight.

A checkpoint is checked on the host copies, by the thread that writes it, so that training waits for nothing. What was
not finite before training, such as an attention mask of -inf, and what is no weight may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from trainrun.worker.checkpoint import sharded_state
from trainrun.worker.checkpoint.capture import MODEL, OPTIMIZER, model_tensors, unwrapped
from trainrun.worker.metrics import Series, Value

if TYPE_CHECKING:
    from trainrun.worker.checkpoint.shards import Shard
    from trainrun.worker.loss_weights import Units

NOT_FINITE = "not finite: "  # how it is reported
LOSS = "the training loss"

_WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and torch's own wrappers put into names


class Losses:
    """The losses of the updates since the last save that were applied. Nothing here waits for a device."""

    def __init__(self) -> None:
        self._applied = Series("mean")
        self._update: list[tuple[torch.Tensor, Units]] = []

    def add(self, loss: torch.Tensor, units: Units) -> None:
        """Keep the loss of a micro-batch of the current update.

        A loss of weight 0 does not count.
        """
        self._update.append((loss.detach(), units))

    def end_update(self, *, applied: bool) -> None:
        """Count the losses of an applied update, and forget a skipped one's."""
        if applied:
            for loss, units in self._update:
                self._applied.add(loss, units)
        self._update.clear()

    def take(self) -> tuple[Value, Value]:
        """Return one value for all losses, and its weight; forget the losses.

        The value is not finite if one of the losses is not.
        """
        return self._applied.take() if self._applied.values else (0.0, 0)


@dataclass(frozen=True)
class Claims:
    """What must be finite in a snapshot besides its shards' values.

    weights: the sizes of the model's tensors by name. exempt: those of them that may hold anything.
    """

    loss: tuple[Value, Value]
    weights: Mapping[str, torch.Size]
    exempt: frozenset[str]


def untrained(model: torch.nn.Module) -> frozenset[str]:
    """Return the names of buffers and frozen parameters that are not finite.

    Waits for the device.
    """
    trained = {name for name, one in unwrapped(model).named_parameters(remove_duplicate=False) if one.requires_grad}
    trained = {plain(name) for name in trained}
    tensors = model_tensors(model)
    return frozenset(not_finite({name: one for name, one in tensors.items() if plain(name) not in trained}))


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that hold a NaN or an infinity.

    Of a sharded tensor this rank's shard counts.
    """
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def unfit(
    shards: Sequence[Shard], training: Mapping[str, Any], plugins: Mapping[str, Any], claims: Claims
) -> list[str]:
    """Return what of a snapshot must be finite and is not.

    It looks at this rank's host copies of the snapshot.
    """
    found = []
    loss, weight = claims.loss
    if float(weight) > 0 and not math.isfinite(float(loss)):
        found.append(LOSS)
    checked = {}
    for shard in shards:
        name, data = shard.item.index.fqn, shard.item.tensor_data
        assert data is not None
        if must_be_finite(name, data.size, claims.weights, claims.exempt):
            checked[name] = shard.values
    found += not_finite(checked)
    found += rates(training)
    return found + not_finite(dict(kept_weights(plugins, claims.weights, claims.exempt)))


def must_be_finite(name: str, size: torch.Size, weights: Mapping[str, torch.Size], exempt: frozenset[str]) -> bool:
    """Return whether a tensor of a checkpoint must be finite.

    These are the weights and what belongs to the optimizer.
    """
    if name.startswith(MODEL):
        return name.removeprefix(MODEL) not in exempt
    if name.startswith(sharded_state.PREFIX):
        parts = name.rstrip("'").split("/")
        # The last parts, because a module may have a slash in its name.
        ends = {"/".join(parts[place:]) for place in range(2, len(parts))}
        return any(_is_weight(end, size, weights, exempt) for end in ends)
    return name.startswith(OPTIMIZER)


def kept_weights(
    plugins: Mapping[str, Any], weights: Mapping[str, torch.Size], exempt: frozenset[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of plugins that look like weights.

    They have the name and size of a weight.
    """

    def walk(value: Any, place: str) -> Iterator[tuple[str, torch.Tensor]]:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            here = f"{place}/{key}"
            if isinstance(item, torch.Tensor):
                if isinstance(key, str) and _is_weight(key, item.shape, weights, exempt):
                    yield here, item
            elif isinstance(item, Mapping | list | tuple):
                yield from walk(item, here)

    return walk(plugins, sharded_state.PREFIX.rstrip("/"))


def rates(training: Mapping[str, Any]) -> list[str]:
    """Return which learning rates of the optimizer's groups are not finite."""
    groups = training["optimizer"]["groups"]
    return [
        f"{OPTIMIZER}group {number}/lr"
        for number, group in enumerate(groups)
        if not math.isfinite(float(group.get("lr", 0.0)))
    ]


def describe(names: Sequence[str]) -> str:
    """Name the first few tensors that are not finite.

    Their total number is said too.
    """
    shown = [_described(name) for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more


_SHOWN = 5


def of_ranks(found: Sequence[Sequence[str]]) -> str | None:
    """Describe what the ranks have found, in their order.

    None if that is nothing.
    """
    names = list(dict.fromkeys(name for rank in found for name in rank))
    if not names:
        return None
    ranks = [str(rank) for rank, mine in enumerate(found) if mine]
    where = f" (rank {ranks[0]}" if len(ranks) == 1 else f" (ranks {', '.join(ranks[:_SHOWN])}"
    rest = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
    return describe(names) + (f"{where}{rest})" if len(found) > 1 else "")


def _described(name: str) -> str:
    if name.startswith(OPTIMIZER):
        parameter, _, key = name.removeprefix(OPTIMIZER).rpartition("/")
        return f"the optimizer's {key} of {parameter}"
    if name.startswith(sharded_state.PREFIX):
        plugin, _, place = name.removeprefix(sharded_state.PREFIX).partition("/")
        return f"{place} of the plugin {plugin}"
    return name.removeprefix(MODEL)


def _is_weight(name: str, size: torch.Size, weights: Mapping[str, torch.Size], exempt: frozenset[str]) -> bool:
    bare = name if name in weights else plain(name)
    return bare not in exempt and weights.get(bare) == size


def plain(name: str) -> str:
    """Return a tensor's name without what wrappers put into it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper) if wrapper == "module." else name.replace(wrapper, "")
    return name


def _is_finite(tensor: torch.Tensor) -> bool:
    values = _numbers(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
    if values is None or not values.numel():
        return True
    # Twenty times as fast as `isfinite` on CPUs, and as exact: a NaN is both ends.
    return bool(torch.stack(values.aminmax()).isfinite().all())


def _numbers(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the real numbers in a tensor of any kind.

    None if its kind has no infinity and no NaN.
    """
    values = tensor.detach()
    if values.layout != torch.strided:
        values = values._values() if values.layout == torch.sparse_coo else values.values()
    if values.is_complex():
        return torch.view_as_real(values.resolve_conj())
    if not values.is_floating_point() or values.is_meta or "float4" in str(values.dtype):
        return None
    return values.float() if values.dtype.itemsize == 1 else values
