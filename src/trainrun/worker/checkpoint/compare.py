"""Compare two checkpoints bit by bit: `python -m trainrun.worker.checkpoint.compare A B`.

The output is JSON: for each component its name and the first difference, or null. This is a process of its own, because
the command line does without torch.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainrun.checkpoint import layout
from trainrun.checkpoint.manifest import Manifest, read_manifest
from trainrun.worker.checkpoint import capture, reader, sharded_state

_ROUND = 2**28  # bytes of tensors that are read at once from each checkpoint
_LONGEST = 60  # characters of a value that are shown
_ABSENT = "not there"


class Difference(NamedTuple):
    """The place at which two values differ, and both values in words."""

    name: str
    values: tuple[str, str]
    rank: int | None = None


class Component(NamedTuple):
    """A part of two checkpoints, and how it differs first."""

    name: str
    first: Difference | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "first": None if self.first is None else self.first._asdict()}


class _Side(NamedTuple):
    folder: Path
    manifest: Manifest
    training: Mapping[str, Any]
    ranks: Sequence[Mapping[str, Any]]


def compare(a: Path, b: Path) -> Iterator[Component]:
    """Yield the components of both checkpoints.

    Raises BadCheckpoint if one cannot be read.
    """
    one, two = _open(a), _open(b)
    yield Component("rng", _of_ranks(one, two, "rng"))
    yield Component("position", difference(_place(one), _place(two)))
    extra = difference(one.training["model"], two.training["model"])
    yield Component("parameters", _tensors(a, b, capture.MODEL) or extra)
    plain = difference(one.training["optimizer"], two.training["optimizer"])
    yield Component("optimizer", _tensors(a, b, capture.OPTIMIZER) or plain)
    for name in ("scheduler", "scaler"):
        yield Component(name, difference(one.training[name], two.training[name]))
    yield Component("plugins", _plugins(one, two) or _tensors(a, b, sharded_state.PREFIX))


def difference(a: Any, b: Any, place: str = "") -> Difference | None:
    """Return the first place at which two values differ, or None.

    The values are plain values, or hold tensors. They are compared bit by bit.
    """
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return _of_tensors(a, b, place)
    if type(a) is not type(b):
        return Difference(place, (_shown(a), _shown(b)))
    if isinstance(a, dict):
        names = dict.fromkeys([*a, *b])
        pairs = [(a.get(name, _Absent), b.get(name, _Absent), _joined(place, name)) for name in names]
    elif isinstance(a, list | tuple):
        items = zip_longest(a, b, fillvalue=_Absent)
        pairs = [(one, two, f"{place}[{number}]") for number, (one, two) in enumerate(items)]
    else:
        return None if _bits(a) == _bits(b) else Difference(place, (_shown(a), _shown(b)))
    return next((found for pair in pairs if (found := difference(*pair))), None)


class _Absent:
    """Stands for what one side does not have."""


def _open(folder: Path) -> _Side:
    manifest = read_manifest(folder)
    ranks = [reader.read_values(folder / layout.rank_file(rank)) for rank in range(manifest.world_size)]
    return _Side(folder, manifest, reader.read_values(folder / layout.TRAINING), ranks)


def _place(side: _Side) -> dict[str, Any]:
    """Return the position of the training.

    Metrics are left out: they may be times, which are never the same twice.
    """
    return {name: value for name, value in side.training["place"].items() if name != "last_metrics"}


def _of_ranks(one: _Side, two: _Side, name: str) -> Difference | None:
    if len(one.ranks) != len(two.ranks):
        return Difference("ranks", (str(len(one.ranks)), str(len(two.ranks))))
    for rank, (a, b) in enumerate(zip(one.ranks, two.ranks, strict=True)):
        if found := difference(a[name], b[name]):
            return found._replace(rank=rank)
    return None


def _tensors(a: Path, b: Path, prefix: str) -> Difference | None:
    sources = [reader.Tensors(side) for side in (a, b)]
    one, two = ({name: it for name, it in side.stored.items() if name.startswith(prefix)} for side in sources)
    for name in dict.fromkeys([*one, *two]):
        sides = [_kind(side[name]) if name in side else _ABSENT for side in (one, two)]
        if sides[0] != sides[1]:
            return Difference(name.removeprefix(prefix), (sides[0], sides[1]))
    for names in _rounds({name: it.size.numel() * it.properties.dtype.itemsize for name, it in one.items()}):
        first, second = (_read(side, {name: one[name] for name in names}) for side in sources)
        for name in names:
            if found := _of_tensors(first[name], second[name], name.removeprefix(prefix)):
                return found
    return None


def _kind(stored: Any) -> str:
    return f"{stored.properties.dtype} {tuple(stored.size)}"


def _rounds(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield the names in groups that fit into memory together."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size > _ROUND:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _read(source: reader.Tensors, stored: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    found = {name: torch.empty(it.size, dtype=it.properties.dtype) for name, it in stored.items()}
    source.read(found)
    return found


def _plugins(one: _Side, two: _Side) -> Difference | None:
    sides = [(side, _files(side)) for side in (one, two)]
    for file in dict.fromkeys(file for _, files in sides for file in files):
        name, rank = layout.plugin_of(file.rpartition("/")[2]) or (file, None)
        states = [reader.read_values(side.folder / file) if file in files else _Absent for side, files in sides]
        if found := difference(states[0], states[1], name):
            return found._replace(rank=rank)
    return difference(list(one.manifest.disabled), list(two.manifest.disabled), "disabled plugins")


def _files(side: _Side) -> list[str]:
    return sorted(file for file in side.manifest.files if file.startswith(f"{layout.PLUGINS}/"))


def _of_tensors(a: torch.Tensor, b: torch.Tensor, place: str) -> Difference | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return Difference(place, (f"{a.dtype} {tuple(a.shape)}", f"{b.dtype} {tuple(b.shape)}"))
    if not a.numel():
        return None
    width = a.element_size()
    rows = [side.detach().contiguous().reshape(-1).view(torch.uint8).reshape(-1, width) for side in (a, b)]
    differing = rows[0].ne(rows[1]).any(dim=1)
    count = int(differing.sum())
    if not count:
        return None
    flat = int(differing.nonzero()[0])
    index = [int(place) for place in torch.unravel_index(torch.tensor(flat), a.shape)]
    where = f"{place}{index or ''}"
    more = f" ({count} of {a.numel()} values differ)" if a.numel() > 1 else ""
    return Difference(f"{where}{more}", (_shown(a.flatten()[flat].item()), _shown(b.flatten()[flat].item())))


def _bits(value: Any) -> Any:
    return struct.pack("d", value) if isinstance(value, float) else value


def _joined(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)


def _shown(value: Any) -> str:
    if value is _Absent:
        return _ABSENT
    text = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def main() -> None:
    """Compare the two checkpoints that the arguments name."""
    a, b = map(Path, sys.argv[1:3])
    json.dump([component.to_json() for component in compare(a, b)], sys.stdout)


if __name__ == "__main__":
    main()
