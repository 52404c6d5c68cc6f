"""The tensors of a checkpoint and their places: the metadata of torch.distributed.checkpoint, read without torch.

A checkpoint is good only if the parts that lie in its files make up each tensor, every element once. torch does not
look: what no part fills keeps what was in memory before.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from trainrun.checkpoint import pickles
from trainrun.checkpoint.archive import WIDTHS, check_tensor, whole_numbers
from trainrun.checkpoint.contents import open_plain, tree
from trainrun.checkpoint.pickles import Made, Name, fields
from trainrun.errors import BadCheckpoint

METADATA = ".metadata"

_MODULE = "torch.distributed.checkpoint.metadata"
_INDEX = Name(_MODULE, "MetadataIndex")
_PLACE = Name("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_NAMES = ("ChunkStorageMetadata", "Metadata", "StorageMeta", "TensorProperties", "TensorStorageMetadata")
_ALLOWED = {
    *(_INDEX, _PLACE, Name("torch", "Size"), Name("torch.serialization", "_get_layout")),
    *(Name("torch", name) for name in WIDTHS),
    *(Name(_MODULE, name) for name in (*_NAMES, "_MEM_FORMAT_ENCODING")),
}
_LEAST = 1024 * 1024  # bytes that the metadata may have however small the tensors are


class Place(NamedTuple):
    """A part of one of the files next to the metadata."""

    file: str
    offset: int
    length: int


class Chunk(NamedTuple):
    """A block of a tensor. `place` is None for one without elements that was not written."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place | None


class Stored(NamedTuple):
    """A tensor of a checkpoint. `dtype` is the name of its type in torch."""

    dtype: str
    size: tuple[int, ...]
    chunks: tuple[Chunk, ...]


def read_index(folder: Path) -> dict[str, Stored]:
    """Return the tensors in the folder `state` of a checkpoint, by name.

    Only metadata and the files' sizes are read. Raises BadCheckpoint unless the parts in the files make up each tensor
    exactly once.
    """
    path = folder / METADATA
    try:
        return _tensors(*_load(folder))
    except Exception as error:  # metadata that was tampered with can raise anything at all
        raise BadCheckpoint(f"{path}: cannot be read: {pickles.reason(error)}") from error


def check_chunks(folder: Path, chunks: Sequence[tuple[str, Chunk]]) -> None:
    """Raise BadCheckpoint if the files hold other tensors at these places.

    dtype, chunk: of each.
    """
    by_file: dict[str, list[tuple[str, Chunk, Place]]] = defaultdict(list)
    for dtype, chunk in chunks:
        if chunk.place is not None:
            by_file[chunk.place.file].append((dtype, chunk, chunk.place))
    for name, wanted in by_file.items():
        try:
            with os.fdopen(open_plain(folder / name), "rb") as file:
                for dtype, chunk, place in wanted:
                    check_tensor(file, place.offset, place.length, dtype, chunk.sizes)
        except Exception as error:  # as above
            raise BadCheckpoint(f"{folder / name}: cannot be read: {pickles.reason(error)}") from error


def _load(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, int]]:
    """Return the metadata's own attributes, and the sizes of the files."""
    files = {name: found.st_size for name, found in tree(folder).items()}
    size = files.pop(METADATA)
    if size > max(_LEAST, sum(files.values())):
        _bad(f"it has {size} bytes, more than the tensors themselves")
    with os.fdopen(open_plain(folder / METADATA), "rb") as file:
        found = pickles.load(file.read(size), _ALLOWED.__contains__)
    return fields(found, Name(_MODULE, "Metadata")), files


def _tensors(metadata: Mapping[str, Any], files: Mapping[str, int]) -> dict[str, Stored]:
    tables = metadata["state_dict_metadata"], metadata["storage_data"]
    if not all(isinstance(table, dict) for table in tables):
        _bad("it does not list its tensors and their files")
    places = _places(tables[1], files)
    found = {name: _stored(name, told, places) for name, told in tables[0].items()}
    if places:
        name, offsets = next(iter(places))
        _bad(f"{name!r}: a part at {offsets} is in a file and belongs to no tensor")
    return found


def _places(told: Mapping[Any, Any], files: Mapping[str, int]) -> dict[tuple[str, tuple[int, ...]], Place]:
    """Return the place of each part, by tensor name and offsets.

    No two share a byte.
    """
    found: dict[tuple[str, tuple[int, ...]], Place] = {}
    for index, value in told.items():
        key, place = fields(index, _INDEX), _place(fields(value, _PLACE), files)
        name, offsets = key["fqn"], whole_numbers(key["offset"])
        if not isinstance(name, str) or (name, offsets) in found:
            _bad(f"{name!r}: the part at {offsets} is there twice")
        found[name, offsets] = place
    end: dict[str, int] = {}
    for place in sorted(found.values()):
        if place.offset < end.get(place.file, 0):
            _bad(f"two parts share bytes of the file {place.file!r}")
        end[place.file] = place.offset + place.length
    return found


def _place(told: Mapping[str, Any], files: Mapping[str, int]) -> Place:
    name, offset, length = told["relative_path"], told["offset"], told["length"]
    if told.get("transform_descriptors"):
        _bad("it stores tensors in an unknown way")
    if not isinstance(name, str) or name not in files:
        _bad(f"it names the file {name!r:.80}, which is not in its folder")
    if type(offset) is not int or type(length) is not int or not 0 <= offset < offset + length <= files[name]:
        _bad(f"it names a place outside the file {name!r}, which has {files[name]} bytes")
    return Place(name, offset, length)


def _stored(name: Any, told: Any, places: dict[tuple[str, tuple[int, ...]], Place]) -> Stored:
    """Return the tensor; its parts are taken out of `places`."""
    if not isinstance(name, str):
        _bad(f"{name!r:.80} is no name of a tensor")
    table = fields(told, Name(_MODULE, "TensorStorageMetadata"))
    size, dtype, chunks = whole_numbers(table["size"]), _dtype(table["properties"]), table["chunks"]
    if not isinstance(chunks, list):
        raise TypeError(f"{name!r}: expected a list of parts, got {pickles.described(chunks)}")
    found = []
    for chunk in chunks:
        block = fields(chunk, Name(_MODULE, "ChunkStorageMetadata"))
        offsets, sizes = whole_numbers(block["offsets"]), whole_numbers(block["sizes"])
        place = places.pop((name, offsets), None)
        if math.prod(sizes) and (place is None or place.length < math.prod(sizes) * WIDTHS[dtype]):
            _bad(f"{name!r}: its part at {offsets} is in no file, or its place there is too small")
        found.append(Chunk(offsets, sizes, place))
    if problem := _uncovered(size, found):
        _bad(f"{name!r}, of the size {size}: {problem}")
    return Stored(dtype, size, tuple(found))


def _dtype(properties: Any) -> str:
    """Return the type of a dense tensor."""
    if not isinstance(properties, Made) or not isinstance(properties.state, tuple):
        raise TypeError(f"expected the properties of a tensor, got {pickles.described(properties)}")
    dtype, layout, *_ = properties.state
    if not isinstance(dtype, Name) or dtype.name not in WIDTHS:
        raise TypeError(f"expected a type of torch, got {pickles.described(dtype)}")
    if not isinstance(layout, Made) or layout.arguments != ("torch.strided",):
        _bad("a tensor in it is not dense")
    return dtype.name


# --- every element once ---

_Box = tuple[tuple[int, int], ...]  # for each dimension its bounds


def _uncovered(size: Sequence[int], chunks: Sequence[Chunk]) -> str | None:
    """Explain why the chunks do not make up a tensor, if so.

    Each element of a tensor of this size must be there once.
    """
    boxes: list[_Box] = []
    for chunk in chunks:
        if len(chunk.offsets) != len(size) or len(chunk.sizes) != len(size):
            return f"its part at {chunk.offsets} has another number of dimensions"
        box = tuple((start, start + length) for start, length in zip(chunk.offsets, chunk.sizes, strict=True))
        if any(end > length for (_, end), length in zip(box, size, strict=True)):
            return f"its part at {chunk.offsets} of the size {chunk.sizes} lies outside of it"
        if math.prod(chunk.sizes):
            boxes.append(box)
    volume, wanted = sum(math.prod(chunk.sizes) for chunk in chunks), math.prod(size)
    if volume != wanted:
        return f"its parts have {volume} elements instead of {wanted}"
    whole = tuple((0, length) for length in size)
    return None if not wanted or _tiles(whole, boxes) else "its parts overlap, or leave gaps"


def _tiles(whole: _Box, boxes: Sequence[_Box]) -> bool:
    """Return whether the boxes fill `whole` without overlap.

    They do if one box does, or if cuts through all of it leave parts that are filled. For every sharding of a tensor
    there are such cuts.
    """
    if len(boxes) == 1:
        return boxes[0] == whole
    for dimension in range(len(whole)):
        parts: dict[tuple[int, int], list[_Box]] = defaultdict(list)
        for box in boxes:
            parts[box[dimension]].append(box)
        if len(parts) > 1 and _adjoin(whole[dimension], sorted(parts)):
            inner = ((*whole[:dimension], part, *whole[dimension + 1 :]) for part in parts)
            return all(_tiles(one, part) for one, part in zip(inner, parts.values(), strict=True))
    return False


def _adjoin(whole: tuple[int, int], parts: Sequence[tuple[int, int]]) -> bool:
    ends: Iterator[int] = iter([whole[0], *(end for _, end in parts)])
    return all(start == end for (start, _), end in zip(parts, ends, strict=False)) and parts[-1][1] == whole[1]


def _bad(reason: str) -> NoReturn:
    raise BadCheckpoint(reason)
