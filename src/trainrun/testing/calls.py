"""Hook calls as `HookRecorder` wrote them down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainrun.rundir.files import read_lines
from trainrun.rundir.paths import RunPaths


@dataclass(frozen=True)
class Call:
    """One hook call on one rank; `rank` is None in the client.

    `arguments` holds plain values as they were, the type's name in place of all others, and for a provider the
    `answer`, its return value.
    """

    hook: str
    rank: int | None
    arguments: Mapping[str, Any]


def calls_file(paths: RunPaths) -> Path:
    """Return the path of a run's hook calls."""
    return paths.root / "calls.jsonl"


def read_calls(paths: RunPaths) -> list[Call]:
    """Return the calls of all ranks and of the client.

    Those of one process are in their order, those of several as they came.
    """
    return [Call(**record) for record in read_lines(calls_file(paths))[0]]
