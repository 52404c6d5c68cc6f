"""The order of the instances: built-ins, the task, then the recipe's order, bent by `before` and `after`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from trainrun.plugin.instance import Instance

_ROLES = {"builtin": 0, "task": 1, "plugin": 2}


class Order(NamedTuple):
    """`instances` in plan order, and in `cycle` those whose constraints contradict each other."""

    instances: tuple[Instance, ...]
    cycle: tuple[str, ...] = ()


def plan_order(instances: Sequence[Instance]) -> Order:
    """Sort instances stably, such that every constraint is met.

    An instance is held back only until those have gone that a constraint puts before it. `before` and `after` may name
    an instance, or a plugin: then all its instances are meant. Names that are not enabled constrain nothing. If the
    constraints form a cycle, they are reported and the members keep the order that they would have without them.
    """
    waiting = sorted(instances, key=lambda instance: _ROLES[instance.role])
    earlier = _predecessors(waiting)
    done: list[Instance] = []
    while waiting:
        ready = _next(waiting, earlier, done)
        if ready is None:
            return Order((*done, *waiting), _cycle(waiting, earlier))
        waiting.remove(ready)
        done.append(ready)
    return Order(tuple(done))


def called(instances: Sequence[Instance], name: str) -> tuple[str, ...]:
    """Return the names of the instances that `name` means.

    `name` is from `before` or `after`.
    """
    return tuple(one.name for one in instances if name in (one.name, one.plugin))


def _predecessors(instances: Sequence[Instance]) -> dict[str, set[str]]:
    earlier: dict[str, set[str]] = {one.name: set() for one in instances}
    for one in instances:
        earlier[one.name].update(chain.from_iterable(called(instances, name) for name in one.after))
        for later in chain.from_iterable(called(instances, name) for name in one.before):
            earlier[later].add(one.name)
    return {name: before - {name} for name, before in earlier.items()}


def _next(waiting: Sequence[Instance], earlier: Mapping[str, set[str]], done: Sequence[Instance]) -> Instance | None:
    """Return the first instance that waits for no other any more."""
    placed = {one.name for one in done}
    return next((one for one in waiting if earlier[one.name] <= placed), None)


def _cycle(waiting: Sequence[Instance], earlier: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Find a cycle of constraints and return its names.

    Walks back from a stuck member until a name repeats. Each step leads to one of the member's stuck predecessors.
    """
    stuck = {one.name for one in waiting}
    path = [waiting[0].name]
    while True:
        previous = min(earlier[path[-1]] & stuck)
        if previous in path:
            return (*path[path.index(previous) :], previous)[::-1]
        path.append(previous)
