"""The plugin `tensorboard`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from trainrun import Field
from trainrun.tracking import RunPaths, Tracker, TrackerOptions, TrackerPlugin
from trainrun_tensorboard.writer import EventFiles

if TYPE_CHECKING:
    from trainrun import Recipe


class TensorBoardOptions(TrackerOptions):
    """Where to write."""

    folder: Path = Field(
        Path("tensorboard"),
        description="Folder for event files: relative to the run directory, or absolute, with a subfolder per run.",
    )

    @pydantic.field_validator("folder")
    @classmethod
    def _within_the_run(cls, folder: Path) -> Path:
        if str(expanded := _expanded(folder)).startswith("~"):
            raise ValueError(f"got '{folder}', and there is no such home; give the whole path")
        if ".." in folder.parts and not expanded.is_absolute():
            raise ValueError(f"got '{folder}', which leaves the run's folder; give one within it, or an absolute one")
        return folder


class TensorBoard(TrackerPlugin):
    """Write metrics, hyper-parameters, the recipe and the outcome as TensorBoard's event files.

    A separate process next to the client writes them, so that training does not wait for the disk. It needs no package:
    TensorBoard itself is only needed to view them.
    """

    Options = TensorBoardOptions
    plugin = "tensorboard"

    def make_tracker(self, name: str, paths: RunPaths) -> Tracker:
        del name
        folder = _expanded(self.options.folder)
        return EventFiles(folder / paths.run_id if folder.is_absolute() else paths.root / folder)

    @classmethod
    def place(cls, options: TensorBoardOptions, recipe: Recipe) -> str:
        del recipe
        return f"the folder {_expanded(options.folder)}"


def _expanded(folder: Path) -> Path:
    # Path.expanduser raises what no validator may if the home is not known.
    return Path(os.path.expanduser(folder))  # noqa: PTH111
