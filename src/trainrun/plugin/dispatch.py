"""Calling hooks: one compiled function for each hook, made when the plan is fixed or changes.

pluggy decides the order. If a hook has no wrapper, its hookimpls are then called from a function generated for just
this chain, with positional arguments: the generic way costs several times as much for each call, which shows in a
training loop (tests/benchmarks/loop_overhead.py). If there is a wrapper, pluggy itself makes the call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from time import perf_counter
from types import ModuleType
from typing import Any

import pluggy

from trainrun.marker import GATHERED, PROJECT
from trainrun.plugin import votes
from trainrun.plugin.background import Background, Lost, drain, snapshot
from trainrun.plugin.cost import Cost, Meter
from trainrun.plugin.description import ImplInfo, SpecInfo
from trainrun.plugin.detached import Detached, Part
from trainrun.plugin.generated import generate, signature
from trainrun.plugin.guard import CAUGHT, Fault, Guard, failure, policy
from trainrun.plugin.instance import Instance
from trainrun.plugin.links import Call, Link, Member
from trainrun.plugin.plan import PRECEDENCE, register
from trainrun.rundir.pulse import Pulse, Trail


class Dispatcher:
    """The hooks of one process.

    `dispatcher.on_step_end(step, epoch, loss, metrics)` calls a hook with its arguments in the order of its spec. `run`
    is left out: each plugin gets it bound to itself. If no plugin on this rank implements a hook, the attribute is
    None, so that a loop can skip it.

    specs: every hookspec by name; `holders`: the modules or classes that pluggy reads them from.
    ranks: the rank classes that this process belongs to, such as {"all", "zero"}.
    on_fault: called with errors that are survived; may be called from a background thread.
    pulse: shows which hookimpl is running, if other processes look at this one; hooks then belong to one thread.
    """

    def __init__(
        self,
        members: Sequence[Member],
        specs: Mapping[str, SpecInfo],
        holders: Sequence[type | ModuleType],
        *,
        ranks: frozenset[str],
        providers: Mapping[str, str],
        on_fault: Callable[[Fault], None],
        pulse: Pulse | None = None,
    ) -> None:
        self.cost = Cost()
        self._pulse = pulse
        self._members = list(members)
        self._specs = specs
        self._holders = holders
        self._ranks = ranks
        self._providers = providers
        self._on_fault = on_fault
        self._disabled: set[str] = set()
        self._queues: dict[str, Background] = {}
        self._local = threading.local()
        self._compile()

    def __getattr__(self, hook: str) -> Any:
        # Only reached for names that _compile has not set.
        raise AttributeError(f"there is no hook {hook!r}")

    @property
    def members(self) -> tuple[Member, ...]:
        """Return the live plugins that are not disabled, in plan order."""
        return tuple(member for member in self._members if member.instance.name not in self._disabled)

    @property
    def disabled(self) -> tuple[str, ...]:
        """Return the names of the plugin instances that were disabled, sorted."""
        return tuple(sorted(self._disabled))

    def disable(self, name: str) -> bool:
        """Take the plugin instance out of every hook.

        Returns whether it was in.
        """
        known = {member.instance.name for member in self.members}
        if name in known:
            self._disabled.add(name)
            self._compile()
        return name in known

    def asks_for(self, hook: str, argument: str) -> bool:
        """Return whether any hookimpl, on any rank, takes this argument."""
        return any(impl.hook == hook and argument in impl.arguments for member in self.members for impl in member.impls)

    def only_builtin(self, hook: str) -> bool:
        """Return whether only built-in plugins implement this hook."""
        return all(
            member.instance.role == "builtin" for member in self.members for impl in member.impls if impl.hook == hook
        )

    def plugins_in(self, hook: str) -> list[str]:
        """Return the plugins whose hookimpl a call of the hook waits for.

        The names of built-in ones are left out.
        """
        return [
            link.member.instance.name
            for link in self._links[hook]
            if link.member.instance.role == "plugin" and not link.impl.background
        ]

    def provider(self, hook: str) -> Instance | None:
        """Return the instance that a provider hook asks first.

        Returns None if none implements it.
        """
        return next(iter(self._asked(hook)), None)

    def whose(self, hook: str) -> str:
        """Name the plugin whose hookimpl a provider hook calls.

        The text stands at the end of a message about what the hook returned.
        """
        found = self._asked(hook)
        if not found:
            return ""
        # Which of them it was is not known here. A built-in plugin is meant only if there is no other.
        names = [one.where for one in found if one.role != "builtin"] or [found[0].where]
        around = [one.member.instance.name for one in self._links[hook] if one.impl.wrapper]
        wrapped = f", wrapped by {' and '.join(around)}" if around else ""
        return f"; {hook} is that of {', or if it returned None of '.join(names)}{wrapped}"

    def _asked(self, hook: str) -> list[Instance]:
        """Return the instances that a provider hook asks, in order.

        The order is the one in which `register` lets pluggy ask them.
        """
        found = [
            member.instance
            for member in self.members
            for impl in self._on_this_rank(member)
            if impl.hook == hook and not impl.wrapper
        ]
        chosen = self._providers.get(hook)
        return sorted(found, key=lambda instance: (instance.name != chosen, -PRECEDENCE[instance.role]))

    def drain(self, seconds: float) -> dict[str, Lost]:
        """Let all background threads finish within one deadline.

        Returns by instance what was lost, if anything was.
        """
        return drain(list(self._queues.values()), seconds)

    def detached(self, hook: str) -> Detached | None:
        """Return the hook for processes that have no dispatcher.

        Returns None if it is not implemented on this rank.
        """
        links = self._links[hook]
        parts = [Part.of(getattr(one.member.plugin, one.impl.function), one.impl, one.member.instance) for one in links]
        return Detached(hook, parts) if parts else None

    def _compile(self) -> None:
        manager = pluggy.PluginManager(PROJECT)
        for holder in dict.fromkeys(self._holders):  # two instances of one plugin bring the same
            manager.add_hookspecs(holder)
        made: dict[Call, Link] = {}
        owners = {member.instance.name: member for member in self._members}

        def make(instance: Instance, impl: ImplInfo) -> Call:
            member = owners[instance.name]
            link = Link(member, impl, self._target(member, impl))
            function = self._guarded(link)
            made[function] = link
            return function

        register(
            manager,
            [(member.instance, self._on_this_rank(member)) for member in self.members],
            make,
            self._specs,
            self._providers,
        )
        self._links: dict[str, list[Link]] = {}
        for hook, spec in self._specs.items():
            links = self._links[hook] = [
                made[impl.function] for impl in reversed(getattr(manager.hook, hook).get_hookimpls())
            ]
            setattr(self, hook, self._call(manager, spec, links) if links else None)

    def _on_this_rank(self, member: Member) -> list[ImplInfo]:
        """Return the hookimpls for hooks of this process.

        Those of the other locus and of other ranks are left out.
        """
        here = [(impl, self._specs[impl.hook]) for impl in member.impls if impl.hook in self._specs]
        return [impl for impl, spec in here if (impl.ranks or spec.ranks or "all") in self._ranks]

    def _call(self, manager: pluggy.PluginManager, spec: SpecInfo, links: list[Link]) -> Call:
        if any(link.impl.wrapper for link in links):
            return self._through_pluggy(getattr(manager.hook, spec.hook), spec)
        call, read = generate(spec, links, self._on_fault, self._pulse)
        self.cost.watch(spec.hook, [link.member.instance.name for link in links], read)
        return call

    def _target(self, member: Member, impl: ImplInfo) -> Call:
        function: Call = getattr(member.plugin, impl.function)
        for other in self.members:
            # How faults are injected: a plugin may stand around the hookimpls of others.
            if hasattr(type(other.plugin), "intercept_hookimpl"):
                function = other.plugin.intercept_hookimpl(member.instance.name, impl.hook, function, member.run)
        return self._queued(member, impl, function) if impl.background else function

    def _queued(self, member: Member, impl: ImplInfo, function: Call) -> Call:
        instance = member.instance
        queue = self._queues.get(instance.name)
        if queue is None:
            queue = self._queues[instance.name] = Background(instance.name, instance.queue, instance.when_full)
        action = policy(instance, impl, "event")

        def run_job(arguments: tuple[Any, ...]) -> None:
            if instance.name in self._disabled:
                return
            try:
                function(*arguments)
            except CAUGHT as error:
                told = failure(instance, impl.hook, error) if action == "fail" else error
                self._on_fault(Fault(instance.name, impl.hook, told, action))

        @functools.wraps(function)
        def enqueue(*arguments: Any) -> None:
            frozen = tuple(snapshot(argument) for argument in arguments)
            queue.put(impl.hook, functools.partial(run_job, frozen))

        return enqueue

    # --- the way through pluggy, for hooks with wrappers ---

    def _through_pluggy(self, caller: Any, spec: SpecInfo) -> Call:
        names = signature(spec)
        guard = Guard(self._on_fault)
        offered = {"run": None} if "run" in spec.arguments else {}

        def call(*arguments: Any) -> Any:
            outer = vars(self._local).copy()  # a hookimpl may itself call a hook
            self._local.guard, self._local.blamed = guard, {}
            try:
                answer = caller(**offered, **dict(zip(names, arguments, strict=True)))
            except CAUGHT as error:
                instance = self._local.blamed.get(id(error))
                if instance is None:
                    raise
                raise failure(instance, spec.hook, error)  # noqa: B904 - it has its cause
            finally:
                vars(self._local).update(outer)
            guard.settle()
            return None if spec.kind == "event" else answer

        return call

    def _guarded(self, link: Link) -> Call:
        """Return the function that pluggy sees.

        It takes the hookimpl's arguments, and swaps in the plugin's own `run`.
        """
        instance, spec = link.member.instance, self._specs[link.impl.hook]
        action = policy(instance, link.impl, spec.kind)
        meter, trail = Meter(), Trail(self._pulse, instance.name, spec.hook)
        self.cost.watch(spec.hook, (instance.name,), meter.read)
        own = {"run": lambda _: link.member.run, **dict.fromkeys(spec.copied, snapshot)}
        changed = [own.get(name) for name in link.impl.arguments]

        def bind(arguments: tuple[Any, ...]) -> list[Any]:
            return [one if change is None else change(one) for change, one in zip(changed, arguments, strict=True)]

        def blame(error: BaseException) -> None:
            self._local.blamed.setdefault(id(error), instance)

        if link.impl.wrapper:

            @functools.wraps(link.function)
            def wrapper(*arguments: Any) -> Generator[None, Any, object]:
                try:
                    answer: object = yield from _timed(link.function(*bind(arguments)), meter, trail)
                    if spec.kind in GATHERED:
                        answer = votes.pairs(spec.hook, answer, reasons=spec.kind == "vote")
                except CAUGHT as error:
                    blame(error)
                    raise
                return answer

            return wrapper

        judge = votes.judging(instance, link.impl, self._on_fault)

        @functools.wraps(link.function)
        def guarded(*arguments: Any) -> Any:
            outer = trail.begin()
            started = perf_counter()
            try:
                answer = link.function(*bind(arguments))
            except CAUGHT as error:
                if spec.kind != "event":
                    blame(error)
                    raise
                self._local.guard.failed(instance, spec.hook, action, error)
                return None
            finally:
                meter.add(perf_counter() - started)
                trail.end(outer)
            if spec.kind == "vote":
                answer = judge(answer)
            return answer if spec.kind not in GATHERED or answer is None else (instance.name, answer)

        return guarded


def _timed(generator: Any, meter: Meter, trail: Trail) -> Generator[None, Any, Any]:
    """Run a wrapper's generator for pluggy.

    Only the time that it is itself at work is counted and shown.
    """
    outer, started = trail.begin(), perf_counter()
    if next(generator, generator) is generator:  # it has ended without a yield
        raise RuntimeError(_YIELDS)
    first = perf_counter() - started
    trail.end(outer)
    try:
        try:
            result = yield
        except BaseException as error:  # a wrapper gets every exception from within, and decides
            trail.begin()
            started = perf_counter()
            generator.throw(error)
        else:
            trail.begin()
            started = perf_counter()
            generator.send(result)
    except StopIteration as stop:
        meter.add(perf_counter() - started + first)
        trail.end(outer)
        answer: object = stop.value
        return answer
    raise RuntimeError(_YIELDS)


_YIELDS = "a hook wrapper must yield exactly once"
