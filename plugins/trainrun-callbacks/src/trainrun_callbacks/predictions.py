"""Write what evaluations predict, on all ranks, and read it back in the order of the data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from trainrun import Field, PluginOptions, TrainingError, hookimpl
from trainrun_callbacks.selecting import fits, named_tensors
from trainrun_callbacks.writing import FileWriter, kept, on_host, save, size_of

if TYPE_CHECKING:
    from trainrun import Run

_MIB = 1024**2

Pattern = Annotated[str, Field(min_length=1)]
Record = dict[str, Any]


class PredictionsOptions(PluginOptions):
    """What to write, of which splits."""

    splits: list[str] | None = Field(
        None, min_length=1, description="Splits to write; by default, all that are evaluated."
    )
    batch: list[Pattern] = Field(
        [],
        description="Shell patterns of tensors of the batch to write too, such as `labels`, or `1` by position.",
    )
    from_step: int = Field(0, ge=0, description="Write only evaluations from this step on.")
    shard_mib: float = Field(64.0, gt=0, description="MiB per file.")


class Predictions:
    """Write what `evaluation_step` calls `"predictions"` to `predictions/SPLIT-step-S/` in the run directory.

    Each rank writes its own samples, without those that only pad the last batch, to `rank-N-I.pt`. At the end of the
    evaluation it writes the index `rank-N.json`; an interrupted evaluation has none.
    `trainrun_callbacks.predictions.read_predictions` returns the samples in the order of the dataset.

    Predictions are a tensor with one row per sample, a list with one item per sample, or a mapping or tuple of those.
    """

    Options = PredictionsOptions
    on_error = "disable"

    def __init__(self, options: PredictionsOptions) -> None:
        self._options = options
        self._writer: FileWriter | None = None
        self._shards: Shards | None = None

    @hookimpl
    def on_evaluation_start(self, run: Run, split: str) -> None:
        self._shards = None
        wanted = self._options.splits is None or split in self._options.splits
        if not wanted or run.step < self._options.from_step:
            return
        self._writer = self._writer or FileWriter("predictions")
        folder = run.paths.root / "predictions" / f"{split}-step-{run.step}"
        self._shards = Shards(folder, run.world.rank, self._options.shard_mib * _MIB)
        self._writer.put(self._shards.clear)

    @hookimpl
    def on_evaluation_batch_end(self, batch: Any, size: int, outputs: Mapping[str, Any]) -> None:
        if self._shards is None or self._writer is None or not size:
            return
        if "predictions" not in outputs:
            raise TrainingError(
                'predictions: evaluation_step returned none; return them as "predictions", next to the metrics'
            )
        values = {"predictions": outputs["predictions"]}
        if self._options.batch:
            patterns = tuple(self._options.batch)
            values["batch"] = {name: tensor for name, tensor in named_tensors(batch) if fits(name, patterns)}
        for name, value in values.items():
            _require_rows(name, value, size)
        self._writer.put(partial(self._shards.add, {"size": size, **kept(values)}))

    @hookimpl
    def on_evaluation_end(self, run: Run) -> None:
        if self._shards is not None and self._writer is not None:
            self._writer.put(partial(self._shards.close, run.world.size, run.attempt))
            self._shards = None

    @hookimpl
    def on_train_end(self) -> None:
        if self._writer is not None:
            self._writer.finish()

    @hookimpl
    def on_worker_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Shards:
    """The files of one rank in one evaluation. Used on the writing thread alone."""

    def __init__(self, folder: Path, rank: int, limit: float) -> None:
        self._folder = folder
        self._rank = rank
        self._limit = limit
        self._records: list[Record] = []
        self._held = 0
        self._files: list[str] = []
        self._samples = 0

    def clear(self) -> None:
        """Remove what an earlier evaluation at this step has left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in [self._folder / f"rank-{self._rank}.json", *self._folder.glob(f"rank-{self._rank}-*.pt")]:
            path.unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        """Take a batch's record."""
        self._records.append(on_host(record))
        self._held += size_of(record)
        self._samples += record["size"]
        if self._held >= self._limit:
            self._flush()

    def close(self, world: int, attempt: int) -> None:
        """Write what is left, and then the index."""
        self._flush()
        index = {"world": world, "attempt": attempt, "samples": self._samples, "files": self._files}
        scratch = self._folder / f".rank-{self._rank}.json.tmp"
        scratch.write_text(json.dumps(index), encoding="utf-8")
        scratch.replace(self._folder / f"rank-{self._rank}.json")

    def _flush(self) -> None:
        if self._records:
            name = f"rank-{self._rank}-{len(self._files)}.pt"
            save(self._folder / name, self._records)
            self._files.append(name)
            self._records, self._held = [], 0


def read_predictions(folder: Path, *, interleaved: bool = True) -> Iterator[Record]:
    """Yield what was written into one `predictions/SPLIT-step-S`, sample by sample.

    Each is `{"predictions": …}`, and `"batch"` if tensors of it were kept. They come in the order of the dataset:
    trainrun's own loader gives sample i to rank i modulo their number.

    interleaved: False for a loader of one's own; then all of rank 0, then all of rank 1, and so on.

    Raises ValueError if the evaluation was interrupted, so that ranks are missing.
    """
    ranks = [_samples(folder, index) for index in _indices(folder)]
    if not interleaved:
        yield from chain.from_iterable(ranks)
        return
    for row in zip_longest(*ranks):
        yield from (sample for sample in row if sample is not None)


def _indices(folder: Path) -> list[dict[str, Any]]:
    first = _index(folder, 0)
    found = [first, *(_index(folder, rank) for rank in range(1, first["world"]))]
    if len({(index["world"], index["attempt"]) for index in found}) > 1:
        raise ValueError(f"{folder}: ranks have written in different attempts; the evaluation was broken off")
    return found


def _index(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"rank-{rank}.json"
    if not path.exists():
        raise ValueError(f"{path}: missing; the evaluation was interrupted, or has not ended")
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return index


def _samples(folder: Path, index: Mapping[str, Any]) -> Iterator[Record]:
    for name in index["files"]:
        for record in torch.load(folder / name, weights_only=True):
            values = {key: value for key, value in record.items() if key != "size"}
            for place in range(record["size"]):
                yield _row(values, place)


def _row(value: Any, place: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _row(item, place) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_row(item, place) for item in value)
    return value[place]


def _require_rows(name: str, value: Any, size: int) -> None:
    """Raise TrainingError unless there is one row a sample."""
    if isinstance(value, Mapping | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            _require_rows(f"{name}.{key}", part, size)
        return
    shape = list(value.shape) if isinstance(value, torch.Tensor) else [len(value)] if isinstance(value, list) else []
    if shape[:1] != [size]:
        shown = f"the shape {shape}" if isinstance(value, torch.Tensor | list) else type(value).__name__
        raise TrainingError(f"predictions: {name} must have one row for each of {size} samples, got {shown}")
