"""`trainrun init`: a commented recipe to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from trainrun.cli.echo import echo
from trainrun.errors import UsageError


@click.command("init")
@click.argument("path", metavar="[PATH]", default="train.toml")
@click.option("--full", "whole", is_flag=True, help="Write every table and key, with default and description.")
def command(*, path: str, whole: bool) -> None:
    """Write a commented recipe to PATH (default: train.toml); never overwrite a file.

    With --full, it has all tables and keys. Lines that are commented out show the defaults.
    """
    text = _full() if whole else _template()
    target = Path(path) / "train.toml" if Path(path).is_dir() else Path(path)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} already exists; give another path") from None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    echo(target)
    named = shlex.quote(str(target))
    echo(f"Next: trainrun check {named}, then trainrun launch {named}", err=True)


def _template() -> str:
    from trainrun.recipe.template import TEMPLATE  # noqa: PLC0415

    return TEMPLATE


def _full() -> str:
    import tomli  # noqa: PLC0415

    from trainrun.plugin.resolve import recipe_schema  # noqa: PLC0415
    from trainrun.recipe.full import full  # noqa: PLC0415

    return full(recipe_schema(), tomli.loads(_template()))
