"""Whether a batch is the one that came at this place before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

_ENOUGH = 1 << 14  # bytes of each tensor


def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two digests are of different batches.

    It is known as far as the digests show.
    """
    return bool(one["versions"] == other["versions"] and one["hash"] != other["hash"])


def digest(batch: Any) -> dict[str, Any]:
    """Return what distinguishes a batch from another one.

    It is a hash of its numbers and strings, and how often tensors were written to. Training may have written into a
    batch: then the count differs from that of a fresh one.
    """
    leaves = list(_leaves(batch))
    hashed = hashlib.sha256()
    for leaf in leaves:
        hashed.update(_bytes(leaf))
    return {
        "hash": hashed.hexdigest(),
        "versions": sum(leaf._version for leaf in leaves if isinstance(leaf, torch.Tensor)),
    }


def number(batches: Iterable[Any]) -> int:
    """Return a number that distinguishes the samples in `batches` from others.

    It is 0 if they cannot be distinguished. A tensor that does not hold one value all over distinguishes them.
    """
    leaves = [leaf for leaf in _leaves(list(batches)) if isinstance(leaf, torch.Tensor)]
    if not any(_varies(leaf) for leaf in leaves):
        return 0
    hashed = hashlib.sha256(b"".join(map(_bytes, leaves)))
    return int.from_bytes(hashed.digest()[:7], "big") or 1


def _varies(tensor: torch.Tensor) -> bool:
    flat = tensor.detach().reshape(-1)[:_ENOUGH] if tensor.layout == torch.strided and not tensor.is_nested else None
    return flat is not None and flat.numel() > 1 and bool((flat != flat[0]).any())


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, torch.Tensor | bool | int | float | str | bytes):
        yield value


def _bytes(leaf: Any) -> bytes:
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf).encode()
    if leaf.layout != torch.strided:
        return repr(leaf.shape).encode()
    flat = leaf.detach().reshape(-1)
    some = flat[: _ENOUGH // flat.element_size()].cpu().contiguous()
    return repr(leaf.shape).encode() + bytes(some.view(torch.uint8).tolist())
