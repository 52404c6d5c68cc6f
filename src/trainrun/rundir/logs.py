"""What a run has logged, from its files: structured records, workers' raw output and the agent's, as one kind of entry.

Client and workers log on their own; entries of several files are put in order by their times.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trainrun.rundir.files import decode
from trainrun.rundir.growing import Growing, Line
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.typed import LATEST

Source = Literal["output", "records", "metrics", "client", "agent"]

SOURCES: tuple[Source, ...] = ("output", "records", "metrics", "client", "agent")
SERIOUS = frozenset({"warning", "error", "critical", "exception"})

_ALWAYS_KNOWN = {"event", "level", "timestamp", "time", "run", "rank"}


class Entry(NamedTuple):
    """One line of raw output, or one record with what was logged in `fields`.

    `time` is in seconds since the epoch: a record's own, or about when a line was written.
    """

    time: float
    source: Source
    rank: int | None
    level: str
    text: str
    fields: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values, its time as ISO text."""
        moment = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        return {**self._asdict(), "time": moment, "fields": dict(self.fields)}


class Wanted(NamedTuple):
    """Which entries are wanted. Of ranks that are not among `ranks` (None: all are) still `SERIOUS` records, if asked.

    since: seconds since the epoch.
    """

    sources: frozenset[Source] = frozenset(SOURCES)
    ranks: frozenset[int] | None = None
    serious_of_all: bool = False
    since: float = 0.0

    def takes(self, entry: Entry) -> bool:
        """Return whether this entry is wanted."""
        if entry.time < self.since:
            return False
        chosen = self.ranks is None or entry.rank is None or entry.rank in self.ranks
        return chosen or (self.serious_of_all and entry.source == "records" and entry.level in SERIOUS)

    def reads(self, source: Source, rank: int | None) -> bool:
        """Return whether a file can hold wanted entries."""
        if source not in self.sources:
            return False
        in_ranks = self.ranks is None or rank is None or rank in self.ranks
        return in_ranks or (self.serious_of_all and source == "records")


class Logs:
    """The wanted entries of one run. `read` yields those that came since the last call."""

    def __init__(self, paths: RunPaths, wanted: Wanted) -> None:
        self._paths = paths
        self._wanted = wanted
        self._files: dict[Path, _File] = {}

    def read(self, *, last: bool = False, arrived: float = 0.0) -> Iterator[Entry]:
        """Yield the new entries in the order of their times.

        last: there is no writer any more, so take unfinished lines too.
        arrived: raw output that is new was not written before this time; for calls in quick succession.
        """
        for path, source, rank in _files(self._paths):
            if path not in self._files and self._wanted.reads(source, rank):
                self._files[path] = _File(Growing(path, self._wanted.since), source, rank)
        streams = [file.entries(last, arrived) for file in self._files.values()]
        return filter(self._wanted.takes, heapq.merge(*streams, key=lambda entry: entry.time))


class _File(NamedTuple):
    growing: Growing
    source: Source
    rank: int | None

    def entries(self, last: bool, arrived: float) -> Iterator[Entry]:
        lines = self.growing.finish() if last else self.growing.read()
        if self.source in {"output", "agent"}:
            return (self._output(line, arrived) for line in lines)
        return self._records(lines)

    def _output(self, line: Line, arrived: float) -> Entry:
        text = line.data.decode(errors="replace")
        _, is_node, node = self.growing.path.stem.partition("agent-")
        return Entry(max(line.time, arrived), self.source, self.rank, "info", text, {"node": node} if is_node else {})

    def _records(self, lines: Iterable[Line]) -> Iterator[Entry]:
        before = 0.0
        for line in lines:
            entry = self._record(line, before)
            before = entry.time
            yield entry

    def _record(self, line: Line, before: float) -> Entry:
        record = decode(line.data)
        if record is None:  # its writer died within it
            return self._output(line, 0.0)._replace(time=before)
        if self.source == "metrics":
            fields = {name: value for name, value in record.items() if name not in {"step", "time"}}
            return Entry(max(before, _time(record)), self.source, None, "info", f"step {record.get('step')}", fields)
        level, event = str(record.get("level", "info")), str(record.get("event", ""))
        fields = {name: value for name, value in record.items() if name not in _ALWAYS_KNOWN}
        return Entry(max(before, _time(record)), self.source, self.rank, level, event, fields)


def _files(paths: RunPaths) -> Iterator[tuple[Path, Source, int | None]]:
    yield paths.client_log, "client", None
    yield paths.metrics, "metrics", 0
    try:
        stems = {entry.stem.partition("-")[::2] for entry in paths.logs.iterdir()}
    except OSError:
        return
    for node in sorted({0, *(int(number) for kind, number in stems if kind == "agent" and number.isdecimal())}):
        yield paths.node_log(node), "agent", None
    for rank in sorted(int(number) for kind, number in stems if kind == "rank" and number.isdecimal()):
        yield paths.rank_log(rank), "records", rank
        yield paths.rank_output(rank), "output", rank


def _time(record: Mapping[str, Any]) -> float:
    """Return when a record was made.

    Workers write ISO text, the client a number.
    """
    with suppress(ValueError, TypeError, OverflowError, KeyError):
        stamp = record.get("timestamp")
        moment = float(record["time"]) if stamp is None else datetime.fromisoformat(str(stamp)).timestamp()
        return moment if 0 <= moment < LATEST else 0.0
    return 0.0
