"""Reading the histograms that `wandb-watch` has left in the run directory, as they are asked for."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

SUFFIX = ".jsonl"


class Histograms:
    """The files of all watching plugins in one folder, read once, in the order of steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, BufferedReader] = {}

    def at(self, step: int) -> dict[str, Any]:
        """Return W&B's histograms of this step, by name.

        What is of earlier steps is passed over for good.
        """
        import wandb  # noqa: PLC0415 - only in the tracker's process

        found: dict[str, Any] = {}
        for path in self._folder.glob(f"*{SUFFIX}"):
            for name, one in self._of(path, step).items():
                edges = [one["low"] + (one["high"] - one["low"]) * place / len(one["counts"]) for place in _places(one)]
                found[name] = wandb.Histogram(np_histogram=(one["counts"], edges))
        return found

    def close(self) -> None:
        """Close the files; the next call begins anew."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _of(self, path: Path, step: int) -> dict[str, Any]:
        file = self._files.get(path)
        if file is not None and path.stat().st_ino != _inode(file):
            file.close()
            file = None
        if file is None:
            file = self._files[path] = path.open("rb")
        while (line := file.readline()).endswith(b"\n"):
            with suppress(ValueError):  # half a line, of a worker that was killed
                record = json.loads(line)
                if record["step"] == step:
                    histograms: dict[str, Any] = record["histograms"]
                    return histograms
                if record["step"] > step:
                    break
        file.seek(-len(line), os.SEEK_CUR)
        return {}


def _places(one: dict[str, Any]) -> range:
    return range(len(one["counts"]) + 1)


def _inode(file: BufferedReader) -> int:
    return os.fstat(file.fileno()).st_ino
