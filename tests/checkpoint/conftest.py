from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import Manifest, begin, digest, publish

Save = Callable[..., Path]

FILES = {
    "state/.metadata": b"\x80\x04metadata",
    "state/__0_0.distcp": bytes(range(256)) * 20,
    "training.json": b'{"step": 1}\n',
    "rank-0.pt": b"rank zero",
    "plugins/clock.pt": b"tick",
}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def save(checkpoints: Path) -> Save:
    """Save and publish a checkpoint of a step, with small files of known contents."""

    def save(step: int, folder: Path = checkpoints, **more: Any) -> Path:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temp = begin(folder, step, 1)
        fill(temp, step)
        return publish(temp, manifest(temp, step, **more))

    return save


def fill(temp: Path, step: int) -> None:
    for name, content in FILES.items():
        (temp / name).write_bytes(content + str(step).encode())


def manifest(temp: Path, step: int, **more: Any) -> Manifest:
    files = {name: digest(temp / name) for name in FILES}
    facts: dict[str, Any] = {"run": "digits", "attempt": 1, "epoch": 1, "samples_seen": 64 * step, "world_size": 1}
    return Manifest(step=step, created=time.time(), files=files, **{**facts, **more})
