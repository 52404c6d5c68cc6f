"""`trainrun init`: a commented recipe to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from trainrun.cli.echo import echo
from trainrun.errors import UsageError


@click.command("init")
@click.argument("path", metavar="[PATH]", default="train.toml")
def command(*, path: str) -> None:
    """Write a commented recipe to PATH (train.toml when left out). Nothing is ever overwritten."""
    from trainrun.recipe.template import TEMPLATE  # noqa: PLC0415

    target = Path(path) / "train.toml" if Path(path).is_dir() else Path(path)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise UsageError(f"{target} already exists; give another path") from None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    echo(target)
    named = shlex.quote(str(target))
    echo(f"Next: trainrun check {named}, then trainrun launch {named}", err=True)
