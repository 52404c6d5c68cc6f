"""What commands print: the one place in `trainrun.cli` that writes to the terminal, and escapes what goes there."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import click

from trainrun.launch.stray import Stray, current
from trainrun.printing import escape

F = TypeVar("F", bound=Callable[..., Any])


class Styled(NamedTuple):
    """A text in a colour of trainrun's own."""

    text: str
    color: str | None = None
    bold: bool = False


def echo(*parts: object, err: bool = False, nl: bool = True, color: bool | None = None) -> None:
    """Write the parts, one after the other, and an end of line. color: whether to colour; None: as click decides."""
    stray = None if err else current()
    answers = None if stray is None else stray.answers
    click.echo("".join(map(_rendered, parts)), file=answers, err=err, nl=nl, color=color)


def answers_only(command: F) -> F:
    """Decorate a command that imports plugins.

    Only what `echo` writes comes to standard output.
    """

    @wraps(command)
    def apart(*arguments: Any, **options: Any) -> Any:
        if current() is not None:
            return command(*arguments, **options)
        with Stray():
            return command(*arguments, **options)

    return cast("F", apart)


def _rendered(part: object) -> str:
    if isinstance(part, Styled):
        return click.style(escape(part.text), fg=part.color, bold=part.bold or None)
    return escape(part)
