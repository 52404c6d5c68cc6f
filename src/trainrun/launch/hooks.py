"""The client's hooks: only plugins that implement one of them are imported here, and no task ever is."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainrun import hookspecs
from trainrun.errors import PluginProblem, Problem, RecipeError, WrongReturn
from trainrun.launch.busy import Busy
from trainrun.plugin import votes
from trainrun.plugin.description import ImplInfo, SpecInfo
from trainrun.plugin.dispatch import Dispatcher
from trainrun.plugin.guard import Fault
from trainrun.plugin.instance import Instance
from trainrun.plugin.links import Member
from trainrun.plugin.loading import load_plugin
from trainrun.plugin.specs import own_specs

if TYPE_CHECKING:
    from trainrun.plugin.resolve import Resolved
    from trainrun.recipe import Recipe

_RANKS = frozenset({"all", "local_zero", "zero"})


def client_hooks(resolved: Resolved, on_fault: Callable[[Fault], None]) -> Dispatcher:
    """Import the enabled plugins that have client hooks.

    Returns the dispatcher that calls their hooks. Raises PluginProblem if one cannot be loaded. `on_fault` is called
    with errors that are survived.
    """
    specs = _client_specs()
    members = [
        _member(instance, impls)
        for instance in resolved.instances
        if (impls := _client_impls(instance, resolved, specs)) and instance.role != "task"
    ]
    providers = {hook: name for hook, name in resolved.providers.items() if hook in specs}
    return Dispatcher(members, specs, [hookspecs], ranks=_RANKS, providers=providers, on_fault=on_fault)


@contextmanager
def waiting(hooks: Dispatcher, hook: str, *, quiet: bool = False, hint: str = "") -> Iterator[None]:
    """Show which plugins a hook waits for, if they take their time. hint: what the user can do about it."""
    names = hooks.plugins_in(hook)
    with Busy(quiet=quiet or not names, plain=True) as busy:
        busy(f"waiting for {hook} of plugin{'s' if len(names) > 1 else ''} {', '.join(names)}{hint}")
        yield


def require_no_veto(hooks: Dispatcher, recipe: Recipe, *, quiet: bool = False) -> None:
    """Call `check_recipe`, and raise RecipeError with all problems that it returns.

    Raises PluginProblem if a plugin returns a value that is no problem, with any error policy: nothing has begun yet.
    """
    if hooks.check_recipe is None:
        return
    problems, wrong = [], []
    with waiting(hooks, "check_recipe", quiet=quiet):
        votes_of_plugins = hooks.check_recipe(recipe)
    for name, returned in votes_of_plugins:
        try:
            problems += [Problem(f"plugin {name}", text) for text in votes.problems(returned)]
        except WrongReturn as error:
            wrong.append(Problem(f"plugin {name}", str(error), f"to run without it: -p {shlex.quote(f'no:{name}')}"))
    if wrong:
        raise PluginProblem(wrong)
    if problems:
        raise RecipeError(problems)


def poll_interval(hooks: Dispatcher) -> float | None:
    """Return the shortest `poll_interval` of the plugins that implement `on_status`."""
    wanted = [getattr(member.plugin, "poll_interval", None) for member in hooks.members]
    return min((float(seconds) for seconds in wanted if seconds), default=None)


def _client_specs() -> dict[str, SpecInfo]:
    return {spec.hook: spec for spec in own_specs() if spec.locus in {"client", "both"}}


def _client_impls(instance: Instance, resolved: Resolved, specs: Mapping[str, SpecInfo]) -> tuple[ImplInfo, ...]:
    return tuple(impl for impl in resolved.description(instance).impls if impl.hook in specs)


def _member(instance: Instance, impls: tuple[ImplInfo, ...]) -> Member:
    return Member(instance, load_plugin(instance).plugin, impls)
