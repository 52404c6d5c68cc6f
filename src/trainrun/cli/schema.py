"""`trainrun schema`: the recipe's JSON Schema, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trainrun.cli import completing, options
from trainrun.cli.echo import echo
from trainrun.errors import UsageError

_BESIDE = "-"  # what --write without a path stands for


@click.command("schema")
@click.argument("recipe", metavar="[RECIPE]", required=False, shell_complete=completing.files)
@click.option(
    "--write",
    "target",
    is_flag=False,
    flag_value=_BESIDE,
    metavar="[PATH]",
    help="Write the schema to a file, by default next to RECIPE.",
)
@options.plugin
def command(*, recipe: str | None, target: str | None, plugins: tuple[str, ...]) -> None:
    """Print the JSON Schema (draft-07) of recipes.

    With RECIPE, the schema includes the tables of its task and plugins. An editor with a TOML language server can then
    complete and check recipes while you type.
    """
    if target is not None and target.endswith(".toml") and recipe is None:
        recipe, target = target, _BESIDE  # `schema --write train.toml`: the recipe is meant, not the file to write
    text = json.dumps(draft07(recipe, plugins), indent=2, ensure_ascii=False)
    if target is None:
        echo(text)
        return
    path = _write(_place(recipe, target), text + "\n")
    echo(path)
    echo(f"Add this as the first line of {recipe or 'your recipe'}:\n#:schema ./{path.name}", err=True)


def draft07(recipe: str | None, plugins: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of recipes, or of one recipe.

    The latter includes its task and plugins. What is wrong in the recipe or broken in a plugin does not matter here, as
    long as the file can be read. A table whose owner cannot be asked may hold anything.
    """
    from trainrun.plugin.resolve import recipe_schema, resolve  # noqa: PLC0415
    from trainrun.recipe import to_draft07  # noqa: PLC0415

    return to_draft07(resolve(recipe, (), plugins).schema if recipe else recipe_schema())


def _place(recipe: str | None, target: str) -> Path:
    if target != _BESIDE:
        return Path(target)
    return Path(recipe).with_suffix(".schema.json") if recipe else Path("train.schema.json")


def _write(path: Path, text: str) -> Path:
    """Write the file. Something that is not a schema is never overwritten."""
    from trainrun.rundir.files import read_json, write_atomic  # noqa: PLC0415

    if path.exists() and "$schema" not in (read_json(path) or {}):
        raise UsageError(f"{path}: exists and is not a JSON Schema; give another path to --write")
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    return path
