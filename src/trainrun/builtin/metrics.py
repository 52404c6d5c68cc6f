"""Every logged metric, one JSON line a log, in `metrics.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainrun.marker import hookimpl
from trainrun.rundir.files import append_line

if TYPE_CHECKING:
    from trainrun.worker.run import Run


class Metrics:
    """Write each log to `metrics.jsonl` as `{"step": …, "time": …, NAME: value, …}`."""

    @hookimpl
    def on_log(self, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """Append one line; `time` is in seconds since the epoch."""
        append_line(run.paths.metrics, {"step": step, "time": round(time.time(), 3), **metrics})
