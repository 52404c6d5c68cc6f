"""What a shell may complete: run ids, plugins, hooks, keys of a recipe, steps of checkpoints, faults.

Called between two key strokes: nothing here imports a plugin, and a wrong recipe or run has no candidates instead of
a message in the middle of a command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from trainrun.errors import TrainrunError

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_Find = Callable[[click.Context, str], Iterable[str]]

_DEEPEST = 8  # tables within tables; a schema may refer to itself


def _completes(find: _Find) -> Complete:
    """Return click's callback that offers candidates of `find`.

    Candidates that begin with what is typed are offered.
    """

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = list(find(context, incomplete))
        except (TrainrunError, OSError):
            return []
        return [CompletionItem(one) for one in found if one.startswith(incomplete)]

    return complete


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file."""
    return [CompletionItem(incomplete, type="file")]


def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the ids of runs, the newest first.

    Otherwise offer the one that has what is typed in its middle.
    """
    if "/" in incomplete:
        return files(context, parameter, incomplete)
    found = _run_ids(context, parameter, incomplete)
    parts = [] if found else [one for one in _ids(context) if incomplete in one]
    return found or ([CompletionItem(parts[0])] if len(parts) == 1 else [])


def _ids(context: click.Context) -> list[str]:
    from trainrun.rundir.create import run_ids  # noqa: PLC0415 - options.py imports this module for every command

    return run_ids(context.params.get("base") or Path("runs"))[::-1]


def _plugins(_: click.Context, incomplete: str) -> Iterator[str]:
    from trainrun.plugin.discovery import discover  # noqa: PLC0415

    for name in sorted(discover().plugins):
        yield f"no:{name}" if incomplete.startswith("no:") else name


def _hooks(_: click.Context, __: str) -> Iterator[str]:
    from trainrun.plugin.specs import own_specs  # noqa: PLC0415

    return (spec.hook for spec in own_specs())


def _steps(context: click.Context, _: str) -> Iterator[str]:
    from trainrun.checkpoint.layout import step_of  # noqa: PLC0415

    folders = [path.name for path in _run_of(context).checkpoints.iterdir()]
    steps = [step for name in folders if (step := step_of(name)) is not None]
    return map(str, sorted(steps, reverse=True))


def _run_of(context: click.Context) -> Any:
    from trainrun.rundir.create import find  # noqa: PLC0415

    return find(_named(context, "run") or "latest", context.params.get("base") or Path("runs"))


def _faults(_: click.Context, incomplete: str) -> Iterator[str]:
    from trainrun.builtin.fault import KINDS  # noqa: PLC0415

    before = incomplete.rpartition(",")[0]
    for name, kind in KINDS.items():
        yield f"{before}{',' if before else ''}{name}{':' if kind.takes else '@'}"


def _keys(context: click.Context, incomplete: str) -> Iterator[str]:
    if "=" in incomplete:
        return
    for key in keys_of(_schema(context)):
        yield f"~{key}" if incomplete.startswith("~") else f"{key}="


def _schema(context: click.Context) -> Mapping[str, Any]:
    from trainrun.plugin.resolve import known_schema, recipe_schema  # noqa: PLC0415

    try:
        path = _run_of(context).recipe if "run" in context.params else _named(context, "recipe", "recipes")
        return recipe_schema() if path is None else known_schema(path)
    except (TrainrunError, OSError):
        return recipe_schema()


def _named(context: click.Context, *parameters: str) -> str | None:
    """Return the recipe or run of the command line, or the default."""
    if context.args:  # click leaves what it has not assigned: the last option still lacks its value
        return str(context.args[0])
    values = [value for name in parameters if (value := context.params.get(name))]
    found = values[0] if values else None
    return found[0] if isinstance(found, tuple) else found


def keys_of(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted keys of a recipe's schema, in its order."""
    from trainrun.recipe.plain import dotted  # noqa: PLC0415
    from trainrun.recipe.schema import resolved  # noqa: PLC0415

    def walk(node: Mapping[str, Any], key: tuple[str, ...]) -> Iterator[str]:
        for name, inner in node.get("properties", {}).items():
            found = resolved(dict(schema), inner)
            if found.get("properties") and len(key) < _DEEPEST:
                yield from walk(found, (*key, name))
            else:
                yield dotted((*key, name))

    return walk(schema, ())


_run_ids = _completes(lambda context, _: [*_ids(context), "latest"])
plugins = _completes(_plugins)
hooks = _completes(_hooks)
steps = _completes(_steps)
faults = _completes(_faults)
keys = _completes(_keys)
