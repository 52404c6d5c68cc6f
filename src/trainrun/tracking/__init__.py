"""Shipping a run's metrics to experiment trackers. What plugins such as `trainrun-mlflow` are made of.

`metrics.jsonl` is the queue: a process next to the client reads it, and remembers how far it has got. Training never
waits for a tracker, nothing is lost while one cannot be reached, and `trainrun sync` sends the rest later.
"""

from __future__ import annotations

from trainrun.rundir.paths import RunPaths
from trainrun.tracking.facts import Ending, RunFacts
from trainrun.tracking.plugin import TrackerPlugin
from trainrun.tracking.spool import Position, Record, Spool
from trainrun.tracking.tracker import Mark, Opened, ServerOptions, Tracker, TrackerOptions

__all__ = [
    "Ending",
    "Mark",
    "Opened",
    "Position",
    "Record",
    "RunFacts",
    "RunPaths",
    "ServerOptions",
    "Spool",
    "Tracker",
    "TrackerOptions",
    "TrackerPlugin",
]
