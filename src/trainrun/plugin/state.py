"""Plugin state: what an instance keeps across a restart, as plain values and tensors, by instance name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trainrun.plugin.dispatch import Member
from trainrun.plugin.guard import CAUGHT, failure

_PLAIN = (bool, int, float, str, bytes, type(None))


def collect(members: Iterable[Member], is_tensor: Callable[[object], bool]) -> dict[str, Any]:
    """The `state_dict()` of every member that has one, checked to be plain.

    Raises HookFailed naming the plugin where `state_dict` raises, or holds what is neither a plain value (numbers,
    strings, bytes, None, and lists, tuples and string-keyed dicts of them) nor a tensor.
    """
    states = {}
    for member in members:
        make = getattr(member.plugin, "state_dict", None)
        if make is None:
            continue
        try:
            state = make()
            check(state, is_tensor)
        except CAUGHT as error:
            raise failure(member.instance, "state_dict", error) from error
        states[member.instance.name] = state
    return states


def restore(members: Iterable[Member], states: dict[str, Any]) -> dict[str, Any]:
    """Give each member its state; answer with the states that nobody asked for.

    Raises HookFailed naming the plugin whose `load_state_dict` raises.
    """
    left = dict(states)
    for member in members:
        load = getattr(member.plugin, "load_state_dict", None)
        if load is None or member.instance.name not in left:
            continue
        try:
            load(left.pop(member.instance.name))
        except CAUGHT as error:
            raise failure(member.instance, "load_state_dict", error) from error
    return left


def check(value: Any, is_tensor: Callable[[object], bool], path: str = "state") -> None:
    """Raise TypeError naming the first place in `value` that is not plain."""
    if isinstance(value, _PLAIN) or is_tensor(value):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{path} has the key {key!r}; keys must be strings or integers")
            check(item, is_tensor, f"{path}[{key!r}]")
        return
    if isinstance(value, list | tuple):
        for place, item in enumerate(value):
            check(item, is_tensor, f"{path}[{place}]")
        return
    raise TypeError(f"{path} is a {type(value).__name__}; plugin state must be plain values and tensors")
