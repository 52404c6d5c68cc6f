from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import Manifest, begin, digest, publish, sync

Save = Callable[..., Path]
Describe = Callable[..., Manifest]

VALUES = {"training.pt": "place in the data", "rank-0.pt": "random numbers", "plugins/clock.pt": "tick"}
FILES = ("state/.metadata", "state/__0_0.distcp", *VALUES)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    return folder


@pytest.fixture
def write(checkpoints: Path, checkpoint_files: Callable[..., Mapping[str, bytes]]) -> Save:
    """Write the files of a checkpoint of a step, and do not publish it."""

    def write(step: int) -> Path:
        temp = begin(checkpoints, step, 1)
        values = {name: f"{text} {step}" for name, text in VALUES.items()}
        for name, content in checkpoint_files(step, values).items():
            (temp / name).write_bytes(content)
            sync(temp / name)
        return temp

    return write


@pytest.fixture
def describe() -> Describe:
    """The manifest of what `write` wrote."""

    def describe(temp: Path, step: int, **more: Any) -> Manifest:
        files = {name: digest(temp / name) for name in FILES}
        facts: dict[str, Any] = {
            "run": "digits",
            "attempt": 1,
            "epoch": 1,
            "samples_seen": 64 * step,
            "world_size": 1,
            "finite": True,
        }
        return Manifest(step=step, created=time.time(), files=files, **{**facts, **more})

    return describe


@pytest.fixture
def save(write: Save, describe: Describe) -> Save:
    """Save and publish a checkpoint of a step, with small files of known contents."""

    def save(step: int, **more: Any) -> Path:
        temp = write(step)
        return publish(temp, describe(temp, step, **more))

    return save


@pytest.fixture
def damage() -> Callable[[Path], None]:
    """Change one bit of a file of a checkpoint, and nothing of its size."""

    def damage(checkpoint: Path, name: str = "rank-0.pt") -> None:
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)

    return damage
