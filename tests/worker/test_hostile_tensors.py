"""Checkpoints that name tensors which their files do not hold: no memory becomes weights, and none is used up."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from trainrun import hookimpl
from trainrun.checkpoint import BadCheckpoint, digest, read_manifest, verify
from trainrun.checkpoint.archive import WIDTHS
from trainrun.checkpoint.manifest import to_bytes
from trainrun.cli.main import run
from trainrun.errors import TrainingError
from trainrun.rundir import RunPaths
from trainrun.worker.checkpoint import reader
from trainrun.worker.checkpoint.export import export

NAME, METADATA, TENSORS = "model/weight", "state/.metadata", "state/__0_0.distcp"
SIZE = torch.Size([1, 3])
TABLES: dict[str, Any] = {"optimizer": {"name": "adamw"}, "evaluate": {"splits": []}}

Trainer = Callable[..., Any]
Change = Callable[[Any], None]


class Model:
    """The task: a layer of three weights."""

    @hookimpl
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(3, 1)

    @hookimpl
    def build_dataset(self) -> Any:
        return torch.utils.data.TensorDataset(torch.ones(16, 3))

    @hookimpl
    def training_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch[0]).pow(2).mean()
        return loss


@pytest.fixture
def checkpoint(training: Trainer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good one, of a training of two steps."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    paths = training(Model, train={"steps": 2}, checkpoint={"at_end": True}, **TABLES).paths
    found: Path = paths.checkpoints / "step-000002"
    assert verify(found) == []
    return found


def remade(checkpoint: Path, name: str, content: bytes) -> None:
    """Another content, with a manifest that fits."""
    (checkpoint / name).write_bytes(content)
    manifest = read_manifest(checkpoint)
    files = {**manifest.files, name: digest(checkpoint / name)}
    (checkpoint / "manifest.json").write_bytes(to_bytes(replace(manifest, files=files)))


def changed(checkpoint: Path, change: Change) -> None:
    """The checkpoint's own metadata with one change."""
    found = pickle.loads((checkpoint / METADATA).read_bytes())
    change(found)
    remade(checkpoint, METADATA, pickle.dumps(found))


def chunks(*blocks: tuple[list[int], list[int]]) -> Change:
    def change(found: Any) -> None:
        made = [dcp.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in blocks]
        found.state_dict_metadata[NAME].chunks = made
        place = found.storage_data.pop(dcp.MetadataIndex(NAME, [0, 0]))
        for one in made:
            found.storage_data[dcp.MetadataIndex(NAME, one.offsets)] = place

    return change


def place(**changes: Any) -> Change:
    def change(found: Any) -> None:
        key = dcp.MetadataIndex(NAME, [0, 0])
        found.storage_data[key] = replace(found.storage_data[key], **changes)

    return change


def other_place(found: Any) -> None:
    """The place of the bias as that of the weights."""
    found.storage_data[dcp.MetadataIndex(NAME, [0, 0])] = found.storage_data[dcp.MetadataIndex("model/bias", [0])]


def no_chunks(found: Any) -> None:
    found.state_dict_metadata[NAME].chunks = []


def no_chunks_and_no_place(found: Any) -> None:
    no_chunks(found)
    del found.storage_data[dcp.MetadataIndex(NAME, [0, 0])]


def no_place(found: Any) -> None:
    del found.storage_data[dcp.MetadataIndex(NAME, [0, 0])]


def typed(dtype: torch.dtype) -> Change:
    def change(found: Any) -> None:
        found.state_dict_metadata[NAME].properties = dcp.TensorProperties(dtype)

    return change


def sized(*size: int) -> Change:
    def change(found: Any) -> None:
        found.state_dict_metadata[NAME].size = torch.Size(size)

    return change


def a_place_for_nothing(found: Any) -> None:
    found.storage_data[dcp.MetadataIndex("model/other", [0])] = _StorageInfo("__0_0.distcp", 0, 9)


def sparse(found: Any) -> None:
    found.state_dict_metadata[NAME].properties = dcp.TensorProperties(torch.float32, layout=torch.sparse_coo)


CHANGES: dict[str, tuple[Change, str]] = {
    "no chunks": (no_chunks, "0 elements instead of 3"),
    "no chunks and no place": (no_chunks_and_no_place, "0 elements instead of 3"),
    "no place": (no_place, "is in no file"),
    "a part is missing": (chunks(([0, 0], [1, 2])), "2 elements instead of 3"),
    "a part twice": (chunks(([0, 0], [1, 3]), ([0, 0], [1, 3])), "is in no file"),
    "a gap and an overlap": (chunks(([0, 0], [1, 2]), ([0, 1], [1, 1])), "share bytes"),
    "a part outside": (chunks(([0, 1], [1, 3])), "lies outside"),
    "a part of another rank": (chunks(([0], [3])), "number of dimensions"),
    "a negative offset": (chunks(([0, -1], [1, 3])), "expected a size"),
    "a size below zero": (sized(-1, -3), "expected a size"),
    "another size": (sized(3, 1), "lies outside"),
    "a size without elements": (sized(0, 3), "lies outside"),
    "a plain number": (sized(), "number of dimensions"),
    "wider elements": (typed(torch.complex128), "complex128"),
    "other elements": (typed(torch.int32), "instead of one of int32"),
    "a sparse one": (sparse, "not dense"),
    "the place of another": (other_place, "share bytes"),
    "a place that begins later": (place(offset=1), "share bytes|not a zip file|no tensor|outside|list of records"),
    "a place that ends early": (place(length=100), "not a zip file"),
    "a place of no length": (place(length=0), "outside"),
    "a place that ends behind the file": (place(length=2**40), "outside"),
    "another file": (place(relative_path="__1_0.distcp"), "not in its folder"),
    "the metadata itself": (place(relative_path=".metadata"), "not in its folder"),
    "a place for nothing": (a_place_for_nothing, "share bytes|belongs to no tensor"),
}


def refused(checkpoint: Path, why: str, training: Trainer, tmp_path: Path) -> None:
    """By everything that looks at a checkpoint or reads it."""
    (reason,) = verify(checkpoint)
    assert re.search(why, reason)
    out = tmp_path / "weights.safetensors"
    with pytest.raises(BadCheckpoint):
        export(checkpoint, out)
    assert not out.exists()
    with pytest.raises(BadCheckpoint):
        training(Model, after=RunPaths(checkpoint.parent.parent), train={"steps": 3}, **TABLES)


@pytest.mark.parametrize("title", CHANGES)
def test_parts_that_do_not_make_up_the_tensor(title: str, checkpoint: Path, training: Trainer, tmp_path: Path) -> None:
    change, why = CHANGES[title]
    changed(checkpoint, change)
    refused(checkpoint, why, training, tmp_path)


def test_the_commands(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(checkpoint, no_chunks)
    root, out = str(checkpoint.parent.parent), tmp_path / "weights.safetensors"
    assert run(["checkpoints", root, "--verify"]) == 1
    assert "its parts have 0 elements instead of 3" in capsys.readouterr().out
    assert run(["checkpoints", root, "--export", str(out)]) == 4
    assert "none of the checkpoints is good" in capsys.readouterr().err
    assert not out.exists()


def test_a_tensor_that_is_missing(checkpoint: Path, training: Trainer) -> None:
    def change(found: Any) -> None:
        no_chunks_and_no_place(found)
        del found.state_dict_metadata[NAME]

    changed(checkpoint, change)
    with pytest.raises(TrainingError, match="weight: not in the checkpoint"):
        training(Model, after=RunPaths(checkpoint.parent.parent), train={"steps": 3}, **TABLES)


def test_tensors_of_another_type(checkpoint: Path, training: Trainer) -> None:
    """A checkpoint that is in order, but not of this model: nothing is converted silently."""

    class Double(Model):
        @hookimpl
        def build_model(self) -> torch.nn.Module:
            return torch.nn.Linear(3, 1).double()

    with pytest.raises(BadCheckpoint, match="float32 in the checkpoint, float64 here"):
        training(Double, after=RunPaths(checkpoint.parent.parent), train={"steps": 3}, **TABLES)


# --- what lies in the files ---


def archive(data: bytes, record: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    """As torch.save writes it, with this pickle and one record."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as made:
        made.writestr("archive/data.pkl", data, zipfile.ZIP_STORED)
        made.writestr("archive/version", b"3\n", zipfile.ZIP_STORED)
        made.writestr("archive/byteorder", b"little", zipfile.ZIP_STORED)
        made.writestr("archive/data/0", record)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """As torch.save, but with whatever is told of the storage."""

    def __init__(self, file: Any, told: tuple[Any, ...]) -> None:
        super().__init__(file, 2)
        self._told = told

    def persistent_id(self, value: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", *self._told) if isinstance(value, _Storage) else None


class _Storage:
    """Where the storage is named."""


class _Tensor:
    def __init__(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.how = torch._utils._rebuild_tensor_v2, (_Storage(), offset, size, stride, False, {})

    def __reduce__(self) -> Any:
        return self.how


def pickled(value: Any, count: int) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, (count,)).dump(value)
    return buffer.getvalue()


def laughs(depth: int) -> Any:
    """A list that is small as it stands, and 2^depth values when nothing is shared."""
    value: Any = ["ha"]
    for _ in range(depth):
        value = [value, value]
    return value


def itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


GREAT = 2**27  # bytes of zeros that are written as some hundred thousand
VALUES: dict[str, Callable[[], bytes]] = {
    "packed": lambda: archive(
        pickled({"a": _Tensor(0, (GREAT // 4,), (1,))}, GREAT // 4), bytes(GREAT), zipfile.ZIP_DEFLATED
    ),
    "a view of 2^40 elements": lambda: archive(pickled({"a": _Tensor(0, (2**40,), (0,))}, 4), bytes(16)),
    "a view in two dimensions": lambda: archive(pickled({"a": _Tensor(0, (2**20, 2**20), (0, 0))}, 4), bytes(16)),
    "a view behind its storage": lambda: archive(pickled({"a": _Tensor(2, (4,), (1,))}, 4), bytes(16)),
    "a storage behind its record": lambda: archive(pickled({"a": _Tensor(0, (2**20,), (1,))}, 2**20), bytes(16)),
    "a storage of 2^60 bytes": lambda: archive(pickled({"a": _Tensor(0, (2**58,), (1,))}, 2**58), bytes(16)),
    "a storage of less than its record": lambda: archive(pickled({"a": _Tensor(0, (1,), (1,))}, 1), bytes(16)),
    "one tensor 10^5 times": lambda: archive(pickled({"a": [_Tensor(0, (4,), (1,))] * 10**5}, 4), bytes(16)),
    "laughs": lambda: archive(pickled({"a": laughs(60)}, 0), b""),
    "itself": lambda: archive(pickled({"a": itself()}, 0), b""),
    "zeros": lambda: archive(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.", b""),
    "a tensor of a size": lambda: archive(b"\x80\x02ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85R.", b""),
    "something in front": lambda: b"x" + archive(pickled({"a": 1}, 0), b""),
}


@pytest.mark.parametrize("title", [title for title in VALUES if title != "packed"])
def test_values_that_grow(title: str, checkpoint: Path) -> None:
    remade(checkpoint, "training.pt", VALUES[title]())
    (reason,) = verify(checkpoint)
    assert reason.startswith("training.pt: cannot be read: ")
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        reader.read_values(checkpoint / "training.pt")


def test_a_value_as_often_as_it_was_written_is_good(tmp_path: Path) -> None:
    text = "the same"
    value = {
        "list": [text] * 1000,
        "ints": list(range(300)) * 10,
        "tuple": ((1, 2), None, True, 1.5, b"bytes", 2**70),
        "tensors": [torch.zeros(3), torch.zeros(()), torch.zeros(0, 3), torch.zeros(2, dtype=torch.float8_e5m2)],
        "parts": [torch.arange(100)[10:20], torch.arange(12).reshape(3, 4).t()],
        3: {},
    }
    torch.save(value, tmp_path / "values.pt")
    found = reader.read_values(tmp_path / "values.pt")
    assert found["list"] == value["list"]
    assert found["tuple"] == value["tuple"]


@pytest.mark.parametrize("kind", [name for name in vars(torch) if isinstance(getattr(torch, name), torch.dtype)])
def test_the_width_of_every_type(kind: str) -> None:
    dtype: torch.dtype = getattr(torch, kind)
    assert WIDTHS[str(dtype).removeprefix("torch.")] == dtype.itemsize


MEASURE = """
import json, resource, sys
from pathlib import Path
from trainrun.checkpoint import verify
from trainrun.worker.checkpoint import reader
from trainrun.errors import BadCheckpoint

def refusals(checkpoint):
    yield from verify(checkpoint)
    for read in (lambda: reader.read_values(checkpoint / "training.pt"), lambda: reader.read_tensors(checkpoint, "")):
        try:
            read()
        except BadCheckpoint as error:
            yield str(error)

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = [list(refusals(Path(one))) for one in sys.argv[1:]]
print(json.dumps([said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def many_entries(checkpoint: Path) -> None:
    found = pickle.loads((checkpoint / METADATA).read_bytes())
    tensor, where = found.state_dict_metadata[NAME], found.storage_data[dcp.MetadataIndex(NAME, [0, 0])]
    for number in range(100_000):
        found.state_dict_metadata[f"model/{number}"] = tensor
        found.storage_data[dcp.MetadataIndex(f"model/{number}", SIZE)] = where
    remade(checkpoint, METADATA, pickle.dumps(found))


def packed_tensor(checkpoint: Path) -> None:
    """The weights packed, in a file of their own."""
    data = archive(pickled(_Tensor(0, (GREAT // 4,), (1,)), GREAT // 4), bytes(GREAT), zipfile.ZIP_DEFLATED)
    remade(checkpoint, "state/packed", data)

    def change(found: Any) -> None:
        place(relative_path="packed", offset=0, length=len(data))(found)

    changed(checkpoint, change)


GREEDY = {
    "packed values": lambda checkpoint: remade(checkpoint, "training.pt", VALUES["packed"]()),
    "packed tensors": packed_tensor,
    "100,000 entries": many_entries,
}


def test_little_memory_is_used(checkpoint: Path, tmp_path: Path) -> None:
    copies = []
    for number, greedy in enumerate(GREEDY.values()):
        copies.append(tmp_path / str(number) / checkpoint.name)
        shutil.copytree(checkpoint, copies[-1])
        greedy(copies[-1])
    command = [sys.executable, "-c", MEASURE, *map(str, copies)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, kibibytes = json.loads(done.stdout)
    assert [len(of_one) for of_one in said] == [2, 2, 2], said
    assert all("cannot be read" in one for of_one in said for one in of_one)
    assert kibibytes < 64 * 1024, f"{kibibytes} KiB more than before"
