"""How each worker's process ended, as far as a backend could see it: `exits.json` in the attempt's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from trainrun.rundir.files import read_json, write_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import WorkerRecord


@dataclass(frozen=True)
class End:
    """One process that ended without a request of the client.

    `code` is its exit code, or minus the number of the signal that killed it, or None if it was not seen. It was still
    running at `seen_ns` of the monotonic clock; 0 if it was never seen alive. `orphaned`: it died with the fork server
    that it came from.
    """

    rank: int
    code: int | None
    seen_ns: int
    orphaned: bool = False


def write_ends(paths: RunPaths, attempt: int, ends: Mapping[int, End]) -> None:
    """Keep what is known of the ends of an attempt's workers."""
    write_json(paths.attempt(attempt) / "exits.json", {str(rank): asdict(end) for rank, end in ends.items()})


def read_ends(paths: RunPaths, attempt: int) -> dict[int, End]:
    """Return what `write_ends` kept; empty if there is nothing."""
    data = read_json(paths.attempt(attempt) / "exits.json") or {}
    return {int(rank): End(**end) for rank, end in data.items()}


def read_record(paths: RunPaths, attempt: int, rank: int) -> WorkerRecord | None:
    """Return a worker's record; None before the worker has written one."""
    data = read_json(paths.worker_record(attempt, rank))
    return None if data is None else WorkerRecord.from_json(data)


def read_records(paths: RunPaths, attempt: int, ranks: Iterable[int]) -> dict[int, WorkerRecord]:
    """Return the records of the workers `ranks` that have written one."""
    found = {rank: read_record(paths, attempt, rank) for rank in ranks}
    return {rank: record for rank, record in found.items() if record is not None}
