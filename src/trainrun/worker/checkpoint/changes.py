"""What a resume has changed, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trainrun.worker.checkpoint.settings import Changes, Group, shown
from trainrun.worker.schedule import TO_ZERO, Schedule


def sentences(changes: Changes, scheduler: Any, step: int, *, length: str) -> list[str]:
    """Return what has changed, the rates with the last sentence.

    length: the recipe's key for it.
    """
    found = [
        *_of_groups(changes.groups),
        *_of_settings(scheduler, changes.settings, length),
        *_of_length(changes, scheduler, length),
    ]
    if rates := _rates(changes.rates, step):
        *others, last = found or ["the schedule has changed"]
        return [*others, f"{last}; {rates}"]
    return found


def _of_groups(groups: Sequence[Group]) -> Iterator[str]:
    places: dict[tuple[str, str, str], list[int]] = {}
    for place, group in enumerate(groups):
        for key, (was, now) in {**group.changed, **group.rescheduled}.items():
            places.setdefault((key, shown(was), shown(now)), []).append(place)
    # Rates come last: what they are from now on is reported right after them.
    for (key, was, now), where in sorted(places.items(), key=lambda one: one[0][0] == "lr"):
        of = "" if len(where) == len(groups) else f" of group {', '.join(map(str, where))}"
        yield f"optimizer: {key}{of} was {was} and is {now}"


def _of_settings(scheduler: Any, settings: Sequence[tuple[str, Any, Any]], length: str) -> Iterator[str]:
    own = scheduler is None or isinstance(scheduler, Schedule)
    for key, was, now in settings:
        if own and key == "steps":
            if scheduler.name in TO_ZERO:
                yield f"{length} was {was} and is {now}: the {scheduler.name} schedule is now that of {now} steps"
        elif not key.startswith("_"):
            table = "scheduler" if own else type(scheduler).__name__
            yield f"{table}: {key} was {shown(was)} and is {shown(now)}"


def _of_length(changes: Changes, scheduler: Any, length: str) -> Iterator[str]:
    """Say whether a scheduler of the task follows another length."""
    was, now = changes.steps
    if was == now or scheduler is None or isinstance(scheduler, Schedule):
        return
    name = type(scheduler).__name__
    follows = "changes with it" if changes.settings else "has the same settings as before, so it continues as it was"
    yield f"{length} was {was} and is {now}: the {name} {follows}"


def _rates(rates: Sequence[tuple[float, float]], step: int) -> str:
    several = len(rates) > 1
    changed = [
        f"the rate{f' of group {place}' if several else ''} goes from {was:.6g} to {now:.6g}"
        for place, (was, now) in enumerate(rates)
        if was != now
    ]
    return f"at step {step + 1} {', '.join(changed)}" if changed else ""
