"""Write the function that calls the hookimpls of one hook, for hooks without a wrapper.

The generic way through pluggy costs several times as much for each call, which shows in a training loop
(tests/benchmarks/loop_overhead.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from trainrun.marker import GATHERED
from trainrun.plugin import votes
from trainrun.plugin.background import snapshot
from trainrun.plugin.cost import Figures
from trainrun.plugin.description import SpecInfo
from trainrun.plugin.guard import CAUGHT, Fault, Guard, failure, policy
from trainrun.plugin.links import Call, Link
from trainrun.rundir.pulse import CRUMB, Pulse


def signature(spec: SpecInfo) -> list[str]:
    return [name for name in spec.arguments if name != "run"]


def _variable(argument: str) -> str:
    """Return the variable of a hook's argument in generated code.

    No variable of ours clashes with it.
    """
    return f"given_{argument}"


def generate(
    spec: SpecInfo, links: Sequence[Link], on_fault: Callable[[Fault], None], pulse: Pulse | None
) -> tuple[Call, Callable[[], list[Figures]]]:
    """Write and compile the function that calls `links` in order.

    It times each hookimpl and applies its error policy. Each hookimpl gets its own copy of the arguments that the hook
    copies, so that none changes them for the next.

    Consecutive calls share a clock reading: the end of one is the start of the next. The figures are variables of an
    enclosing function, because adding to them is faster than adding to the items of a list. A pulse, if there is one,
    shows each hookimpl while it runs. At the end it shows what ran before, because one hook may call another. Returns
    the function, and one that reads the figures.
    """
    places, guard = range(len(links)), Guard(on_fault)
    namespace: dict[str, Any] = {"CAUGHT": CAUGHT, "Figures": Figures, "clock": perf_counter, "settle": guard.settle}
    namespace |= {"slots": None if pulse is None else pulse.slots, "copy": snapshot}
    for place, link in enumerate(links):
        namespace |= _names(place, link, spec, guard, on_fault)
    figures = [f"calls{place}, total{place}, peak{place}" for place in places]
    lines = [
        "def make():",
        *(f"    {names} = 0, 0.0, 0.0" for names in figures),
        f"    def hook({', '.join(map(_variable, signature(spec)))}):",
        f"        nonlocal {', '.join(figures)}",
        *(["        results = []"] if spec.kind in GATHERED else []),
        "        faulty = False",
        *([f"        outer = slots[{CRUMB}]"] if pulse else []),
        "        begun = clock()",
        *(f"        {line}" for place, link in enumerate(links) for line in _link_lines(place, link, spec, pulse)),
        *([f"        slots[{CRUMB}] = outer"] if pulse else []),
        *(["        if faulty: settle()"] if spec.kind == "event" else []),
        *(["        return results"] if spec.kind in GATHERED else []),
        f"    return hook, lambda: [{', '.join(f'Figures({names})' for names in figures)}]",
    ]
    exec(compile("\n".join(lines), f"<hook {spec.hook}>", "exec"), namespace)  # noqa: S102 - from our own templates
    made: tuple[Call, Callable[[], list[Figures]]] = namespace["make"]()
    return made


def _names(place: int, link: Link, spec: SpecInfo, guard: Guard, on_fault: Callable[[Fault], None]) -> dict[str, Any]:
    instance = link.member.instance
    action = policy(instance, link.impl, spec.kind)
    return {
        f"impl{place}": link.function,
        f"run{place}": link.member.run,
        f"name{place}": instance.name,
        f"failed{place}": functools.partial(guard.failed, instance, spec.hook, action),
        f"failure{place}": functools.partial(failure, instance, spec.hook),
        f"judge{place}": votes.judging(instance, link.impl, on_fault),
    }


def _link_lines(place: int, link: Link, spec: SpecInfo, pulse: Pulse | None) -> list[str]:
    arguments = ", ".join(_argument(place, name, link, spec) for name in link.impl.arguments)
    before, after = ("begun", "ended") if place % 2 == 0 else ("ended", "begun")
    handle = f"faulty = True; failed{place}(error)" if spec.kind == "event" else f"raise failure{place}(error)"
    assign = "" if spec.kind == "event" else "result = "
    lines = [
        *([f"slots[{CRUMB}] = {pulse.crumb(link.member.instance.name, spec.hook)}"] if pulse else []),
        f"try: {assign}impl{place}({arguments})",
        f"except CAUGHT as error: {handle}",
        f"{after} = clock()",
        f"took = {after} - {before}",
        f"calls{place} += 1",
        f"total{place} += took",
        f"if took > peak{place}: peak{place} = took",
    ]
    if spec.kind == "provider":
        restore = f"slots[{CRUMB}] = outer; " if pulse else ""
        lines.append(f"if result is not None: {restore}return result")
    if spec.kind == "vote":
        lines.append(f"if result is not None: result = judge{place}(result)")
    if spec.kind in GATHERED:
        lines.append(f"if result is not None: results.append((name{place}, result))")
    return lines


def _argument(place: int, name: str, link: Link, spec: SpecInfo) -> str:
    if name == "run":
        return f"run{place}"
    # What runs in the background gets a copy anyway, made when it is queued.
    return f"copy({_variable(name)})" if name in spec.copied and not link.impl.background else _variable(name)
