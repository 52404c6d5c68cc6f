"""Plugin state: what an instance keeps across a restart, as plain values and tensors, by instance name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trainrun.errors import TrainingError
from trainrun.plugin.guard import CAUGHT, failure, switch
from trainrun.plugin.links import Member

_PLAIN = (bool, int, float, str, bytes, type(None))


def collect(members: Iterable[Member], is_tensor: Callable[[object], bool]) -> dict[str, Any]:
    """Return the checked `state_dict()` of every member that has one.

    Raises HookFailed with the plugin's name if `state_dict` raises. Raises TrainingError with plugin and place if it
    holds a value that is neither plain nor a tensor. Plain are numbers, strings, bytes, None, and lists, tuples and
    dicts of them with strings or integers for keys.
    """
    states = {}
    for member in members:
        make = getattr(member.plugin, "state_dict", None)
        if make is None:
            continue
        try:
            state = make()
        except CAUGHT as error:
            raise failure(member.instance, "state_dict", error)  # noqa: B904 - it has its cause
        if wrong := _unfit(state, is_tensor):
            what = f"plugin {member.instance.name!r}: {wrong}; its state_dict must be plain values and tensors"
            raise TrainingError("; ".join(filter(None, (what, switch(member.instance)))))
        states[member.instance.name] = state
    return states


def collect_each(
    members: Iterable[Member], is_tensor: Callable[[object], bool]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the states that could be collected, and the reasons for the others.

    As `collect`, but one plugin's failure does not keep the others' state.
    """
    states: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for member in members:
        try:
            states |= collect([member], is_tensor)
        except TrainingError as error:
            reasons[member.instance.name] = str(error)
    return states, reasons


def restore(members: Iterable[Member], states: dict[str, Any]) -> dict[str, Any]:
    """Give each member its state; return the states that no member took.

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
            raise failure(member.instance, "load_state_dict", error)  # noqa: B904 - it has its cause
    return left


def _unfit(state: Any, is_tensor: Callable[[object], bool]) -> str | None:
    try:
        return unfit(state, is_tensor)
    except RecursionError:
        return "state holds itself, or is nested too deeply"


def unfit(value: Any, is_tensor: Callable[[object], bool], path: str = "state") -> str | None:
    """Return the first place in `value` that is neither plain nor a tensor.

    The text includes what is there.
    """
    if isinstance(value, _PLAIN) or is_tensor(value):
        return None
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str | int)]:
            return f"{path} has the key {strange[0]!r}, which is neither a string nor an integer"
        places: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, list | tuple):
        places = enumerate(value)
    else:
        return f"{path} is a {type(value).__name__}"
    return next((wrong for key, item in places if (wrong := unfit(item, is_tensor, f"{path}[{key!r}]"))), None)
