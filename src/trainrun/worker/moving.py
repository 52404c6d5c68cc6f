"""Moving a batch of any type to a device."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from trainrun.errors import TaskError


def move(value: Any, device: torch.device) -> Any:
    """Return `value` with its tensors on `device`, of the same type.

    An object that has a method `to` moves itself: tensors, packed sequences, BatchEncoding, the batches of
    torch_geometric. Mappings of all kinds, lists, tuples, named tuples and dataclasses are gone through. An object that
    holds no tensor is returned as it is.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if not isinstance(value, type) and callable(getattr(value, "to", None)):
        moved = value.to(device, non_blocking=True) if _takes_non_blocking(value.to) else value.to(device)
        return value if moved is None else moved  # some move themselves in place
    if isinstance(value, Mapping):
        return _with_items(value, {key: move(item, device) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return _with_members(value, [move(item, device) for item in value])
    if is_dataclass(value) and not isinstance(value, type):
        return _with_fields(value, {one.name: move(getattr(value, one.name), device) for one in fields(value)})
    return value


def _takes_non_blocking(method: Any) -> bool:
    """Return whether a method `to` takes `non_blocking`.

    Then it does not wait for a copy out of pinned memory.
    """
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # written in C, without a signature
        return False
    return any(one.name == "non_blocking" or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


def _same(old: Iterable[Any], new: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(old, new, strict=True))


def _with_items(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(value) is dict or _same(value.values(), items.values()):
        return items if type(value) is dict else value
    if isinstance(value, MutableMapping):
        new = copy.copy(value)  # keeps its other contents: a default factory, attributes
        for key, item in items.items():
            new[key] = item
        return new
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError as error:
        raise TaskError(
            f"move_batch: a {type(value).__name__} cannot be made of a dict ({error}); give it a method `to(device)`"
            " that returns one on the device, or implement move_batch"
        ) from error


def _with_members(value: Any, members: list[Any]) -> Any:
    if _same(value, members):
        return value
    if isinstance(value, tuple):
        return value._make(members) if hasattr(value, "_make") else type(value)(members)
    new = copy.copy(value)
    new[:] = members
    return new


def _with_fields(value: Any, items: dict[str, Any]) -> Any:
    if _same((getattr(value, name) for name in items), items.values()):
        return value
    new = copy.copy(value)
    for name, item in items.items():
        object.__setattr__(new, name, item)  # also if it is frozen
    return new
