"""How many samples a batch of a custom loader holds.

A batch's rows are its samples, and every part of it that has rows must have equally many. These are the rules:

- A tensor or array has its first dimension (a nested tensor its number of tensors, a packed sequence its number of
  sequences). One without dimensions does not count, nor do numbers, strings, shapes and empty containers.
- An object whose `batch_size` is an integer or a shape, or whose `num_graphs` is an integer, has said it: TensorDict,
  torch_geometric and DGL do so.
- A mapping, a named tuple and a dataclass are records: their values are the parts of the batch, and must agree.
- A list or tuple of tensors is what torch's `default_collate` makes of tuples, `[inputs, targets]`: a record.
- Any other list or tuple may be a record, or, if its items are alike, one item for each sample. It is the one that
  agrees with the rest of the batch; without such a rest, and with more than one way to read it, it is not known.
- Any other object with `__len__` has that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

EVALUATION_WEIGHT = "evaluation_step may return (value, weight) for a metric"
TRAINING_WEIGHT = 'training_step may return {"loss": mean, "weight": units}'

Readings = frozenset[int | None]
"""The sizes that a part may be read to have; None is one that is not known. Empty if there is nothing to count."""

_NOTHING: Readings = frozenset()
_UNKNOWN: Readings = frozenset((None,))
_PLAIN = (str, bytes, int, float, complex, torch.Size)
_MOST = 8  # parts that a warning names


def batch_size(batch: Any) -> int | None:
    """Return the number of samples in a batch.

    It follows the rules of this module. None if no part shows it, or parts disagree.
    """
    if _is_sequence(batch) and any(isinstance(item, torch.Tensor) and item.ndim for item in batch):
        readings = _common(batch)
    else:
        readings = _readings(batch)
    return next(iter(readings)) if len(readings) == 1 else None


class SampleCounter:
    """Counts the samples of batches, and warns once if that fails.

    where: what a warning begins with. weight: a sentence on how the step returns the weight itself.
    """

    def __init__(self, where: str, weight: str, warn: Callable[[str], None]) -> None:
        self.where = where
        self._weight = weight
        self._warn: Callable[[str], None] | None = warn

    def count(self, batch: Any) -> int | None:
        """Return the number of samples in `batch`; None if unknown."""
        size = batch_size(batch)
        if size is None and self._warn is not None:
            warn, self._warn = self._warn, None
            parts = describe(batch)
            found = f"its parts have no one number of rows in common ({parts})" if parts else "no part of it has rows"
            warn(
                f"{self.where}: the number of samples in a batch, a {type(batch).__name__}, is not known: {found};"
                f" such batches all have the same weight. {self._weight}, and that counts instead"
            )
        return size


def dimensions(part: Any) -> list[int]:
    """List each part's number of dimensions.

    It is 0 for a number, 1 for what has a length, and 2 for what says its batch size.
    """
    record = _record(part)
    if _size(part) is None and (record is not None or _is_sequence(part)):
        inner = part if record is None else record.values()
        return [count for item in inner for count in dimensions(item)]
    if isinstance(part, str | bytes) or part is None:
        return []
    ndim = getattr(part, "ndim", None)
    if isinstance(ndim, int):
        return [ndim]
    if _size(part) is None:
        return [0]
    return [2 if _said(part) is not None else 1]


def describe(batch: Any) -> str:
    """Name the parts of a batch that count, with shape or length.

    For example, `x (4, 3), names[4]`, with the path of each.
    """
    parts = list(islice(_counted(batch, ""), _MOST + 1))
    return ", ".join(parts[:_MOST]) + (", …" if len(parts) > _MOST else "")


def _readings(part: Any) -> Readings:
    if part is None or isinstance(part, _PLAIN):
        return _NOTHING
    size = _size(part)
    if size is not None:
        return frozenset((size,))
    record = _record(part)
    if record is not None:
        return _common(record.values())
    if not _is_sequence(part) or not part:
        return _NOTHING
    if len(kinds := set(map(type, part))) == 1 and issubclass(kinds.pop(), _PLAIN):
        return frozenset((len(part),))  # as below, at a twentieth of the time
    return (_common(part) | frozenset((len(part),))) if _alike(part) else _common(part)


def _common(parts: Any) -> Readings:
    """Return what all parts that count can be read to have."""
    counted = [readings for part in parts if (readings := _readings(part))]
    return (frozenset.intersection(*counted) or _UNKNOWN) if counted else _NOTHING


def _size(part: Any) -> int | None:
    """Return the number of rows of a part that is one whole.

    None of any other.
    """
    if isinstance(part, torch.Tensor):
        return part.size(0) if part.ndim else None
    if part is None or isinstance(part, _PLAIN):
        return None
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0])  # on the host always
    said = None if type(part) in (dict, list, tuple) else _said(part)
    if said is not None or _is_sequence(part) or _record(part) is not None or getattr(part, "shape", None) == ():
        return said
    return len(part) if hasattr(part, "__len__") and not isinstance(part, type) else None


def _said(part: Any) -> int | None:
    for name in ("batch_size", "num_graphs", "shape"):
        value = getattr(part, name, None)
        if isinstance(value, tuple):
            value = value[0] if value else None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _record(part: Any) -> Mapping[Any, Any] | None:
    """Return the values of a record by name, or None.

    None for any other object.
    """
    if isinstance(part, type):
        return None
    if isinstance(part, Mapping):
        return part
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return dict(zip(part._fields, part, strict=True))
    if is_dataclass(part):
        return {field.name: getattr(part, field.name) for field in fields(part)}
    keys = getattr(part, "keys", None)
    if callable(keys) and hasattr(part, "__getitem__"):  # a mapping in all but name
        return {key: part[key] for key in keys()}
    return None


def _is_sequence(part: Any) -> bool:
    return isinstance(part, list | tuple) and not hasattr(part, "_fields") and not isinstance(part, torch.Size)


def _alike(items: Sequence[Any]) -> bool:
    """Return whether the items may be one for each sample."""
    return len({_kind(item) for item in items}) == 1


def _kind(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return torch.Tensor, item.dtype, item.ndim
    return (type(item), tuple(item)) if isinstance(item, Mapping) else type(item)


def _counted(part: Any, path: str) -> Iterator[str]:
    size, record = _size(part), _record(part)
    if size is not None:
        shape = getattr(part, "shape", None) if not getattr(part, "is_nested", False) else None
        yield f"{path or type(part).__name__} {tuple(shape) if shape else f'of length {size}'}"
    elif record is not None:
        for key, value in record.items():
            yield from _counted(value, f"{path}.{key}" if path else str(key))
    elif _is_sequence(part):
        inner = [text for at, item in enumerate(part[:_MOST]) for text in _counted(item, f"{path}[{at}]")]
        yield from inner or ([f"{path or type(part).__name__} of length {len(part)}"] if part else [])
