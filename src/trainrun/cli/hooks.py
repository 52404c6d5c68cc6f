"""`trainrun hooks`: every hook, and with a recipe who will run in it, in which order and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainrun.cli import completing, options, reporting
from trainrun.cli.columns import columns, terminal_width
from trainrun.cli.echo import echo
from trainrun.cli.plugins import broken_lines
from trainrun.errors import TrainrunError, UsageError

if TYPE_CHECKING:
    from trainrun.plugin.catalogue import Catalogue
    from trainrun.plugin.description import SpecInfo
    from trainrun.plugin.plan import Entry, HookPlan
    from trainrun.plugin.resolve import Resolved

_PROSE = 120  # columns of a manual, at most


@click.command("hooks")
@click.argument("recipe", metavar="[RECIPE]", required=False, shell_complete=completing.files)
@options.override
@options.plugin
@click.option(
    "--hook",
    "wanted",
    metavar="NAME",
    multiple=True,
    shell_complete=completing.hooks,
    help="Show only this hook, with its manual. May be repeated.",
)
@options.as_json
@options.refresh
@options.traceback
def command(
    *,
    recipe: str | None,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    wanted: tuple[str, ...],
    as_json: bool,
    refresh: bool,
) -> None:
    """List all hooks; with RECIPE, show what runs in each, in which order and why.

    Errors in the recipe or its plugins are reported after the list, with exit code 2 or 4.
    """
    if recipe is None:
        if overrides or plugins:
            raise UsageError("hooks: -o and -p change a recipe; give its path")
        _show_all(wanted, as_json=as_json, refresh=refresh)
        return
    from trainrun.launch.busy import Busy  # noqa: PLC0415 - help should not pay for it
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415

    with Busy() as busy:
        resolved = resolve(recipe, overrides, plugins, refresh=refresh, tell=busy.importing)
    _require_known(wanted, resolved.specs)
    document = _plan_document(recipe, resolved, wanted) if as_json else None
    echo(json.dumps(document, indent=2) if document else "\n".join(plan_lines(resolved, wanted)))
    for note in resolved.notes:
        echo(f"note: {note}", err=True)
    try:
        resolved.require()
    except TrainrunError as error:
        if not as_json:
            raise
        reporting.complain_of(error)  # the document is printed already, and names the problems
        raise click.exceptions.Exit(int(error.exit_code)) from None


def _require_known(wanted: Sequence[str], specs: Mapping[str, SpecInfo]) -> None:
    for hook in wanted:
        if hook in specs:
            continue
        from trainrun.recipe.suggest import did_you_mean  # noqa: PLC0415

        hint = did_you_mean(hook, specs) or "trainrun hooks lists them"
        raise UsageError(f"--hook: no hook is called {hook!r}; {hint}")


# --- without a recipe --------------------------------------------------------------------------


def _show_all(wanted: Sequence[str], *, as_json: bool, refresh: bool) -> None:
    from trainrun.plugin.catalogue import catalogue  # noqa: PLC0415

    found = catalogue(refresh=refresh)
    _require_known(wanted, found.specs)
    if as_json:
        echo(json.dumps(_catalogue_document(found, wanted), indent=2))
    elif wanted:
        echo("\n".join(line for hook in wanted for line in _manual(found.specs[hook])))
    else:
        echo("\n".join([*_catalogue_lines(found), *broken_lines(found.broken)]))


def _catalogue_document(found: Catalogue, wanted: Sequence[str]) -> dict[str, Any]:
    from trainrun.plugin.plan import HookPlan  # noqa: PLC0415

    return {
        "version": options.JSON_VERSION,
        "recipe": None,
        "hooks": [HookPlan(spec).to_json() for name, spec in found.specs.items() if not wanted or name in wanted],
        "broken": [one.to_json() for one in found.broken],
    }


def _catalogue_lines(found: Catalogue) -> Iterator[str]:
    head = ("HOOK", "LOCUS", "KIND", "RANKS", "WHEN")
    rows = [(spec.hook, spec.locus, spec.kind, spec.ranks or "-", spec.summary) for spec in found.specs.values()]
    yield from columns([head, *rows], width=terminal_width())
    yield ""
    yield "trainrun hooks RECIPE shows what runs in each; trainrun hooks --hook NAME shows its manual."


# --- with a recipe -----------------------------------------------------------------------------


def _plan_document(recipe: str, resolved: Resolved, wanted: Sequence[str]) -> dict[str, Any]:
    hooks = resolved.plan.to_json()
    return {
        "version": options.JSON_VERSION,
        "recipe": recipe,
        "instances": [instance.to_json() for instance in resolved.instances],
        "hooks": [one for one in hooks if not wanted or one["hook"] in wanted],
        "broken": [
            {"instance": one.name, "where": one.where, "error": resolved.description(one).error, "switch": one.switch}
            for one in resolved.instances
            if not resolved.description(one).ok
        ],
        "installed_not_enabled": list(resolved.installed_not_enabled),
        "problems": [{"where": one.where, "what": one.what, "hint": one.hint} for one in resolved.problems],
        "notes": list(resolved.notes),
    }


def plan_lines(resolved: Resolved, wanted: Sequence[str] = ()) -> Iterator[str]:
    """Yield the order of plugins, and each hook with its hookimpls.

    Of the wanted hooks the manual is included.
    """
    for hook in wanted:
        yield from _manual(resolved.specs[hook])
        yield from next(_entries([resolved.plan.hooks[hook]]))
        if hook != wanted[-1]:
            yield ""
    if wanted:
        return
    yield f"Order: {', '.join(_named(resolved))}"
    if resolved.installed_not_enabled:
        yield f"Installed, not enabled: {', '.join(resolved.installed_not_enabled)}"
    answered = [one for one in resolved.plan.hooks.values() if one.entries]
    for one, entries in zip(answered, _entries(answered), strict=True):
        yield from ("", _title(one.spec), *entries)
    silent = [name for name, one in resolved.plan.hooks.items() if not one.entries]
    yield from ("", f"Not implemented: {', '.join(silent)}")


def _named(resolved: Resolved) -> Iterator[str]:
    for instance in resolved.instances:
        yield instance.name if resolved.description(instance).ok else f"{instance.name} (broken)"


def _title(spec: SpecInfo) -> str:
    ranks = f", ranks {spec.ranks}" if spec.ranks else ""
    return f"{spec.hook}  {spec.locus} {spec.kind}{ranks}"


def _manual(spec: SpecInfo) -> Iterator[str]:
    yield _title(spec)
    yield f"  arguments: {', '.join(spec.arguments) or 'none'}"
    yield f"  {_short(spec.file)}:{spec.line}"
    yield ""
    yield from _reflowed(spec.doc)
    yield ""


def _reflowed(doc: str) -> Iterator[str]:
    """Fill the paragraphs of a manual to the terminal.

    What is indented, as code is, stays as it is.
    """
    import textwrap  # noqa: PLC0415

    width = min(terminal_width() or _PROSE, _PROSE)
    for place, paragraph in enumerate(doc.strip("\n").split("\n\n")):
        if place:
            yield ""
        lines = paragraph.splitlines()
        if any(line.startswith((" ", "- ", "* ")) for line in lines):
            yield from (f"  {line}".rstrip() for line in lines)
        else:
            text = " ".join(line.strip() for line in lines)
            yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _entries(plans: Sequence[HookPlan]) -> Iterator[list[str]]:
    """Yield the lines of each hook, aligned over all of them."""
    lines = iter(columns([_row(number, entry) for plan in plans for number, entry in enumerate(plan.entries, 1)], "  "))
    for plan in plans:
        yield [next(lines) for _ in plan.entries]


def _row(number: int, entry: Entry) -> tuple[str, ...]:
    instance, impl = entry.instance, entry.impl
    owner = f"{instance.distribution} {instance.version}" if instance.distribution else "trainrun"
    if instance.role != "builtin" and instance.distribution is None:
        owner = "-"
    return (
        str(number),
        instance.name,
        f"ranks {entry.ranks}" if entry.ranks else "",
        {True: "wins", False: "loses", None: "background" if impl.background else ""}[entry.winner],
        f"on error: {entry.policy}",
        entry.reason,
        owner,
        f"{_short(impl.file)}:{impl.line}",
    )


def _short(file: str) -> str:
    """Return a relative path if that is shorter."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file
