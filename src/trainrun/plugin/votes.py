"""What a vote may return: None or False for no, otherwise the reason as a string.

Truth is not asked for: `bool(value)` would take a tensor's value from its device. A comparison that was meant as a
condition (`return run.step >= 100`) would stop a run with the reason "False".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainrun.errors import WrongReturn, shown
from trainrun.plugin.description import ImplInfo
from trainrun.plugin.guard import Fault, Policy, failure
from trainrun.plugin.instance import Instance

# The one vote that may return several reasons; `launch.hooks` reads them with `problems`.
MANY_REASONS = "check_recipe"


def policy(instance: Instance, impl: ImplInfo) -> Policy:
    """Return what a wrong return value leads to.

    An exception in a vote always fails the run, because it may have stopped half-way. A hookimpl that has returned is
    complete, so that the plugin's own policy holds.
    """
    return "fail" if impl.mutates else instance.on_error


def judging(instance: Instance, impl: ImplInfo, on_fault: Callable[[Fault], None]) -> Callable[[Any], Any]:
    """Return a function that turns a hookimpl's return value into its reason.

    A reason is a text, or None for no. For any other value the function raises HookFailed if the plugin's policy is
    "fail". Otherwise it counts the value as no and calls `on_fault`.
    """
    action = policy(instance, impl)

    def judge(value: Any) -> Any:
        if impl.hook == MANY_REASONS:
            return value
        try:
            return reason(named(impl), value)
        except WrongReturn as error:
            if action == "fail":
                raise failure(instance, impl.hook, error)  # noqa: B904 - it has its cause
            on_fault(Fault(instance.name, impl.hook, error, action))
            return None

    return judge


def named(impl: ImplInfo) -> str:
    """Name the hook and the place of the function that implements it."""
    return f"{impl.hook} ({Path(impl.file).name}:{impl.line})" if impl.file else impl.hook


def reason(hook: str, value: object) -> str | None:
    """Return the reason that a vote gave, None for no.

    Raises WrongReturn for any other value.
    """
    if value is None or value is False:
        return None
    if isinstance(value, str) and value.strip():
        return str(value)
    raise WrongReturn(f"{hook} returned {_shown(value)}; return None for no, or a non-empty string with the reason")


def problems(value: object) -> list[str]:
    """Return the problems that `check_recipe` returned.

    Raises WrongReturn if it returned any other value.
    """
    if value is None or value is False:
        return []
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list | tuple):
        wrong = [one for one in found if not (isinstance(one, str) and one.strip())]
        if not wrong:
            return [str(one) for one in found]
        value = wrong[0] if isinstance(value, str) else value
    raise WrongReturn(
        f"{MANY_REASONS} returned {_shown(value)}; return None if nothing is wrong, or a non-empty string or a list of"
        " them with the problems"
    )


def pairs(hook: str, value: object, *, reasons: bool) -> list[tuple[str, Any]]:
    """Check what a wrapper returned for all hookimpls together.

    That is pairs of a plugin's name and what it returned.
    """
    if not isinstance(value, list | tuple) or not all(_is_pair(one) for one in value):
        raise WrongReturn(
            f"a wrapper of {hook} returned {_shown(value)}; return a list of pairs (plugin, value), as `yield` gives it"
        )
    if not reasons or hook == MANY_REASONS:
        return list(value)
    checked = [(name, reason(hook, one)) for name, one in value]
    return [(name, one) for name, one in checked if one is not None]


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def _shown(value: object) -> str:
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python warns that it was never awaited
    return shown(value)
