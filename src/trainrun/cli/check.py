"""`trainrun check`: is this recipe right, and where does a value come from?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from trainrun.cli import options
from trainrun.cli.echo import answers_only, echo
from trainrun.errors import Problem, RecipeError, TrainrunError, UsageError

if TYPE_CHECKING:
    from trainrun.plugin.resolve import Resolved


@click.command("check")
@click.argument("recipe", metavar="RECIPE")
@options.override
@options.plugin
@click.option("--why", "why", metavar="KEY", help="Show where the value of KEY comes from.")
@click.option("--print", "show", is_flag=True, help="Print the resolved recipe, defaults filled in, secrets left out.")
@options.as_json
@options.refresh
@options.traceback
@answers_only
def command(
    *,
    recipe: str,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    why: str | None,
    show: bool,
    as_json: bool,
    refresh: bool,
) -> None:
    """Check RECIPE and everything it names, and start nothing.

    All problems are reported at once, with file, line and column. Exit code 2 means that the recipe
    is wrong, 4 that a plugin is.
    """
    from trainrun.launch.busy import Busy  # noqa: PLC0415 - help should not pay for it
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415

    key = _key(why) if why else None
    try:
        with Busy() as busy:
            resolved = resolve(recipe, overrides, plugins, refresh=refresh, tell=busy.importing)
        resolved.require()
        _ask_plugins(resolved)
    except TrainrunError as error:
        if not as_json:
            raise
        echo(json.dumps(_document(recipe, error=error), indent=2))
        raise click.exceptions.Exit(int(error.exit_code)) from None
    if as_json:
        echo(json.dumps(_document(recipe, resolved), indent=2))
        return
    for note in resolved.notes:
        echo(f"note: {note}", err=True)
    echo(_answer(recipe, resolved, key, show=show), nl=not show)


def _answer(recipe: str, resolved: Resolved, key: tuple[str, ...] | None, *, show: bool) -> str:
    from trainrun.recipe import freeze  # noqa: PLC0415

    if key:
        return explain(resolved, key)
    return freeze(resolved.shown) if show else _summary(recipe, resolved)


def _key(text: str) -> tuple[str, ...]:
    from trainrun.recipe.overrides import parse_key  # noqa: PLC0415

    try:
        return parse_key(text)
    except ValueError as error:
        raise RecipeError([Problem("--why", *error.args)]) from None


def _ask_plugins(resolved: Resolved) -> None:
    """Let plugins veto the recipe. Only where one of them wants to are plugins and pydantic's models imported."""
    described = [resolved.descriptions.get(instance.target) for instance in resolved.instances]
    if not any(impl.hook == "check_recipe" for one in described if one for impl in one.impls):
        return
    from trainrun.launch.hooks import client_hooks, require_no_veto  # noqa: PLC0415
    from trainrun.recipe import Recipe  # noqa: PLC0415

    require_no_veto(client_hooks(resolved, lambda _: None), Recipe.from_data(resolved.data))


def explain(resolved: Resolved, key: tuple[str, ...]) -> str:
    """Where the value of `key` comes from, and what it overrode."""
    from trainrun.recipe import suggest  # noqa: PLC0415
    from trainrun.recipe.plain import dotted, lookup  # noqa: PLC0415
    from trainrun.recipe.secret import REDACTED, redact_at  # noqa: PLC0415
    from trainrun.recipe.wording import value_in_words  # noqa: PLC0415

    def shown(value: Any) -> str:
        told = redact_at(key, value, resolved.schema)
        return REDACTED if told == REDACTED else value_in_words(told)

    name = dotted(key)
    present, value = lookup(resolved.data, key)
    origin = resolved.document.origin(key)
    if not present:
        _, table = lookup(resolved.data, key[:-1])
        near = suggest(key[-1], table if isinstance(table, dict) else ())
        hint = f"; did you mean {dotted((*key[:-1], near))!r}?" if near else ""
        raise UsageError(f"--why: {name} is not set and has no default{hint}")
    if origin is None:
        return f"{name} = {shown(value)}\n  {_default_of(key)}"
    lines = [f"{name} = {shown(value)}", f"  set at {origin.location}"]
    lines += [f"  overrides {shown(below.value)} at {below.location}" for below in origin.overrode]
    return "\n".join(lines)


def _default_of(key: tuple[str, ...]) -> str:
    if key[0] == "plugins" and len(key) > 1:
        return f"default of plugin {key[1]}"
    return "default of the task" if key[0] == "task" else "default of trainrun"


def _summary(recipe: str, resolved: Resolved) -> str:
    plugins = [instance.name for instance in resolved.instances if instance.role == "plugin"]
    task = resolved.data["task"]["use"]
    return f"{recipe}: ok · task {task} · plugins {', '.join(plugins) or 'none'}"


def _document(recipe: str, resolved: Resolved | None = None, error: TrainrunError | None = None) -> dict[str, Any]:
    from trainrun.recipe.plain import json_form  # noqa: PLC0415

    document: dict[str, Any] = {"version": options.JSON_VERSION, "recipe": recipe, "ok": error is None}
    document["problems"] = [] if error is None else _problems(error)
    if resolved is not None:
        document["notes"] = list(resolved.notes)
        document["resolved"] = json_form(resolved.shown)
    return document


def _problems(error: TrainrunError) -> list[dict[str, Any]]:
    from trainrun.rundir.secrets import scrub_all  # noqa: PLC0415

    problems = getattr(error, "problems", None) or [Problem("trainrun", str(error))]
    found = [{"where": problem.where, "what": problem.what, "hint": problem.hint} for problem in problems]
    scrubbed: list[dict[str, Any]] = scrub_all(found)
    return scrubbed
