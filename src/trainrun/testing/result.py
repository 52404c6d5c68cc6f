"""What a test gets to see of a run that is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainrun.rundir.files import read_lines
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome
from trainrun.testing.calls import Call, read_calls


@dataclass(frozen=True)
class Result:
    """A finished run. `error` is what a run without a client raised, if that was expected.

    reports: of a run on forked ranks, what `report` returned on each.
    """

    outcome: Outcome
    paths: RunPaths
    error: BaseException | None = None
    reports: Sequence[Any] = ()

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One record for each log: `step`, `time`, and the metrics by name."""
        return read_lines(self.paths.metrics)[0]

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Decisions, attempts and faults, as `trainrun why` shows them."""
        return read_lines(self.paths.events)[0]

    @cached_property
    def calls(self) -> list[Call]:
        """The hook calls, if `hook_recorder` was among the plugins."""
        return read_calls(self.paths)

    def series(self, name: str) -> dict[int, float]:
        """Return one metric's values by step; empty if never logged."""
        return {record["step"]: record[name] for record in self.metrics if name in record}

    def hooks(self, rank: int | None = 0) -> list[str]:
        """Return the names of the recorded hooks on one rank.

        They are in the order of the calls. For None, those of the client.
        """
        return [call.hook for call in self.calls if call.rank == rank]

    def output(self, rank: int = 0) -> str:
        """Return what a real worker printed.

        What a run in the test's own process prints is for `capsys`.
        """
        parts = (self.paths.rank_output_old(rank), self.paths.rank_output(rank))
        return "".join(part.read_text(encoding="utf-8", errors="replace") for part in parts if part.exists())
