"""Compare the tensors that ranks hold, by a hash of each."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import distributed

_CHUNK = 2**20  # elements that are hashed at once
_FACTOR = 6364136223846793005  # of Knuth's generator MMIX: odd, so that no bit of a number is lost


def compare(tensors: Mapping[str, torch.Tensor], device: torch.device) -> tuple[str, list[str]]:
    """Compare the tensors of the ranks. A collective.

    Returns what differs between the ranks, "tensors" or their "values", and a line for each difference. If not all
    ranks have tensors of the same names, their values are not compared.
    """
    names = list(tensors)
    told = zlib.crc32("\n".join(names).encode())
    if _unlike(torch.tensor([len(names), told], device=device)):
        return "tensors", _apart(_gathered(names, device))
    if not names:
        return "values", []
    unlike = _unlike(torch.stack([fingerprint(tensor, device) for tensor in tensors.values()]))
    return "values", [f"{names[place]}: {_grouped(ranks)}" for place, ranks in unlike]


def fingerprint(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a hash of the tensor's bits as an integer on `device`.

    It is computed on the tensor's device, without waiting for it.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    flat = flat.clone() if flat.storage_offset() % 4 else flat
    words = flat if len(flat) % 4 else flat.view(torch.int32)
    result = torch.full((), len(flat), dtype=torch.int64, device=tensor.device)
    for chunk in torch.split(words, _CHUNK):
        # Each place has a factor of its own, odd and without a pattern: no single change is missed, and sums of several
        # changes are zero by chance only.
        places = torch.arange(1, len(chunk) + 1, device=tensor.device) * _FACTOR
        factors = ((places >> 29) ^ places) * _FACTOR | 1
        result = result * _FACTOR + (chunk.to(torch.int64) * factors).sum()
    return result.to(device)


def _unlike(mine: torch.Tensor) -> list[tuple[int, list[list[int]]]]:
    """Return the places at which not all ranks have the same number.

    For each place, it is returned which ranks agree with one another.
    """
    everybody = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everybody, mine)
    found = []
    for place, values in enumerate(torch.stack(everybody).T.tolist()):
        if len(set(values)) > 1:
            groups: dict[int, list[int]] = {}
            for rank, value in enumerate(values):
                groups.setdefault(value, []).append(rank)
            found.append((place, list(groups.values())))
    return found


def _gathered(names: Sequence[str], device: torch.device) -> list[list[str]]:
    """Return the names that each rank has. A collective.

    They are sent as tensors, because objects would need numpy.
    """
    data = torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8, device=device)
    sizes = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor(len(data), device=device))
    longest = max(int(size) for size in sizes)
    texts = [torch.empty(longest, dtype=torch.uint8, device=device) for _ in sizes]
    distributed.all_gather(texts, torch.nn.functional.pad(data, (0, longest - len(data))))
    pairs = zip(texts, sizes, strict=True)
    return [bytes(text[: int(size)].tolist()).decode().split("\n") if size else [] for text, size in pairs]


def _apart(everybody: Sequence[Sequence[str]]) -> list[str]:
    """Describe which names only some ranks have.

    If all ranks have all names, their order differs.
    """
    known = dict.fromkeys(name for theirs in everybody for name in theirs)
    found = []
    for name in known:
        having = [str(rank) for rank, theirs in enumerate(everybody) if name in theirs]
        if len(having) < len(everybody):
            found.append(f"{name}: on ranks {', '.join(having)} only")
    return found or ["their order"]


def _grouped(groups: Sequence[Sequence[int]]) -> str:
    """Describe which ranks agree: `ranks 0, 2 against 1`."""
    return "ranks " + " against ".join(", ".join(map(str, group)) for group in groups)
