"""The event files of one run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from trainrun.tracking import Ending, Mark, Opened, Record, RunFacts
from trainrun_tensorboard import encoding

_PREFIX = "events.out.tfevents"
_END = ".end"


class EventFiles:
    """Writes event files into `folder`. What stands in one behind the mark is cut off before more is written.

    So a process that was killed between writing and taking note has written nothing, and no point is there twice. How
    the run ended stands in a file of its own, which is removed when the run is resumed.
    """

    whole_steps = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""
        self._size = 0
        self._descriptor: int | None = None

    def open(self, facts: RunFacts, mark: Mark) -> Opened:
        self._folder.mkdir(parents=True, exist_ok=True)
        ended = list(self._folder.glob(f"{_PREFIX}.*{_END}"))
        name, size = str(mark.get("file", "")), int(mark.get("size", 0))
        path = self._folder / name
        if name and not ended and path.is_file() and path.stat().st_size >= size:
            self._go_on(path, size)
        else:
            self._begin(facts, first=not name or not path.is_file(), after=name)
        for old in ended:
            old.unlink()
        return Opened(self._mark())

    def send(self, records: Sequence[Record]) -> Mark:
        self._write(*(encoding.scalars(record.time, record.step, record.metrics) for record in records))
        return self._mark()

    def finish(self, ending: Ending) -> None:
        now = time.time()
        status = encoding.SUCCESS if ending.exit_code == 0 else encoding.FAILURE
        said = f"**{ending.state}** at step {ending.step}, exit code {ending.exit_code}\n\n{ending.reason}"
        if ending.metrics:
            said += f"\n\n{_table(ending)}"
        events = (
            encoding.version(now),
            encoding.session_end(now, status),
            encoding.text(now, ending.step, "outcome", said),
        )
        scratch = self._folder / f".{self._name}{_END}"
        scratch.write_bytes(b"".join(map(encoding.frame, events)))
        scratch.replace(self._folder / f"{self._name}{_END}")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _go_on(self, path: Path, size: int) -> None:
        self._name, self._size = path.name, size
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(self._descriptor, size)

    def _begin(self, facts: RunFacts, *, first: bool, after: str) -> None:
        """Begin a new file, whose name sorts behind the last one's.

        TensorBoard reads them in that order.
        """
        now = time.time()
        stamp = max(int(now), _stamp(after) + 1)
        self._name, self._size = f"{_PREFIX}.{stamp:010d}.{facts.id}", 0
        path = self._folder / self._name
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._write(encoding.version(now))
        if first:
            recipe = f"```toml\n{facts.recipe}\n```"
            self._write(
                encoding.session_start(now, facts.id, facts.parameters), encoding.text(now, 0, "recipe", recipe)
            )

    def _write(self, *events: bytes) -> None:
        """Write all of the events, or none.

        What a full disk has room for is taken back.
        """
        assert self._descriptor is not None
        data = b"".join(map(encoding.frame, events))
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def _mark(self) -> Mark:
        return {"file": self._name, "size": self._size}


def _table(ending: Ending) -> str:
    """Return the last value of each metric, as Markdown."""
    rows = (f"| {name} | {value:.6g} |" for name, value in sorted(ending.metrics.items()))
    return "\n".join(("| metric | last value |", "| --- | --- |", *rows))


def _stamp(name: str) -> int:
    part = name.removeprefix(f"{_PREFIX}.").partition(".")[0]
    return int(part) if part.isdecimal() else 0
