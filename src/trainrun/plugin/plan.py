"""The plan: for each hook, which hookimpls are called, in which order, and why.

pluggy itself computes the order. `register` puts one proxy object for each instance and direction into a plugin
manager: with stubs here, with the real functions in the processes that call hooks. So what `trainrun hooks` shows
cannot differ from what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pluggy

from trainrun.marker import PROJECT, Locus, Ranks
from trainrun.plugin.description import ImplInfo, SpecInfo
from trainrun.plugin.guard import policy
from trainrun.plugin.instance import Instance, Policy

Members = Sequence[tuple[Instance, Sequence[ImplInfo]]]
Make = Callable[[Instance, ImplInfo], Callable[..., Any]]

_spec = pluggy.HookspecMarker(PROJECT)
_impl = pluggy.HookimplMarker(PROJECT)
PRECEDENCE = {"builtin": 0, "task": 1, "plugin": 2}  # for a provider, lowest first


class Proxy:
    """What pluggy sees of an instance: its functions for one direction, as attributes."""

    def add(self, impl: ImplInfo, function: Callable[..., Any], *, chosen: bool) -> None:
        """Mark a function of this proxy as the hookimpl of `impl`.

        The provider that `[providers]` has chosen comes before the others' `tryfirst` too.
        """
        _impl(
            function,
            specname=impl.hook,
            wrapper=impl.wrapper,
            tryfirst=impl.tryfirst or chosen,
            trylast=impl.trylast and not chosen,
        )
        # No identifier, so that no method's name can clash with another function for the same hook.
        setattr(self, f"{impl.hook}.{impl.function}", function)


def register(
    manager: pluggy.PluginManager,
    members: Members,
    make: Make,
    specs: Mapping[str, SpecInfo],
    providers: Mapping[str, str],
) -> None:
    """Register the hookimpls of all members in a plugin manager.

    pluggy then calls them by the rules below.

    members: in plan order.

    Events run in plan order, and in reverse if they end what a `_start` hook began. A provider asks the instance that
    `providers` names for it, then plugins, the task and the built-ins. `make` returns a new function for each hookimpl.
    Wrapped with `functools.wraps`, it shows pluggy the arguments of the original. pluggy calls what was registered last
    first.
    """

    def add(name: str, owner: Instance, impls: Sequence[ImplInfo], *, chosen: bool = False) -> None:
        if impls:
            proxy = Proxy()
            for impl in impls:
                proxy.add(impl, make(owner, impl), chosen=chosen)
            manager.register(proxy, name)

    def part(direction: str, owner: Instance, impls: Sequence[ImplInfo]) -> list[ImplInfo]:
        return [impl for impl in impls if _direction(impl, owner, specs, providers) == direction]

    backwards = members[::-1]
    for owner, impls in backwards:
        add(owner.name, owner, part("forward", owner, impls))
    for owner, impls in members:
        add(f"{owner.name}:end", owner, part("reverse", owner, impls))
    for owner, impls in sorted(backwards, key=lambda member: PRECEDENCE[member[0].role]):
        add(f"{owner.name}:provider", owner, part("provider", owner, impls))
    for owner, impls in members:
        add(f"{owner.name}:chosen", owner, part("chosen", owner, impls), chosen=True)


def _direction(
    impl: ImplInfo, owner: Instance, specs: Mapping[str, SpecInfo], providers: Mapping[str, str]
) -> str | None:
    spec = specs.get(impl.hook)
    if spec is None:
        return None
    if spec.kind == "provider":
        return "chosen" if providers.get(impl.hook) == owner.name and not impl.wrapper else "provider"
    return "reverse" if is_reversed(impl.hook, specs) else "forward"


def is_reversed(hook: str, specs: Mapping[str, SpecInfo]) -> bool:
    """Return whether the hook runs in reverse plan order.

    That is an `_end` hook that has a `_start` twin.
    """
    return hook.endswith("_end") and f"{hook.removesuffix('_end')}_start" in specs


class Entry(NamedTuple):
    """One hookimpl in the plan.

    `winner` is None except for the hookimpls of a provider: the first of them wins.
    """

    instance: Instance
    impl: ImplInfo
    ranks: Ranks | None
    policy: Policy
    reason: str
    winner: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dump`."""
        return {
            "instance": self.instance.name,
            "role": self.instance.role,
            "plugin": self.instance.plugin,
            "distribution": self.instance.distribution,
            "version": self.instance.version,
            "function": self.impl.function,
            "ranks": self.ranks,
            "background": self.impl.background,
            "wrapper": self.impl.wrapper,
            "reason": self.reason,
            "on_error": self.policy,
            "winner": self.winner,
            "file": self.impl.file,
            "line": self.impl.line,
        }


class HookPlan(NamedTuple):
    """One hook and its entries in calling order. `locus` repeats the spec's, for the plan's readers."""

    spec: SpecInfo
    entries: tuple[Entry, ...] = ()

    @property
    def locus(self) -> Locus:
        """Return the process in which the hook runs."""
        return self.spec.locus

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dump`."""
        spec = self.spec
        return {
            "hook": spec.hook,
            "locus": spec.locus,
            "kind": spec.kind,
            "ranks": spec.ranks,
            "arguments": list(spec.arguments),
            "summary": spec.summary,
            "file": spec.file,
            "line": spec.line,
            "implementations": [entry.to_json() for entry in self.entries],
        }


class Plan:
    """Every hook with its entries, in the order of the hookspecs."""

    def __init__(self, hooks: Mapping[str, HookPlan]) -> None:
        self.hooks = hooks

    def __getitem__(self, hook: str) -> tuple[Entry, ...]:
        return self.hooks[hook].entries

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values for `json.dump`."""
        return [hook.to_json() for hook in self.hooks.values()]


def make_plan(
    members: Members, specs: Mapping[str, SpecInfo], providers: Mapping[str, str], reasons: Mapping[str, str]
) -> Plan:
    """Let pluggy order stubs of all hookimpls. `reasons` explains each instance's position."""
    known = [(owner, [impl for impl in impls if impl.hook in specs]) for owner, impls in members]
    # Only hooks that some plugin implements: pluggy is slow to set up.
    answered = {impl.hook for _, impls in known for impl in impls}
    manager = _stub_manager([spec for spec in specs.values() if spec.hook in answered])
    made: dict[Callable[..., Any], tuple[Instance, ImplInfo]] = {}

    def make(owner: Instance, impl: ImplInfo) -> Callable[..., Any]:
        stub = _stub(impl.wrapper)
        made[stub] = (owner, impl)
        return stub

    register(manager, known, make, specs, providers)
    hooks = {}
    for name, spec in specs.items():
        found = getattr(manager.hook, name).get_hookimpls() if name in answered else []
        order = [made[one.function] for one in reversed(found)]
        hooks[name] = HookPlan(spec, tuple(_entries(order, spec, specs, providers, reasons)))
    return Plan(hooks)


def _entries(
    order: Sequence[tuple[Instance, ImplInfo]],
    spec: SpecInfo,
    specs: Mapping[str, SpecInfo],
    providers: Mapping[str, str],
    reasons: Mapping[str, str],
) -> Iterator[Entry]:
    # Two instances of one plugin share its description, so only the place identifies them.
    first = next((place for place, (_, impl) in enumerate(order) if not impl.wrapper), None)
    for place, (owner, impl) in enumerate(order):
        reason = [reasons.get(owner.name, "")]
        if spec.kind == "provider" and providers.get(spec.hook) == owner.name and not impl.wrapper:
            reason = ["[providers]"]
        reason += ["in reverse"] if is_reversed(spec.hook, specs) else []
        reason += [flag for flag in ("wrapper", "tryfirst", "trylast") if getattr(impl, flag)]
        yield Entry(
            instance=owner,
            impl=impl,
            ranks=impl.ranks or spec.ranks,
            policy=policy(owner, impl, spec.kind),
            reason=", ".join(filter(None, reason)),
            winner=place == first if spec.kind == "provider" and not impl.wrapper else None,
        )


def _stub_manager(specs: Sequence[SpecInfo]) -> pluggy.PluginManager:
    """Return a manager that knows the hooks by name and kind alone.

    What plugins bring is not imported for it.
    """
    namespace = type("Specs", (), {})
    for spec in specs:
        setattr(namespace, spec.hook, _spec(staticmethod(_stub(False)), firstresult=spec.kind == "provider"))
    manager = pluggy.PluginManager(PROJECT)
    if specs:  # pluggy takes a namespace without hooks for a mistake
        manager.add_hookspecs(namespace)
    return manager


def _stub(wrapper: bool) -> Callable[..., Any]:
    def plain() -> None: ...

    def generator() -> Iterator[None]:
        yield

    return generator if wrapper else plain
