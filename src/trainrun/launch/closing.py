"""The last lines of a run: how and why it ended, its paths, its best metrics, and what to read next."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomli

from trainrun.launch.committed import foreign_start, newest, short
from trainrun.printing import TRACE, shorten
from trainrun.rundir import typed
from trainrun.rundir.create import as_argument
from trainrun.rundir.files import read_lines, read_text
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome, how_it_ended
from trainrun.rundir.summary import DIED, read_status

_SMALLER_IS_BETTER = ("loss", "error", "perplexity", "nll", "mse", "mae", "rmse", "bits", "seconds", "time")
_BESTS = 3
_SURVIVED = {
    "disable": "plugin {plugin} failed in {hook}{times} (disabled)",
    "warn": "plugin {plugin} failed in {hook}{times} (the run continued)",
    "lost": "plugin {plugin}",
}


@dataclass(frozen=True)
class Best:
    """The best value of one evaluation metric, and the step it was reached at."""

    name: str
    value: float
    step: int

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} at step {self.step}"


def trace(outcome: Outcome) -> str | None:
    """Return the traceback of the first failing rank.

    Returns None if it has none to show.
    """
    failure = outcome.first_failure
    if failure is None or not failure.traceback:
        return None
    return shorten(failure.traceback.rstrip(), RunPaths(Path(outcome.run)).outcome, lines=TRACE)


def lines(outcome: Outcome) -> Iterator[str]:
    """Yield the closing lines of the run that ended with `outcome`."""
    paths = RunPaths(Path(outcome.run))
    failure = outcome.first_failure
    # The traceback has the rest of a message of many lines.
    reason = _first_line(outcome.reason) if trace(outcome) else shorten(outcome.reason, paths.outcome)
    yield how_it_ended(outcome.state, reason)
    yield from faults(paths)
    yield from _did(outcome, paths)
    yield f"run: {_short(paths.root)}"
    if failure is not None and failure.log:
        yield f"log: {_short(Path(failure.log))}"
    best = bests(paths)
    if best:
        yield f"best: {', '.join(map(str, best[:_BESTS]))}"
    yield from _resume(outcome, paths)
    yield f"details: trainrun why {as_argument(paths)}"


def _did(outcome: Outcome, paths: RunPaths) -> Iterator[str]:
    """Yield what the run did besides its steps.

    That is skipped updates, restarts, and how long it took.
    """
    events = read_lines(paths.events)[0]
    skips = {(str(event.get("plugin")), event.get("step")) for event in events if event.get("decision") == "skip"}
    if skips:
        counts = Counter(plugin for plugin, _ in skips)
        steps = len({step for _, step in skips})
        yield f"skipped: {steps} of {outcome.step} updates ({', '.join(f'{name} {counts[name]}' for name in counts)})"
    restarts = Counter(_first_line(str(event.get("reason"))) for event in events if event.get("event") == "restart")
    if restarts:
        causes = "; ".join(f"{reason}{_times(count)}" for reason, count in restarts.items())
        yield f"restarts: {restarts.total()} ({causes})"
    rate = typed.number(read_status(paths).get("samples_per_second"))
    took = f"took: {spent(outcome.ended - outcome.started)}" if outcome.ended > outcome.started else ""
    yield from filter(None, [took + (f", {rate:,.0f} samples/s" if took and rate else "")])


def _resume(outcome: Outcome, paths: RunPaths) -> Iterator[str]:
    """Yield the last checkpoint, and the command that resumes from it."""
    found = newest(paths)
    checkpoint = found.path if found is not None else foreign_start(paths)
    if checkpoint is None:
        return
    yield f"checkpoint: {short(paths, checkpoint)}"
    yield from resume_line(paths, outcome.state)


def resume_line(paths: RunPaths, state: str) -> Iterator[str]:
    """Yield the command that resumes a run that has not finished.

    The run is over. Yields nothing if there is nothing to resume.
    """
    over = state in {"stopped", "failed", "interrupted", "terminated"}
    if state == DIED or (over and (newest(paths) is not None or foreign_start(paths) is not None)):
        yield f"resume: trainrun resume {as_argument(paths)}"


def spent(seconds: float) -> str:
    """Return a length of time as hours, minutes and seconds.

    Short ones are given to the tenth of a second.
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{seconds:.1f} s"


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


def faults(paths: RunPaths) -> Iterator[str]:
    """Yield one line for each plugin that was slow or raised.

    Errors that were survived are meant. What training warned of has a line too.
    """
    seen: dict[tuple[str, str, str], list[str]] = {}
    warned: list[str] = []
    for event in read_lines(paths.events)[0]:
        if event.get("event") == "warning":
            warned.append(str(event.get("reason", "")))
        action = str(event.get("action") if event.get("event") == "fault" else event.get("decision"))
        if action in _SURVIVED:
            key = (str(event.get("plugin")), str(event.get("hook")), action)
            seen.setdefault(key, []).append(str(event.get("reason", "")))
    for (plugin, hook, action), reasons in seen.items():
        times = _times(len(reasons))
        what = _SURVIVED[action].format(plugin=plugin, hook=hook, times=times)
        yield f"warning: {what}: {_first_line(reasons[0])}"
    if warned:
        yield f"warning: {shorten(warned[0], paths.events)}{_times(len(warned))}"


def bests(paths: RunPaths) -> list[Best]:
    """Return the best value of each metric of the recipe's evaluation splits."""
    splits = tuple(f"{split}/" for split in _splits(paths))
    found: dict[str, Best] = {}
    for record in read_lines(paths.metrics)[0]:
        for name, value in record.items():
            if name.startswith(splits) and (finite := typed.number(value)) is not None:
                _keep_better(found, Best(name, finite, typed.whole(record.get("step")) or 0))
    return sorted(found.values(), key=lambda best: (_smaller(best.name), best.name))


def _splits(paths: RunPaths) -> list[str]:
    try:
        splits = tomli.loads(read_text(paths.recipe) or "")["evaluate"]["splits"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
    return [split for split in splits if isinstance(split, str)] if isinstance(splits, list) else []


def _keep_better(found: dict[str, Best], new: Best) -> None:
    old = found.get(new.name)
    better = old is None or (new.value < old.value if _smaller(new.name) else new.value > old.value)
    if better:
        found[new.name] = new


def _smaller(name: str) -> bool:
    return name.rpartition("/")[2].lower().endswith(_SMALLER_IS_BETTER)


def _first_line(text: str) -> str:
    first, _, more = text.partition("\n")
    return f"{shorten(first)} …" if more else shorten(first)


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
