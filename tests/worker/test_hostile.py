"""Checkpoints that somebody made up: their manifest fits, and whatever is in their files, nothing of it is executed."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from trainrun import hookimpl
from trainrun.checkpoint import BadCheckpoint, digest, read_manifest, verify
from trainrun.checkpoint.manifest import to_bytes
from trainrun.rundir import RunPaths
from trainrun.worker.checkpoint import reader

PLACES = ("state/.metadata", "state/__0_0.distcp", "training.pt", "rank-0.pt", "plugins/hoarder.pt")

Trainer = Callable[..., Any]


class Hoarder:
    @hookimpl
    def on_step_end(self, run: Any) -> None:
        """Nothing; it is here for its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"hoard": torch.arange(9), "text": "gold"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["text"] == "gold"


class Calls:
    """An object that is pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.how = function, arguments

    def __reduce__(self) -> Any:
        return self.how


def touch() -> Calls:
    return Calls(os.system, "touch CANARY")


def evaluated() -> Calls:
    return Calls(eval, "__import__('os').system('touch CANARY')")


def metadata(**changes: Any) -> Any:
    """One that is in order, but for the changes."""
    index = dcp.MetadataIndex("model/a", [0])
    chunk = dcp.ChunkStorageMetadata(torch.Size([0]), torch.Size([2]))
    tensor = dcp.TensorStorageMetadata(dcp.TensorProperties(torch.float32), torch.Size([2]), [chunk])
    return dcp.Metadata(
        **{"state_dict_metadata": {"model/a": tensor}, "storage_data": {index: _StorageInfo("__0_0.distcp", 0, 9)}}
        | changes
    )


def stored_in(path: str, **changes: Any) -> dict[Any, Any]:
    return {dcp.MetadataIndex("model/a", [0]): _StorageInfo(path, 0, 9, **changes)}


def zipped(data: bytes) -> bytes:
    """As torch.save writes it, with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(64))
    return buffer.getvalue()


def legacy(data: bytes) -> bytes:
    """As torch.save wrote it before it made archives, with this pickle."""
    return b"".join(pickle.dumps(one, 2) for one in (torch.serialization.MAGIC_NUMBER, 1001, {})) + data


LEAF = legacy(pickle.dumps(touch(), 2))
COMMAND = b"V" + b"touch CANARY\n"
MEANT = {
    "reduce": pickle.dumps(touch()),
    **{f"reduce, protocol {number}": pickle.dumps(touch(), number) for number in range(4)},
    "eval": pickle.dumps(evaluated()),
    "eval, protocol 2": pickle.dumps(evaluated(), 2),
    "nested": pickle.dumps({"place": [({"a": touch()},)]}),
    "a key": pickle.dumps([(touch(), 1)]),
    "global": b"cos\nsystem\n(" + COMMAND + b"tR.",
    "posix": b"cposix\nsystem\n(" + COMMAND + b"tR.",
    "inst": b"(" + COMMAND + b"ios\nsystem\n.",
    "obj": b"(cos\nsystem\n" + COMMAND + b"o.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch CANARY\x85R.",
    "dotted name": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x0ctouch CANARY\x85R.",
    "dotted, of an allowed module": b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93"
    b"\x8c\x0ctouch CANARY\x85R.",
    "dotted, of an allowed class": b"\x80\x04\x8c\x05torch\x8c\x0dSize.__init__\x93).",
    "attributes": b"cbuiltins\ngetattr\n(cos\npath\nVos\ntR.",
    "import": b"c__builtin__\n__import__\n(Vos\ntR.",
    "a module that is found nowhere": b"cnowhere_at_all\nanything\n)R.",
    "subprocess": b"csubprocess\ncheck_output\n(](Vtouch\nVCANARY\netR.",
    "extension": b"\x80\x02\x82\xf0" + COMMAND + b"\x85R.",
    "persistent": b"Pos.system\n.",
    "persistent, binary": COMMAND + b"Q.",
    "torch.load": b"ctorch\nload\n(VCANARY\ntR.",
    "bytes as a storage": b"ctorch.storage\n_load_from_bytes\nC" + bytes([len(LEAF)]) + LEAF + b"\x85R.",
    "jit": b"ctorch.jit\nload\n(VCANARY\ntR.",
    "hub": b"ctorch.hub\nload\n(VCANARY\ntR.",
    "compile": b"ctorch._inductor.codecache\nPyCodeCache\n)\x81.",
    "state of a class": b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N(Vpolluted\nVyes\ndtb.",
    "state of a function": b"ctorch.serialization\n_get_layout\n(N(Vpolluted\nVyes\ndtb.",
    "no pickle": b"hello",
    "empty": b"",
    "cut": pickle.dumps(metadata())[:-20],
    "huge string": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"a.",
    "huge bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"a.",
    "huge frame": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N.",
    "huge memo": b"\x80\x04Nr\xff\xff\xff\xff.",
    "huge number": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"a.",
    "deep": b"\x80\x04" + b"(" * 200_000 + b"t" * 200_000 + b".",
    "only a mark": b"(.",
    "nothing on the stack": b".",
    "a list": pickle.dumps([1, 2]),
    "another protocol": b"\x80\xff.",
}
MISLEADING = {
    "another folder": metadata(storage_data=stored_in("../../x")),
    "an absolute path": metadata(storage_data=stored_in("/etc/hostname")),
    "the folder itself": metadata(storage_data=stored_in("..")),
    "a name with a zero": metadata(storage_data=stored_in("a\0b")),
    "a path that is no text": metadata(storage_data=stored_in(7)),  # type: ignore[arg-type]
    "before the file": metadata(storage_data={dcp.MetadataIndex("model/a", [0]): _StorageInfo("__0_0.distcp", -9, 9)}),
    "behind the file": metadata(storage_data=stored_in("__0_0.distcp") and {
        dcp.MetadataIndex("model/a", [0]): _StorageInfo("__0_0.distcp", 2**60, 9)
    }),
    "transformed": metadata(storage_data=stored_in("__0_0.distcp", transform_descriptors=["zstd"])),
    "pickled objects": metadata(state_dict_metadata={"model/a": dcp.BytesStorageMetadata()}),
    "no places": metadata(storage_data=None),
    "other places": metadata(storage_data={"model/a": 5}),
    "no tensors": metadata(state_dict_metadata=[]),
    "a tensor that is larger than all files": metadata(state_dict_metadata={
        "model/a": dcp.TensorStorageMetadata(dcp.TensorProperties(torch.float32), torch.Size([2**50]), [
            dcp.ChunkStorageMetadata(torch.Size([0]), torch.Size([2**50]))
        ])
    }),
    "a size below zero": metadata(state_dict_metadata={
        "model/a": dcp.TensorStorageMetadata(dcp.TensorProperties(torch.float32), torch.Size([-1]), [])
    }),
    "a type that is none": metadata(state_dict_metadata={
        "model/a": dcp.TensorStorageMetadata(dcp.TensorProperties("float32"), torch.Size([2]), [])  # type: ignore[arg-type]
    }),
}  # fmt: skip


@pytest.fixture
def checkpoint(training: Trainer, regression: type, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good one, of a training of two steps."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    table = {"train": {"steps": 2}, "optimizer": {"name": "adamw"}, "checkpoint": {"at_end": True}}
    paths = training(regression, Hoarder, **table).paths
    return paths.checkpoints / "step-000002"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that must not be there at the end: commands are executed in this folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    copyreg.add_extension("posix", "system", 0xF0)
    yield tmp_path / "here" / "CANARY"
    copyreg.remove_extension("posix", "system", 0xF0)  # type: ignore[no-untyped-call]


def remade(checkpoint: Path, name: str, content: bytes) -> list[str]:
    """Another content, with a manifest that fits: a stranger can do that. Returns what `verify` says of it."""
    (checkpoint / name).write_bytes(content)
    manifest = read_manifest(checkpoint)
    files = {**manifest.files, name: digest(checkpoint / name)}
    (checkpoint / "manifest.json").write_bytes(to_bytes(replace(manifest, files=files)))
    reasons = verify(checkpoint)
    assert all(": cannot be read: " in reason for reason in reasons), "the manifest does not fit"
    return reasons


def load(checkpoint: Path, name: str) -> Any:
    """What restoring reads of that file."""
    if name.startswith("state/"):
        return reader.read_tensors(checkpoint, "")
    return reader.read_values(checkpoint / name)


def test_the_corpus_does_what_it_means_to(canary: Path) -> None:
    pickle.loads(MEANT["reduce"])
    assert canary.exists(), "the commands would be executed here, if anything did"


def shapes(name: str, data: bytes) -> dict[str, bytes]:
    """A pickle as the contents of that file."""
    if name == "state/.metadata":
        return {"bare": data}
    return {"bare": data, "zipped": zipped(data), "legacy": legacy(data)}


@pytest.mark.parametrize("name", PLACES)
def test_nothing_is_executed(name: str, checkpoint: Path, canary: Path) -> None:
    accepted = []
    plain = {"a list"} if not name.startswith("state/") else set()
    for title, data in MEANT.items():
        for shape, content in shapes(name, data).items():
            assert remade(checkpoint, name, content) or title in plain, (title, shape)
            try:
                load(checkpoint, name)
            except BadCheckpoint:
                pass
            else:
                accepted += [(title, shape)] if title not in plain else []
            assert not canary.exists(), (title, shape)
    assert accepted == []
    assert not hasattr(dcp.Metadata, "polluted")
    assert not hasattr(torch.serialization._get_layout, "polluted")


@pytest.mark.parametrize("title", MISLEADING)
def test_metadata_that_leads_elsewhere(title: str, checkpoint: Path, canary: Path) -> None:
    assert remade(checkpoint, "state/.metadata", pickle.dumps(MISLEADING[title]))
    with pytest.raises(BadCheckpoint, match=r"\.metadata: cannot be read|state: cannot be read"):
        load(checkpoint, "state/.metadata")


# --- the whole way of a resume ---


@pytest.mark.parametrize("name", PLACES)
def test_a_training_that_is_given_it_ends(
    name: str, checkpoint: Path, canary: Path, training: Trainer, regression: type
) -> None:
    remade(checkpoint, name, zipped(MEANT["reduce"]) if name.endswith(".pt") else MEANT["reduce"])
    table = {"train": {"steps": 3}, "optimizer": {"name": "adamw"}}
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        training(regression, Hoarder, after=RunPaths(checkpoint.parent.parent), **table)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["training.pt", "rank-0.pt"])
@pytest.mark.parametrize("value", [[], {}, {"place": 1, "rng": 1}, "text"], ids=repr)
def test_values_that_are_others_than_a_checkpoint_has(
    name: str, value: Any, checkpoint: Path, training: Trainer, regression: type
) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    remade(checkpoint, name, buffer.getvalue())
    table = {"train": {"steps": 3}, "optimizer": {"name": "adamw"}}
    with pytest.raises(BadCheckpoint):
        training(regression, Hoarder, after=RunPaths(checkpoint.parent.parent), **table)


@pytest.mark.parametrize("name", PLACES)
def test_links_are_refused_before_anything_is_read(name: str, checkpoint: Path, tmp_path: Path) -> None:
    shutil.move(checkpoint / name, tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    assert verify(checkpoint) == [f"{name!r} is not a plain file"]
    shutil.copytree(checkpoint, tmp_path / "step-000002", symlinks=True)
    (tmp_path / "linked").symlink_to(tmp_path / "step-000002")
    assert "it is a symbolic link" in verify(tmp_path / "linked")
