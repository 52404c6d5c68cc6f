"""A tracker that writes what it is sent into a file, and fails or hangs while a file of that name is there."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainrun import Field, Recipe
from trainrun.tracking import Ending, Mark, Opened, Record, RunFacts, RunPaths, TrackerOptions, TrackerPlugin


class FileTracker:
    whole_steps = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, facts: RunFacts, mark: Mark) -> Opened:
        self.look()
        self.write("opened.jsonl", {"id": facts.id, "resumed": facts.resumed, "mark": dict(mark)})
        return Opened({"folder": str(self.folder)})

    def send(self, records: Sequence[Record]) -> Mark:
        self.look()
        for record in records:
            self.write("received.jsonl", {"step": record.step, **record.metrics})
        return {"folder": str(self.folder)}

    def finish(self, ending: Ending) -> None:
        self.look()
        self.write("ended.jsonl", {"state": ending.state, "step": ending.step, "metrics": dict(ending.metrics)})

    def close(self) -> None:
        pass

    def look(self) -> None:
        if (self.folder / "down").exists():
            raise ConnectionError("the server is down")
        if (self.folder / "hangs").exists():
            helper = subprocess.Popen(["sleep", "600"])
            (self.folder / "hanging").write_text(str(helper.pid))
            threading.Event().wait()

    def write(self, name: str, value: dict[str, Any]) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(value) + "\n")


class FileTrackerOptions(TrackerOptions):
    folder: Path = Field(description="Where to write.")


class ToFile(TrackerPlugin):
    """Writes into a file."""

    Options = FileTrackerOptions
    plugin = "to-file"

    def make_tracker(self, name: str, paths: RunPaths) -> FileTracker:
        return FileTracker(self.options.folder)

    @classmethod
    def place(cls, options: FileTrackerOptions, recipe: Recipe) -> str:
        del recipe
        return f"the folder {options.folder}"
