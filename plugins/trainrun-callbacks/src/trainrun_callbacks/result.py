"""The result of a run as one JSON document."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainrun import Field, PluginOptions, hookimpl
from trainrun_callbacks import records

if TYPE_CHECKING:
    from trainrun import Launch, Outcome, Recipe

FILE = "result.json"

_MONITORS = {"best-checkpoint", "early-stopping"}


class ResultOptions(PluginOptions):
    """The metrics of which to record the best."""

    best: dict[str, Literal["min", "max"]] = Field(
        {},
        description="Metrics whose best value to report, each with `min` or `max`; those that `best-checkpoint` and "
        "`early-stopping` monitor are included automatically.",
    )


class Result:
    """Write `result.json` when a run is over, however it ended: outcome, last and best metrics, duration, failure."""

    Options = ResultOptions
    on_error = "warn"

    def __init__(self, options: ResultOptions) -> None:
        self._options = options
        self._began = time.time()

    @hookimpl
    def on_launch_start(self) -> None:
        self._began = time.time()

    @hookimpl
    def on_launch_end(self, launch: Launch, outcome: Outcome) -> None:
        last, best = _metrics(launch.paths.metrics, self._modes(launch.recipe))
        _warn(launch, [name for name in self._options.best if last and name not in last], list(last))
        failure = outcome.first_failure
        told = {
            "version": 1,
            "run": launch.run_id,
            "state": outcome.state,
            "ok": outcome.ok,
            "exit_code": outcome.exit_code,
            "reason": outcome.reason,
            "step": outcome.step,
            "attempts": outcome.attempt,
            "started": self._began,
            "ended": time.time(),
            "seconds": round(time.time() - self._began, 3),
            "metrics": last,
            "best": best,
            "failure": None
            if failure is None
            else {"rank": failure.rank, "type": failure.type, "message": failure.message},
        }
        records.write_json(launch.paths.root / FILE, told)

    def _modes(self, recipe: Recipe) -> dict[str, str]:
        used = [table for name, table in recipe.plugins.items() if (table.use or name) in _MONITORS]
        tables = [table.options for table in used if table.enabled is True]
        watched = {str(table["monitor"]): str(table.get("mode", "min")) for table in tables if "monitor" in table}
        return {**watched, **self._options.best}


def read_results(runs: Path) -> list[dict[str, Any]]:
    """Return the contents of each `result.json` in a folder of runs.

    The run that was launched first comes first. Links to runs do not count, and neither do runs that have no result.
    Raises ValueError if one is no JSON.
    """
    files = [path / FILE for path in runs.glob("*") if not path.is_symlink()]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
    return sorted(found, key=lambda one: (one["started"], one["run"]))


def _metrics(path: Path, modes: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return each metric's last value and step, and some best values."""
    last: dict[str, Any] = {}
    best: dict[str, dict[str, Any]] = {}
    for record in records.read(path):
        step = record.get("step")
        for name, value in record.items():
            if name in {"step", "time", "partial"}:
                continue
            last[name] = {"value": value, "step": step}
            if name in modes and isinstance(value, int | float) and _better(value, best.get(name), modes[name]):
                best[name] = {"value": value, "step": step, "mode": modes[name]}
    return last, best


def _warn(launch: Launch, missing: list[str], known: list[str]) -> None:
    """Record among the run's events that required metrics were never logged.

    These are metrics which the recipe names.
    """
    if missing:
        reason = f"result: best names {', '.join(missing)}, never logged; there were: {', '.join(sorted(known))}"
        records.append_event(launch.paths.events, {"event": "warning", "time": time.time(), "reason": reason})


def _better(value: float, old: Mapping[str, Any] | None, mode: str) -> bool:
    if old is None:
        return True
    return value > float(old["value"]) if mode == "max" else value < float(old["value"])
