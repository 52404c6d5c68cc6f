"""Choosing parameters and tensors of a batch by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from trainrun_callbacks.selection import Choice


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def named_tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested mappings, lists and tuples by name.

    Names are such as `input_ids`, or `0` and `1.mask` by their places.
    """
    if isinstance(value, Tensor):
        yield prefix or "0", value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from named_tensors(item, f"{prefix}.{key}" if prefix else str(key))


def groups(choice: Choice) -> dict[str, tuple[str, ...]]:
    """Return the patterns of each group that an option asks for.

    The key is the name that the group's metrics get.
    """
    if isinstance(choice, bool):
        return {"total": ("*",)} if choice else {}
    if isinstance(choice, Mapping):
        return {name: (one,) if isinstance(one, str) else tuple(one) for name, one in choice.items()}
    return {pattern: (pattern,) for pattern in choice}


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether one of the patterns fits the whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
