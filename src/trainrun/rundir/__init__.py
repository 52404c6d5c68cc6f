"""The run directory: its layout, its records, and its owner. Client and workers meet only here."""

from __future__ import annotations

from trainrun.rundir.create import create, find
from trainrun.rundir.lease import Lease, LeaseInfo, held
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Failure, Origin, Outcome, Stop, WorkerError, WorkerRecord

__all__ = [
    "Failure",
    "Lease",
    "LeaseInfo",
    "Origin",
    "Outcome",
    "RunPaths",
    "Stop",
    "WorkerError",
    "WorkerRecord",
    "create",
    "find",
    "held",
]
