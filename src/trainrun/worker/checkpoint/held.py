"""Optimizers other than the run's own: those that the task, a plugin or another object of the process holds.

No checkpoint has their state unless a plugin's `state_dict` gives it, so `trainrun verify-resume` looks at each.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.distributed.tensor import DTensor

Digest = Callable[[Any], str]
Before = WeakKeyDictionary[torch.optim.Optimizer, str]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, torch.dtype, torch.device)
_MOST = 200_000  # objects that are looked at, such as the samples of a dataset in memory
_TORCHS_OWN = {"defaults", "state", "param_groups", "step"}


class Held(NamedTuple):
    """An optimizer's state: its class, a name for the contents, and what in it could not be compared."""

    kind: str
    digest: str
    opaque: list[str]


def present(digest: Digest) -> Before:
    """Return every optimizer of the process, with a name for its contents."""
    return WeakKeyDictionary({one: _state(one, digest).digest for one in _every()})


def held(roots: Mapping[str, Any], own: Any, before: Before, digest: Digest) -> dict[str, Held]:
    """Return every other optimizer of the process, by its place in `roots`.

    What `own` keeps outside its state is returned too. Optimizers that no root leads to have numbers for names, in the
    order of their contents.

    before: what was there at the start. An optimizer that no root leads to and that is unchanged since then has nothing
    to do with the training.
    """
    named = dict(_optimizers(roots, own))
    known = {id(one) for one in named.values()} | {id(own)}
    found = {name: _state(one, digest) for name, one in named.items()}
    if any(id(one) not in known and one not in before for one in _every()):
        gc.collect()  # it may be one that nothing holds any more; this takes a while, so it is not done for nothing
    stray = [(before.get(one), _state(one, digest)) for one in _every() if id(one) not in known]
    for number, one in enumerate(sorted(now for then, now in stray if now.digest != then)):
        found[f"{one.kind} {number + 1}, held elsewhere"] = one
    if attributes := _attributes(own):
        found["run.optimizer, its attributes"] = Held(_kind(own), digest(attributes), list(_opaque(attributes, "")))
    return found


def _every() -> list[torch.optim.Optimizer]:
    kinds = {torch.optim.Optimizer}
    while more := {kind for known in kinds for kind in known.__subclasses__()} - kinds:
        kinds |= more
    return [one for one in gc.get_objects() if type(one) in kinds]


def _optimizers(roots: Mapping[str, Any], own: Any) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """Walk breadth first, so that each has its shortest name."""
    queue = list(roots.items())
    seen = {id(own), *(id(value) for _, value in queue)}
    for place, value in queue:
        if isinstance(value, torch.optim.Optimizer):
            yield place, value
        for name, item in _inside(value, place):
            if len(queue) < _MOST and id(item) not in seen and not isinstance(item, (*_PLAIN, ModuleType)):
                seen.add(id(item))
                queue.append((name, item))


def _inside(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{place}[{key!r}]", item) for key, item in value.items() if not isinstance(key, torch.Tensor))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{place}[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, MethodType):
        yield place, value.__self__
        yield place, value.__func__
    elif isinstance(value, FunctionType):
        names = value.__code__.co_freevars
        cells = zip(names, value.__closure__ or (), strict=False)
        yield from ((f"{place}: {name}", item) for name, cell in cells for item in _content(cell))
    elif not type(value).__module__.startswith("trainrun."):  # those lead to the whole run
        for owner in (value, *(() if isinstance(value, type | ModuleType) else (type(value),))):
            if owner is value or not owner.__module__.startswith(("torch.", "builtins")):
                yield from ((f"{place}.{name}", item) for name, item in getattr(owner, "__dict__", {}).items())


def _content(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is empty
        return []


def _state(optimizer: torch.optim.Optimizer, digest: Digest) -> Held:
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    places = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [_local(dict(optimizer.state.get(parameter, {}))) for parameter in places]
    contents = {"groups": _local(groups), "states": states, "attributes": _attributes(optimizer)}
    return Held(_kind(optimizer), digest(contents), list(_opaque(contents, "")))


def _attributes(optimizer: Any) -> dict[str, Any]:
    """Return what a class of its own keeps outside the state.

    Private names are left out: torch has many.
    """
    names = [name for name in vars(optimizer) if name not in _TORCHS_OWN and not name.startswith("_")]
    values = {name: _local(vars(optimizer)[name]) for name in names}
    return {name: value for name, value in values.items() if not callable(value)}


def _local(value: Any) -> Any:
    """Return `value` with this rank's parts in place of sharded tensors."""
    if isinstance(value, DTensor):
        return value.to_local()
    if isinstance(value, dict):
        return {key: _local(item) for key, item in value.items()}
    return [_local(item) for item in value] if isinstance(value, list | tuple) else value


def _opaque(value: Any, place: str) -> Iterator[str]:
    """Yield place and type of each object without contents to compare."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _opaque(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _opaque(item, f"{place}[{number}]")
    elif not isinstance(value, _PLAIN) and not hasattr(value, "tobytes"):
        yield f"{place} ({type(value).__name__})"


def _kind(optimizer: Any) -> str:
    return type(optimizer).__name__
