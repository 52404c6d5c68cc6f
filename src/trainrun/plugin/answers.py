"""Check the recipe's `[providers]` table against the plugins that implement provider hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trainrun.errors import Problem
from trainrun.plugin.description import SpecInfo
from trainrun.plugin.plan import Members
from trainrun.recipe.document import Document
from trainrun.recipe.suggest import did_you_mean

# Backends decide for themselves: each implements the hook only for its own name in launch.backend.
_SHARED = ("start_workers",)


def check_providers(document: Document, members: Members, specs: Mapping[str, SpecInfo]) -> list[Problem]:
    """Return the problems of `[providers]`: wrong lines and missing ones.

    A line is wrong if it names no provider hook, or no plugin that implements the hook. It is missing if a hook needs
    one.
    """
    hooks = [name for name, spec in specs.items() if spec.kind == "provider"]
    chosen = chosen_providers(document)
    return [*_bad_lines(document, members, hooks, chosen), *_undecided(document, members, hooks, chosen)]


def chosen_providers(document: Document) -> dict[str, str]:
    """Return the `[providers]` table: hook to instance."""
    table = document.data.get("providers")
    lines = table.items() if isinstance(table, dict) else ()
    return {hook: name for hook, name in lines if isinstance(name, str)}


def _bad_lines(
    document: Document, members: Members, hooks: Sequence[str], chosen: Mapping[str, str]
) -> Iterator[Problem]:
    for hook, name in chosen.items():
        place = document.locate(("providers", hook))
        able = [owner.name for owner, impls in members if any(i.hook == hook and not i.wrapper for i in impls)]
        if hook not in hooks:
            hint = did_you_mean(hook, hooks) or "trainrun hooks lists them"
            yield place.problem(f"providers.{hook}: no provider hook is called that", hint)
        elif name not in able:
            hint = did_you_mean(name, able) or f"those that do: {', '.join(able) or 'none'}"
            yield place.problem(f"providers.{hook}: no enabled plugin {name!r} implements it", hint)


def _undecided(
    document: Document, members: Members, hooks: Sequence[str], chosen: Mapping[str, str]
) -> Iterator[Problem]:
    for hook in hooks:
        rivals = [
            owner.name
            for owner, impls in members
            if owner.role == "plugin" and any(impl.hook == hook and not impl.wrapper for impl in impls)
        ]
        if len(rivals) > 1 and hook not in chosen and hook not in _SHARED:
            place = document.locate(("plugins", rivals[-1]))
            several = f"{hook} has several providers: {', '.join(rivals)}"
            what = f"{' and '.join(rivals)} both implement {hook}" if len(rivals) == 2 else several
            yield place.problem(what, f'choose: {hook} = "{rivals[0]}" under [providers]')
