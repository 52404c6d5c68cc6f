"""What an attempt is doing and how long it will take: for the live line, and for `trainrun watch`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, get_args

from trainrun.rundir.files import read_lines
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.pulse import Beat
from trainrun.rundir.records import State

_BUILDING = {
    "build_model": "building the model",
    "parallelize_model": "wrapping the model",
    "build_optimizer": "building the optimizer",
    "build_scheduler": "building the scheduler",
    "build_dataset": "building the dataset",
    "build_dataloader": "building the data loader",
}


def activity(paths: RunPaths, attempt: int, workers: int, beat: Beat | None) -> str | None:
    """Return what the workers do; None while they make training steps. beat: of rank 0, None before its first."""
    requests = paths.requests(attempt)
    if requests.exists() and any(one.get("request") == "stop" for one in read_lines(requests)[0]):
        return "stopping"
    if beat is None or beat.phase == "starting":
        return f"starting {workers} worker{'s' if workers > 1 else ''}"
    words = {
        "setup": _BUILDING.get(beat.hook or "", "setting up"),
        "evaluation": f"evaluating {beat.done}/{beat.total}" if beat.total else "evaluating",
        "saving": f"saving step {beat.step}",
        "ending": "ending",
        "training": None if beat.own_steps else "loading the first batch",
    }
    return words.get(beat.phase)


def seconds_left(status: Mapping[str, Any], beat: Beat | None = None) -> float | None:
    """Estimate the seconds to the end of the run.

    The estimate uses what the steps and evaluations of this attempt took. Returns None while nothing is known, as
    before the first logged step of an attempt, and once it has ended.

    status: what rank 0 last wrote.
    beat: its pulse, for what has happened since; None if it is on another machine.
    """
    clock, step, steps = status.get("clock"), status.get("step") or 0, status.get("steps")
    ended = status.get("state") in get_args(State)
    if ended or not isinstance(clock, Mapping) or not clock.get("steps") or not steps:
        return None
    pace: float = clock["training"] / clock["steps"]
    each: float | None = clock["evaluation"] / clock["evaluations"] if clock.get("evaluations") else None
    under_way = 0.0
    if beat is not None:
        step = max(step, beat.step)
        if beat.phase == "evaluation":
            elapsed = (time.monotonic_ns() - beat.moved_ns) / 1e9
            if each is None and beat.done and beat.total:
                each = elapsed * beat.total / beat.done
            under_way = max(0.0, (each or 0.0) - elapsed)
    rest: float = (steps - step) * pace
    return rest + _evaluations_ahead(clock, step, steps) * (each or 0.0) + under_way


def _evaluations_ahead(clock: Mapping[str, Any], step: int, steps: int) -> float:
    """Return how many evaluations begin after `step`.

    One is at the end of training.
    """
    every = clock.get("evaluate_every")
    if step >= steps:
        return 0
    if isinstance(every, int):
        return steps // every - step // every + (steps % every != 0)
    by_epoch = (steps - step) * (clock.get("evaluations") or 0) / clock["steps"] if every else 0
    return max(1, by_epoch)
