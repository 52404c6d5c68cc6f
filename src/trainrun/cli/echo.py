"""What commands print: the one place in `trainrun.cli` that writes to the terminal, and escapes what goes there."""

from __future__ import annotations

from typing import NamedTuple

import click

from trainrun.printing import escape


class Styled(NamedTuple):
    """A text in a colour of trainrun's own."""

    text: str
    color: str | None = None
    bold: bool = False


def echo(*parts: object, err: bool = False, nl: bool = True, color: bool | None = None) -> None:
    """Write the parts, one after the other, and an end of line. color: whether to colour; None: as click decides."""
    click.echo("".join(map(_rendered, parts)), err=err, nl=nl, color=color)


def _rendered(part: object) -> str:
    if isinstance(part, Styled):
        return click.style(escape(part.text), fg=part.color, bold=part.bold or None)
    return escape(part)
