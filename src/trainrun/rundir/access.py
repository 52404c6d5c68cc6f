"""Runs from Python: list them, and read the state and metrics of one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from trainrun.errors import UsageError
from trainrun.rundir.create import find, run_ids
from trainrun.rundir.files import read_lines
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import Summary, summarize
from trainrun.rundir.view import View, Viewer

Frame = Literal["pandas", "polars"]


def runs(dir: str | Path = "runs") -> list[Summary]:  # noqa: A002 - the recipe's own word
    """Return the runs in a folder, the newest first.

    They are as `trainrun ps` shows them.
    """
    base = Path(dir)
    return [summarize(RunPaths((base / run_id).resolve())) for run_id in reversed(run_ids(base))]


def status(run: str = "latest", dir: str | Path = "runs") -> View:  # noqa: A002
    """Return the state of a run.

    That is its summary, what rank 0 last wrote, each worker, attempts, and the last events.

    run: an id, a part of one, a path, or "latest".

    Raises UsageError if there is none, or several.
    """
    return Viewer(find(run, Path(dir))).look()


def read_metrics(run: str = "latest", dir: str | Path = "runs", *, frame: Frame | None = None) -> Any:  # noqa: A002
    """Return the metrics that a run has logged, as columns.

    There is one row for each step.

    run: an id, a part of one, a path, or "latest".
    frame: "pandas" or "polars" for a DataFrame of that package, which must be installed. Without it, a dict of lists.

    The columns are `step`, `time` (seconds since the epoch), and every metric by its name. A step without a value of a
    metric has None. Raises UsageError if there is no such run, or the package of `frame` is not installed.
    """
    rows: dict[int, dict[str, Any]] = {}
    for record in read_lines(find(run, Path(dir)).metrics)[0]:
        if isinstance(step := record.get("step"), int):
            rows.setdefault(step, {}).update(record)
    names = dict.fromkeys(["step", "time", *(name for row in rows.values() for name in row)])
    columns = {name: [rows[step].get(name) for step in sorted(rows)] for name in names}
    if frame is None:
        return columns
    try:
        return importlib.import_module(frame).DataFrame(columns)
    except ModuleNotFoundError:
        raise UsageError(
            f"frame = {frame!r}: {frame} is not installed; pip install {frame}, or leave frame out"
        ) from None
