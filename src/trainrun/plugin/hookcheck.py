"""Are a plugin's hookimpls ones that can be called? pluggy would accept most of these mistakes and fail late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from trainrun.errors import Problem
from trainrun.marker import Kind, Locus, Ranks
from trainrun.plugin.description import Description, ImplInfo, SpecInfo
from trainrun.plugin.instance import Instance


def check_hooks(instance: Instance, description: Description, specs: Mapping[str, SpecInfo]) -> list[Problem]:
    """Return the problems of hookimpls that do not fit their hook."""
    return [
        Problem(instance.where, f"{_place(impl)}: {what}", _hint(hint, instance))
        for impl in description.impls
        for what, hint in _mistakes(impl, specs, instance)
    ]


def check_specs(members: Sequence[tuple[Instance, Description]], own: Mapping[str, SpecInfo]) -> list[Problem]:
    """Return the problems of the hooks that plugins bring.

    Such a hook has a wrong value, or a name that is taken.
    """
    problems = []
    holders = dict.fromkeys(own, "trainrun")
    targets: dict[str, str] = {}
    for instance, description in members:
        for spec in description.specs:
            brings = f"it brings the hook {spec.hook}"
            problems += [
                Problem(instance.where, f"{brings} with {what}", instance.switch) for what in _wrong_values(spec)
            ]
            # Two instances of one plugin bring the same hooks.
            if spec.hook in holders and targets.get(spec.hook) != instance.target:
                what = f"{brings}, which {holders[spec.hook]} has already"
                problems.append(Problem(instance.where, what, _hint("rename it", instance)))
            holders.setdefault(spec.hook, f"plugin {instance.name}")
            targets.setdefault(spec.hook, instance.target)
    return problems


def _wrong_values(spec: SpecInfo) -> Iterator[str]:
    for name, value, allowed in (
        ("locus", spec.locus, get_args(Locus)),
        ("kind", spec.kind, get_args(Kind)),
        ("ranks", spec.ranks, (None, *get_args(Ranks))),
    ):
        if value not in allowed:
            yield f"{name}={value!r}; use one of {', '.join(map(repr, filter(None, allowed)))}"


def unmarked_notes(instance: Instance, description: Description) -> list[str]:
    """Return a note for each function that looks like a hookimpl.

    Without the mark it will never be called.
    """
    return [
        f"{instance.where}: {name} is not marked with @hookimpl, so it will not be called"
        for name in description.unmarked
    ]


def _hint(hint: str, instance: Instance) -> str:
    return f"{hint}; {instance.switch}" if instance.switch else hint


def _mistakes(impl: ImplInfo, specs: Mapping[str, SpecInfo], instance: Instance) -> Iterator[tuple[str, str]]:
    spec = specs.get(impl.hook)
    if spec is None:
        yield f"there is no hook {impl.hook!r}", _near(impl.hook, specs) or "trainrun hooks lists them all"
        return
    yield from _signature(impl, spec)
    if impl.ranks is not None and impl.ranks not in get_args(Ranks):
        values = " or ".join(map(repr, get_args(Ranks)))
        yield f"ranks={impl.ranks!r} is no set of ranks, so it would never be called", f"use ranks={values}"
    if spec.locus == "client" and instance.role == "task":
        why = "the launching process calls it, which does not import the task, so it would never be called"
        yield f"{spec.hook}: {why}", "put it into a plugin with a table [plugins.NAME]"
    if impl.background:
        yield from _background(impl, spec)


def _signature(impl: ImplInfo, spec: SpecInfo) -> Iterator[tuple[str, str]]:
    for name in impl.arguments:
        if name not in spec.arguments:
            offered = f"{spec.hook} offers {', '.join(spec.arguments) or 'no arguments'}"
            yield f"{spec.hook} has no argument {name!r}", _near(name, spec.arguments) or offered
    for name in impl.keyword_only:
        yield f"{name!r} is keyword-only, which no hook can fill", "remove the * before it"
    if impl.var_keyword:
        yield "it takes ** arguments, which no hook fills", "name the arguments that you want"


def _background(impl: ImplInfo, spec: SpecInfo) -> Iterator[tuple[str, str]]:
    if spec.kind != "event" or impl.wrapper or impl.mutates:
        what = "a wrapper" if impl.wrapper else "what mutates" if impl.mutates else f"a {spec.kind}"
        yield f"{what} cannot run in the background", "remove background=True"
    for name in impl.arguments:
        if name in spec.arguments and name not in (*spec.host, "run"):
            why = f"{name!r} is not a host value, so it cannot wait for a background thread"
            yield why, f"take only {', '.join((*spec.host, 'run'))}, or remove background=True"


def _near(word: str, candidates: Iterable[str]) -> str | None:
    # Only needed once something is wrong, while the recipe package takes its time to import.
    from trainrun.recipe.suggest import did_you_mean  # noqa: PLC0415

    return did_you_mean(word, candidates)


def _place(impl: ImplInfo) -> str:
    return f"{impl.function} ({Path(impl.file).name}:{impl.line})"
