"""The client's own log: what it did and when, one JSON line each, in `logs/client.jsonl`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from trainrun.marker import hookimpl
from trainrun.rundir.files import append_line
from trainrun.rundir.records import Outcome

if TYPE_CHECKING:
    from trainrun.launch.handle import Launch


class Journal:
    """Write each phase of a launch to `logs/client.jsonl`."""

    on_error = "warn"

    @hookimpl
    def on_launch_start(self, launch: Launch) -> None:
        self._write(launch, "launch_start", workers=launch.workers)

    @hookimpl
    def on_package_start(self, launch: Launch) -> None:
        self._write(launch, "package_start")

    @hookimpl
    def on_package_end(self, launch: Launch, snapshot: str) -> None:
        self._write(launch, "package_end", snapshot=snapshot)

    @hookimpl
    def on_attempt_start(self, launch: Launch, attempt: int) -> None:
        self._write(launch, "attempt_start", attempt=attempt)

    @hookimpl
    def on_attempt_end(self, launch: Launch, attempt: int, outcome: Outcome) -> None:
        self._write(launch, "attempt_end", attempt=attempt, state=outcome.state, reason=outcome.reason)

    @hookimpl
    def on_completed(self, launch: Launch | None, outcome: Outcome, locus: str) -> None:
        if launch is not None:
            self._write(launch, "completed", locus=locus, state=outcome.state)

    @hookimpl
    def on_launch_end(self, launch: Launch, outcome: Outcome) -> None:
        self._write(launch, "launch_end", state=outcome.state, exit_code=outcome.exit_code, reason=outcome.reason)

    def _write(self, launch: Launch, event: str, **values: Any) -> None:
        append_line(launch.paths.client_log, {"time": time.time(), "event": event, **values})
