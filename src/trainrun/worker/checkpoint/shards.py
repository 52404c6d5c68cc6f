"""What each rank writes of the model and the optimizer, through torch.distributed.checkpoint.

Its planner and its file format are used as they are, so that its tools read our checkpoints. The exchange between
ranks is our own: torch's gathers objects by pickle, and needs NumPy. Plans and results are a few numbers each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from trainrun.checkpoint.commit import sync
from trainrun.worker.checkpoint.staging import Staging

Row = list[Any]  # of plain values, for the other ranks


class Shard(NamedTuple):
    """A part of a tensor that this rank could write, and its values in host memory."""

    item: WriteItem
    values: torch.Tensor


def stage(tensors: Mapping[str, torch.Tensor], rank: int, staging: Staging) -> list[Shard]:
    """Copy what this rank has to give.

    These are its shards of sharded tensors, and on rank 0 all other tensors too.
    """
    mine = {name: tensor for name, tensor in tensors.items() if rank == 0 or isinstance(tensor, DTensor)}
    plan = create_default_local_save_plan(mine, rank == 0)
    return [Shard(item, staging.copy(item.index.fqn, _local(mine[item.index.fqn]))) for item in plan.items]


def rows(shards: Sequence[Shard]) -> list[Row]:
    """Return what the other ranks have to know of this rank's shards."""
    return [_row(shard.item) for shard in shards]


def plan(of_ranks: Sequence[Sequence[Row]]) -> tuple[Metadata, list[list[Row]]]:
    """Plan which rank writes which part of each tensor.

    Each part is written once, by the lowest rank that has it. Returns the checkpoint's metadata, and for each rank the
    indices of the items to write.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, dedup_save_to_lowest_rank=True)
    plans, metadata = planner.create_global_plan([SavePlan([_item(row) for row in rank]) for rank in of_ranks])
    return metadata, [[_index_row(item.index) for item in each.items] for each in plans]


def write(folder: Path, rank: int, shards: Sequence[Shard], wanted: Sequence[Row]) -> list[Row]:
    """Write the `wanted` ones of `shards` into a file of this rank.

    The file is synced. Returns the position of each shard in it.
    """
    if not wanted:
        return []
    by_index = {shard.item.index: shard for shard in shards}
    indices = [_index(row) for row in wanted]
    items = [dataclasses.replace(by_index[index].item, index=index) for index in indices]
    writer = _writer(folder)
    given = [SavePlan([])] * rank + [SavePlan(items)]
    named = writer.prepare_global_plan(given)[rank]  # the file is called after the place in this list
    values = _Values({index: by_index[index].values for index in indices})
    results: list[WriteResult] = writer.write_data(named, values).wait()
    return [[*_index_row(one.index), one.size_in_bytes, *dataclasses.astuple(one.storage_data)[:3]] for one in results]


def finish(folder: Path, metadata: Metadata, of_ranks: Sequence[Sequence[Row]]) -> None:
    """Write the metadata, synced, with the position of everything."""
    results = [
        [WriteResult(index=_index(row[:3]), size_in_bytes=row[3], storage_data=_StorageInfo(*row[4:])) for row in rank]
        for rank in of_ranks
    ]
    _writer(folder).finish(metadata, results)
    sync(folder / ".metadata")  # torch does it too, but before its buffer is written


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Return None.

        It would be the path at which the checkpoint was written, which is another one by now.
        """


def _writer(folder: Path) -> _Writer:
    # With more than one thread, errors of the others are lost (pytorch#191391).
    return _Writer(folder, sync_files=True, thread_count=1)


class _Values(DefaultSavePlanner):
    """Looks the values to write up in host memory."""

    def __init__(self, values: Mapping[MetadataIndex, torch.Tensor]) -> None:
        super().__init__(flatten_state_dict=False)
        self._values = values

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self._values[index]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _row(item: WriteItem) -> Row:
    data = item.tensor_data
    assert data is not None
    chunk = data.chunk
    dtype = str(data.properties.dtype).removeprefix("torch.")
    return [item.index.fqn, item.type.name, list(chunk.offsets), list(chunk.sizes), list(data.size), dtype]


def _item(row: Row) -> WriteItem:
    name, kind, offsets, sizes, size, dtype = row
    chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    data = TensorWriteData(chunk, TensorProperties(dtype=getattr(torch, dtype)), torch.Size(size))
    return WriteItem(MetadataIndex(name, offsets), WriteItemType[kind], tensor_data=data)


def _index_row(index: MetadataIndex) -> Row:
    return [index.fqn, None if index.offset is None else list(index.offset), index.index]


def _index(row: Row) -> MetadataIndex:
    return MetadataIndex(*row)
