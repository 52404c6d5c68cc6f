"""Every logged metric, one JSON line a log, in `metrics.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainrun.marker import hookimpl
from trainrun.rundir.files import append_line, encode, read_lines, write_atomic

if TYPE_CHECKING:
    from trainrun.worker.run import Run


_PARTIAL = "partial"


class Metrics:
    """Write each log to `metrics.jsonl` as `{"step": …, "time": …, NAME: value, …}`."""

    def __init__(self) -> None:
        self._stopped = False
        self._ended = False

    @hookimpl(ranks="zero")
    def on_train_start(self, run: Run) -> None:
        """Drop partial records, and the records of steps that are made again.

        An earlier attempt has made these steps, and this one makes them again.
        """
        if not run.paths.metrics.exists():
            return
        records, whole = read_lines(run.paths.metrics)
        kept = [record for record in records if int(record.get("step", 0)) <= run.step and _PARTIAL not in record]
        # A worker that is killed may leave half a line, which the next record would be glued to.
        if len(kept) < len(records) or whole < run.paths.metrics.stat().st_size:
            write_atomic(run.paths.metrics, "".join(encode(record) + "\n" for record in kept))

    @hookimpl(ranks="zero")
    def on_stop_requested(self) -> None:
        self._stopped = True

    @hookimpl(ranks="zero")
    def on_train_end(self) -> None:
        self._ended = True

    @hookimpl
    def on_log(self, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """Append one line; `time` is in seconds since the epoch.

        A stop between two logs leaves a partial one. The checkpoint has what it says too, so that after a resume the
        next log says it again.
        """
        partial = {_PARTIAL: True} if self._stopped and self._ended and "train/loss" in metrics else {}
        append_line(run.paths.metrics, {"step": step, "time": round(time.time(), 3), **partial, **metrics})
