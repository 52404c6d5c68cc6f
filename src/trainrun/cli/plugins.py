"""`trainrun plugins`: what is installed, and does it work?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from trainrun.cli import options
from trainrun.cli.columns import columns, terminal_width
from trainrun.cli.echo import echo

if TYPE_CHECKING:
    from trainrun.plugin.catalogue import Catalogue, Listed


@click.command("plugins")
@options.as_json
@options.refresh
@options.traceback
def command(*, as_json: bool, refresh: bool) -> None:
    """List all installed plugins, and the errors of those that do not work.

    An installed plugin does nothing until a recipe has a table [plugins.NAME], or -p NAME enables it.
    """
    from trainrun.plugin.catalogue import catalogue  # noqa: PLC0415 - help should not pay for it

    found = catalogue(refresh=refresh)
    echo(json.dumps(_document(found), indent=2) if as_json else "\n".join(_lines(found)))


def _document(found: Catalogue) -> dict[str, Any]:
    return {
        "version": options.JSON_VERSION,
        "plugins": [one.to_json() for one in found.plugins],
        "commands": [
            {"name": name, "target": entry.value, "distribution": entry.distribution, "version": entry.version}
            for name, entries in found.commands.items()
            for entry in entries
        ],
    }


def _lines(found: Catalogue) -> Iterator[str]:
    working = [one for one in found.plugins if not one.error]
    rows = [(one.instance.name, one.status, distribution(one), one.description.summary) for one in working]
    yield from columns([("PLUGIN", "STATUS", "DISTRIBUTION", "WHAT IT DOES"), *rows], width=terminal_width())
    commands = [(name, str(entry)) for name, entries in found.commands.items() for entry in entries]
    if commands:
        yield from ("", "Commands", *columns(commands, "  "))
    yield from broken_lines(found.broken)


def broken_lines(broken: list[Listed]) -> Iterator[str]:
    """Yield what is wrong with each broken plugin.

    How to do without it is included. Tracebacks are included if they are asked for.
    """
    traced = click.get_current_context().meta.get(options.TRACEBACK)
    if broken:
        yield from ("", "Broken plugins")
    for one in broken:
        yield f"  {one.instance.name} ({one.instance.origin})"
        yield f"      {one.error}"
        yield f"      {one.switch}"
        if traced and one.description.traceback:
            yield from ("", one.description.traceback.rstrip(), "")


def distribution(one: Listed) -> str:
    """Name and version of the distribution that brings it."""
    instance = one.instance
    return f"{instance.distribution} {instance.version}" if instance.distribution else "trainrun"
