"""Reading the tensors of a checkpoint that may come from a stranger, without executing anything in it.

`trainrun.checkpoint.index` reads the metadata, as plain data. Tensors are read with `weights_only=True`, by torch
itself, once their files are known to hold what they say.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan

from trainrun.checkpoint import layout
from trainrun.checkpoint.archive import check_values
from trainrun.checkpoint.index import Stored, check_chunks, read_index
from trainrun.errors import BadCheckpoint


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> NoReturn:
        """Refuse bytes: we write tensors only, and torch would unpickle these."""
        del value
        raise BadCheckpoint(f"{read_item.storage_index.fqn}: a pickled object among the tensors; it is not read")


def _metadata(index: Mapping[str, Stored]) -> Metadata:
    """Return what torch needs to know of the tensors."""
    tensors, places = {}, {}
    for name, stored in index.items():
        chunks = [ChunkStorageMetadata(torch.Size(one.offsets), torch.Size(one.sizes)) for one in stored.chunks]
        dtype = getattr(torch, stored.dtype)
        tensors[name] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(stored.size), chunks)
        for number, one in enumerate(stored.chunks):
            if one.place is not None:
                key = MetadataIndex(name, torch.Size(one.offsets), number)
                places[key] = _StorageInfo(one.place.file, one.place.offset, one.place.length)
    return Metadata(state_dict_metadata=dict(tensors), storage_data=places)


class Tensors:
    """The tensors of a checkpoint; its metadata is read once. Raises BadCheckpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.folder = checkpoint / layout.STATE
        self._index = read_index(self.folder)
        self._metadata = _metadata(self._index)

    @property
    def stored(self) -> dict[str, TensorStorageMetadata]:
        """Their names, sizes and types."""
        return dict(self._metadata.state_dict_metadata)  # type: ignore[arg-type]

    def read(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill `tensors` in place, by name. Raises BadCheckpoint.

        Of a sharded tensor the local part is filled. All names must be in the checkpoint, with equal sizes and types.
        How a tensor was sharded when it was written does not matter.
        """
        self._require_types(tensors)
        reader, planner = FileSystemReader(self.folder), _Planner(flatten_state_dict=False)
        try:
            reader.set_up_storage_reader(self._metadata, is_coordinator=True)
            planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
            plan = reader.prepare_local_plan(planner.create_local_plan())
            self._check(plan)
            reader.read_data(planner.finish_plan(plan), planner).wait()
        except BadCheckpoint:
            raise
        # torch raises assertions, pickle and runtime errors for contents that do not fit.
        except Exception as error:
            raise BadCheckpoint(f"{self.folder}: cannot be read: {error}") from error

    def _require_types(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise BadCheckpoint if torch would convert, and round, without a warning."""
        for name, tensor in tensors.items():
            mine, stored = str(tensor.dtype).removeprefix("torch."), self._index.get(name)
            if stored is not None and stored.dtype != mine:
                raise BadCheckpoint(f"{self.folder}: {name}: {stored.dtype} in the checkpoint, {mine} here")

    def _check(self, plan: LoadPlan) -> None:
        """Raise BadCheckpoint if the files to read contradict the metadata."""
        wanted = {(item.storage_index.fqn, item.storage_index.offset) for item in plan.items}
        chunks = [
            (one.dtype, chunk)
            for name, one in self._index.items()
            for chunk in one.chunks
            if (name, torch.Size(chunk.offsets)) in wanted
        ]
        check_chunks(self.folder, chunks)


def read_tensors(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return all tensors whose names begin with `prefix`.

    The keys are the rest of the names. The tensors are whole, in host memory.
    """
    source = Tensors(checkpoint)
    found = {name: one for name, one in source.stored.items() if name.startswith(prefix)}
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in found.items()}
    source.read(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def read_values(path: Path) -> Any:
    """Return the plain values and tensors in a file. Raises BadCheckpoint."""
    check_values(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # made-up files raise anything here as well
        raise BadCheckpoint(f"{path}: cannot be read: {error}") from error
