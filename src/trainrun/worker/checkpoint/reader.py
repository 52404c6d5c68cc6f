"""Reading the tensors of a checkpoint that may come from a stranger: whatever is in it, nothing of it is executed.

The metadata of torch.distributed.checkpoint is a pickle: the classes that it may name are listed here. Tensors are
read with `weights_only=True`, by torch itself.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from trainrun.checkpoint import layout
from trainrun.errors import BadCheckpoint

_DTYPES = {name for name in vars(torch) if isinstance(getattr(torch, name), torch.dtype)}
_MODULE = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch", name) for name in _DTYPES),
    *(
        (_MODULE, name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


_BUILT = {
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
    _StorageInfo,
}


class _Unpickler(pickle._Unpickler):
    """Python's own, in Python: the one in C lets a pickle set attributes of the classes that it names.

    It also makes room for whatever sizes a pickle speaks of, before it looks how long the file is.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {**pickle._Unpickler.dispatch}
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)

    def load_build(self) -> None:
        """State is for instances of the classes above, never for what a pickle names."""
        if type(self.stack[-2]) not in _BUILT:
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-2]).__name__}, which no checkpoint needs")
        super().load_build()  # type: ignore[misc]

    def refuse(self) -> None:
        raise pickle.UnpicklingError("it uses an operation that no checkpoint needs")

    dispatch[pickle.BUILD[0]] = load_build
    for _operation in (
        *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ),
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[_operation[0]] = refuse


class _Reader(FileSystemReader):
    """Reads metadata by the list above."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        path = self._folder / ".metadata"
        try:
            found = _Unpickler(io.BytesIO(path.read_bytes())).load()
            _check(found, self._folder)
        # A pickle that somebody made up can raise anything at all.
        except Exception as error:
            raise BadCheckpoint(f"{path}: cannot be read: {error}") from error
        assert isinstance(found, Metadata)
        return found


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> NoReturn:
        """We write tensors only; torch would unpickle whatever this is."""
        del value
        raise BadCheckpoint(f"{read_item.storage_index.fqn}: a pickled object among the tensors; it is not read")


def _check(found: object, folder: Path) -> None:
    if not isinstance(found, Metadata) or not isinstance(found.state_dict_metadata, dict):
        raise TypeError(f"it holds a {type(found).__name__}")
    if not isinstance(found.storage_data, dict):
        raise TypeError("it does not say where the tensors are")
    room: dict[str, int] = {}
    for place in found.storage_data.values():
        if not isinstance(place, _StorageInfo) or place.transform_descriptors:
            raise TypeError("it says where the tensors are in a way that is not known")
        name = place.relative_path
        if Path(name).name != name:
            raise ValueError(f"it names the file {name!r}, which is not in its folder")
        room[name] = (folder / name).lstat().st_size if name not in room else room[name]
        if not 0 <= place.offset <= place.offset + place.length <= room[name]:
            raise ValueError(f"it names a place outside the file {name!r}")
    for name, stored in found.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(stored, TensorStorageMetadata):
            raise TypeError(f"{name!r} is not a tensor")
        if min(stored.size, default=0) < 0 or _bytes(stored) > sum(room.values()):
            raise ValueError(f"{name!r} has the size {tuple(stored.size)}, for which its files are too small")


def _bytes(stored: TensorStorageMetadata) -> int:
    return math.prod(stored.size) * stored.properties.dtype.itemsize


class Tensors:
    """The tensors of a checkpoint; its metadata is read once. Raises BadCheckpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.folder = checkpoint / layout.STATE
        self._metadata = _Reader(self.folder).read_metadata()

    @property
    def stored(self) -> dict[str, TensorStorageMetadata]:
        """Their names, sizes and types."""
        return dict(self._metadata.state_dict_metadata)  # type: ignore[arg-type]

    def read(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill `tensors` in place, by name; of a sharded one the part that is here. Raises BadCheckpoint.

        All names must be in the checkpoint, with equal sizes; how it was sharded when it was written does not matter.
        """
        reader, planner = _Reader(self.folder), _Planner(flatten_state_dict=False)
        try:
            reader.set_up_storage_reader(self._metadata, is_coordinator=True)
            planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
            plan = reader.prepare_local_plan(planner.create_local_plan())
            reader.read_data(planner.finish_plan(plan), planner).wait()
        # torch raises assertions, pickle and runtime errors for contents that do not fit.
        except Exception as error:
            raise BadCheckpoint(f"{self.folder}: cannot be read: {error}") from error


def read_tensors(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """All tensors whose names begin with `prefix`, whole, in host memory, by the rest of the name."""
    source = Tensors(checkpoint)
    found = {name: one for name, one in source.stored.items() if name.startswith(prefix)}
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in found.items()}
    source.read(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def read_values(path: Path) -> Any:
    """A file of plain values and tensors. Raises BadCheckpoint."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # made-up files raise anything here as well
        raise BadCheckpoint(f"{path}: cannot be read: {error}") from error
