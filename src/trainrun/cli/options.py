"""Options and arguments that several commands share, and how a run is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

Option = Callable[[F], F]

JSON_VERSION = 1

override = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the recipe, as in -o optimizer.lr=1e-3.",
)
plugin = click.option(
    "-p", "--plugin", "plugins", multiple=True, metavar="NAME", help="Enable a plugin; no:NAME turns it off."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")
refresh = click.option("--refresh", is_flag=True, help="Import plugins and task again instead of trusting the cache.")
base = click.option(
    "--dir",
    "base",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="The folder that holds the runs.",
)
run = click.argument("run", metavar="[RUN]", default="latest")
