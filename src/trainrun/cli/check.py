"""`trainrun check`: are these recipes right, and what set a value?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from trainrun.cli import options, reporting
from trainrun.cli.echo import answers_only, echo
from trainrun.errors import ExitCode, Problem, RecipeError, TrainrunError, UsageError

if TYPE_CHECKING:
    from trainrun.plugin.resolve import Resolved


class Checked(NamedTuple):
    """One recipe, and what came of it: an error, or the resolved recipe if it could be resolved."""

    recipe: str
    resolved: Resolved | None
    error: TrainrunError | None

    @property
    def code(self) -> int:
        """Return the exit code of this recipe alone."""
        return int(ExitCode.OK if self.error is None else self.error.exit_code)


@click.command("check")
@options.recipes
@options.override
@options.plugin
@click.option("--why", "why", metavar="KEY", help="Show the source of the value of KEY.")
@click.option("--print", "show", is_flag=True, help="Print the resolved recipe, with defaults and without secrets.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    help="Output format: text, one JSON document, or GitHub Actions annotations.  [default: text]",
)
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
@options.refresh
@options.traceback
@answers_only
def command(
    *,
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    why: str | None,
    show: bool,
    form: str | None,
    as_json: bool,
    refresh: bool,
) -> None:
    """Check each RECIPE (default: train.toml) and everything it names; start nothing.

    All problems are reported at once, with file, line and column. Exit code 2 means that a recipe is wrong, 4 that a
    plugin is. All recipes are checked, and the exit code is that of the first wrong one.
    """
    if as_json and form not in {None, "json"}:
        raise UsageError(f"--json and --format {form}: use one of them")
    if len(recipes) > 1 and (why or show):
        raise UsageError(f"{'--why' if why else '--print'} takes one recipe, got {len(recipes)}")
    key = _key(why) if why else None
    form = "json" if as_json else form or "text"
    quiet = form != "text"
    checked = [_checked(recipe, overrides, plugins, quiet=quiet, refresh=refresh) for recipe in recipes]
    if len(checked) == 1 and checked[0].error is not None and form == "text":
        raise checked[0].error
    _REPORTS[form](checked, key, show)
    raise click.exceptions.Exit(next((one.code for one in checked if one.error is not None), 0))


def _checked(recipe: str, overrides: Sequence[str], plugins: Sequence[str], *, quiet: bool, refresh: bool) -> Checked:
    from trainrun.launch.busy import Busy  # noqa: PLC0415 - help should not pay for it
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415

    resolved = None
    try:
        with Busy(quiet=quiet) as busy:
            resolved = resolve(recipe, overrides, plugins, refresh=refresh, tell=busy.importing)
        resolved.require()
        _ask_plugins(resolved, quiet=quiet)
    except TrainrunError as error:
        return Checked(recipe, resolved, error)
    return Checked(recipe, resolved, None)


# --- the formats ---


def _text(checked: Sequence[Checked], key: tuple[str, ...] | None, show: bool) -> None:
    for recipe, resolved, error in checked:
        if error is not None:
            if click.get_current_context().meta.get(options.TRACEBACK):
                reporting.show_tracebacks(error)
            reporting.complain_of(error)
        elif resolved is not None:
            for note in resolved.notes:
                echo(f"note: {note}", err=True)
            echo(_answer(recipe, resolved, key, show=show), nl=not show)


def _json(checked: Sequence[Checked], _: tuple[str, ...] | None, __: bool) -> None:
    found = [_document(one) for one in checked]
    ok = all(one.error is None for one in checked)
    several: dict[str, Any] = {"version": options.JSON_VERSION, "ok": ok, "recipes": found}
    echo(json.dumps(found[0] if len(found) == 1 else several, indent=2))


def _github(checked: Sequence[Checked], key: tuple[str, ...] | None, show: bool) -> None:
    for recipe, resolved, error in checked:
        for problem in () if error is None else reporting.problems_of(error):
            echo(reporting.annotation("error", recipe, problem))
        if error is None and resolved is not None:
            for note in resolved.notes:
                echo(reporting.annotation_of_note(recipe, note))
            echo(_answer(recipe, resolved, key, show=show), nl=not show)


_REPORTS: dict[str, Callable[[Sequence[Checked], tuple[str, ...] | None, bool], None]] = {
    "text": _text,
    "json": _json,
    "github": _github,
}


def _answer(recipe: str, resolved: Resolved, key: tuple[str, ...] | None, *, show: bool) -> str:
    from trainrun.recipe import freeze  # noqa: PLC0415

    if key:
        return explain(resolved, key)
    return freeze(resolved.data, resolved.schema) if show else _summary(recipe, resolved)


def _key(text: str) -> tuple[str, ...]:
    from trainrun.recipe.overrides import parse_key  # noqa: PLC0415

    try:
        return parse_key(text)
    except ValueError as error:
        raise RecipeError([Problem("--why", *error.args)]) from None


def _ask_plugins(resolved: Resolved, *, quiet: bool) -> None:
    """Let plugins veto the recipe.

    Plugins and pydantic's models are imported only if a plugin may do so.
    """
    described = [resolved.descriptions.get(instance.target) for instance in resolved.instances]
    if not any(impl.hook == "check_recipe" for one in described if one for impl in one.impls):
        return
    from trainrun.launch.hooks import client_hooks, require_no_veto  # noqa: PLC0415
    from trainrun.recipe import Recipe  # noqa: PLC0415

    require_no_veto(client_hooks(resolved, lambda _: None), Recipe.from_data(resolved.data), quiet=quiet)


def explain(resolved: Resolved, key: tuple[str, ...]) -> str:
    """Describe what set the value of `key`, and what it overrode."""
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


def _document(checked: Checked) -> dict[str, Any]:
    from trainrun.recipe.plain import json_form  # noqa: PLC0415

    recipe, resolved, error = checked
    document: dict[str, Any] = {"version": options.JSON_VERSION, "recipe": recipe, "ok": error is None}
    document["problems"] = [] if error is None else reporting.listed(reporting.problems_of(error))
    if error is None and resolved is not None:
        document["notes"] = list(resolved.notes)
        document["resolved"] = json_form(resolved.shown)
    return document
