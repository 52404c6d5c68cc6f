"""The samples of a batch by name: whether two trainings, or two ranks, were given the same ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainrun.worker.checkpoint.trail import content, digest
from trainrun.worker.data.counting import batch_size

_DIGITS = 16
_PLAIN = bool | int | float | complex | str | bytes


def row_digests(batch: Any) -> list[str] | None:
    """Return one name for each sample of a batch, by its content.

    One for the batch if it has no rows. Parts without a row for each sample are left out. None if nothing in the batch
    can be read.
    """
    size = batch_size(batch)
    columns = [] if not size else list(_columns(batch, size))
    if size and columns:
        return [hashlib.sha256(b"".join(row)).hexdigest()[:_DIGITS] for row in zip(*columns, strict=True)]
    return [digest(batch)] if _readable(batch) else None


def _columns(part: Any, size: int) -> Iterator[list[bytes]]:
    """Yield the rows' bytes of each part with one row a sample."""
    if isinstance(part, torch.Tensor) or hasattr(part, "tobytes"):
        if getattr(part, "ndim", 0) and part.shape[0] == size:
            yield _rows(part, size)
    elif isinstance(part, list | tuple) and not hasattr(part, "_fields"):
        whole = any(getattr(item, "ndim", 0) and item.shape[0] == size for item in part)
        if len(part) == size and not whole and _readable(part):
            yield [digest(item).encode() for item in part]
        else:
            for item in part:
                yield from _columns(item, size)
    else:
        for item in _values(part):
            yield from _columns(item, size)


def _rows(part: Any, size: int) -> list[bytes]:
    data = content(part) if isinstance(part, torch.Tensor) else part.tobytes()
    each = len(data) // size
    return [data[index * each : (index + 1) * each] for index in range(size)]


def _values(part: Any) -> list[Any]:
    """Return the parts of a record.

    A record is a mapping, a named tuple, a dataclass or an object with `keys`.
    """
    if isinstance(part, Mapping):
        return list(part.values())
    if isinstance(part, tuple):
        return list(part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return [getattr(part, field.name) for field in dataclasses.fields(part)]
    keys = getattr(part, "keys", None)
    return [part[key] for key in keys()] if callable(keys) and hasattr(part, "__getitem__") else []


def _readable(part: Any) -> bool:
    """Return whether `digest` reads anything of it but its type."""
    if isinstance(part, list | tuple):
        return any(map(_readable, part))
    if isinstance(part, torch.Tensor | _PLAIN) or hasattr(part, "tobytes"):
        return True
    if isinstance(part, Mapping) or dataclasses.is_dataclass(part):
        return any(map(_readable, _values(part)))
    return False
