"""Weights as safetensors, read back by the package of that name."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainrun.checkpoint import BadCheckpoint, Manifest, begin, digest, publish
from trainrun.errors import EnvironmentProblem, UsageError
from trainrun.worker.checkpoint import safetensors, shards
from trainrun.worker.checkpoint.export import export, main
from trainrun.worker.checkpoint.staging import Staging

WEIGHTS = {
    "first.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "first.bias": torch.tensor([0.5, -1.5], dtype=torch.bfloat16),
    "norm.num_batches_tracked": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "none": torch.empty(0, 5, dtype=torch.float16),
    "wéight ☃": torch.arange(3, dtype=torch.float64),
}


def saved(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    temp = begin(folder / "checkpoints", 300, 1)
    staging = Staging()
    staging.begin()
    staged = shards.stage(tensors, 0, staging)
    metadata, wanted = shards.plan([shards.rows(staged)])
    shards.finish(temp / "state", metadata, [shards.write(temp / "state", 0, staged, wanted[0])])
    files = {f"state/{path.name}": digest(path) for path in (temp / "state").iterdir()}
    facts = {"run": "digits", "attempt": 1, "step": 300, "epoch": 1, "samples_seen": 1, "world_size": 1, "created": 1.0}
    return publish(temp, Manifest(files=files, finite=True, **facts))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {f"model/{name}": tensor for name, tensor in WEIGHTS.items()}
    return saved(tmp_path_factory.mktemp("run"), state | {"optimizer/first.weight/exp_avg": torch.ones(3, 4)})


def test_the_weights_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    assert export(checkpoint, out) == len(WEIGHTS)
    found = load_file(out)
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "run": "digits", "step": "300"}
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("dtype", safetensors._DTYPES, ids=str)
def test_every_type(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor([0, 1, 2, 3]).to(dtype)
    with (tmp_path / "a").open("wb") as file:
        safetensors.write(file, {"odd": torch.tensor([True]), "a": tensor}, {})
    found = load_file(tmp_path / "a")["a"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_what_is_not_in_one_piece(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"turned": whole.t(), "part": whole[1:3, ::2], "spread": torch.ones(1).expand(3), "same": whole}
    with (tmp_path / "a").open("wb") as file:
        safetensors.write(file, tensors | {"again": whole}, {})
    found = load_file(tmp_path / "a")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(found["again"], whole)


def test_tensors_lie_where_their_type_wants_them(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        safetensors.write(file, {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(3, dtype=torch.float64)}, {})
    content = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header["b"]["data_offsets"] == [0, 24]
    assert header["a"]["data_offsets"] == [24, 27]


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex128), torch.eye(2).to_sparse()], ids=["c", "s"])
def test_what_the_format_does_not_have_is_named(tensor: torch.Tensor, tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file, pytest.raises(UsageError, match=r"odd: safetensors has no torch\."):
        safetensors.write(file, {"odd": tensor}, {})


def test_nothing_is_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights"
    out.write_text("mine")
    with pytest.raises(UsageError, match="the file exists; --force overwrites it"):
        export(checkpoint, out)
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    export(checkpoint, out, force=True)
    assert load_file(out).keys() == WEIGHTS.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_file_system_without_links(
    taken: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "weights"
    if taken:
        out.touch()
        with pytest.raises(UsageError, match="the file exists"):
            export(checkpoint, out)
    else:
        export(checkpoint, out)
        assert load_file(out).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("force", [True, False])
def test_a_write_that_fails_leaves_what_was_there(
    force: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "weights"
    if force:
        out.write_text("mine")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(EnvironmentProblem, match=r"weights: cannot be written: No space left on device"):
        export(checkpoint, out, force=force)
    assert [path.read_text() for path in tmp_path.iterdir()] == (["mine"] if force else [])


def test_a_folder_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="No such file or directory"):
        export(checkpoint, tmp_path / "nowhere" / "weights")


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="holds no weights"):
        export(saved(tmp_path, {"optimizer/a/b": torch.ones(1)}), tmp_path / "weights")


@pytest.mark.parametrize(("name", "code"), [("", 0), ("nothing", 4)])
def test_it_ends_with_our_exit_codes(
    name: str, code: int, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint / name), str(tmp_path / "weights")]) == code
    assert ("never completed" in capsys.readouterr().err) == bool(code)
    if not code:
        assert main([str(checkpoint), str(tmp_path / "weights")]) == 2
        assert main([str(checkpoint), str(tmp_path / "weights"), "--force"]) == 0


@pytest.mark.long
def test_a_stranger_s_checkpoint_executes_nothing(tmp_path: Path) -> None:
    """The whole way of the command: in a process of its own."""
    path = saved(tmp_path, {"model/a": torch.ones(1)})
    witness = tmp_path / "executed"
    (path / "state" / ".metadata").write_bytes(b"cos\nsystem\n(S'touch " + str(witness).encode() + b"'\ntR.")
    command = [sys.executable, "-P", "-m", "trainrun.worker.checkpoint.export", str(path), str(tmp_path / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 4
    assert "os.system" in done.stderr or "posix.system" in done.stderr
    assert not witness.exists()
    assert not (tmp_path / "weights").exists()
