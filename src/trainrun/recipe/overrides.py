"""Overrides from the command line: ``-o optimizer.lr=1e-3`` sets a key, ``-o ~optimizer.lr`` removes one.

The value is TOML; what is no TOML is a string, so that paths, names and `a=b` need no quotes within the shell's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import tomli

from trainrun.errors import Problem, RecipeError
from trainrun.recipe.plain import Key
from trainrun.recipe.schema import Schema
from trainrun.recipe.secret import REDACTED, is_secret, is_secret_at, mask
from trainrun.recipe.source import Location

_OPTIONS = ("--override=", "-o")
_REMOVES = "~"
_TOML = ("[", "{", '"', "'")  # what begins so was meant as TOML


class Override(NamedTuple):
    """One override as a small document of its own. `removes` is the key that it takes out of the recipe, if it does."""

    name: str
    data: dict[str, Any]
    rank: int
    removes: tuple[str, ...] = ()

    def locate(self, key: Key) -> Location:
        """Return the place of the override.

        It is the same for every key.
        """
        return Location(self.name, rank=self.rank) if key else Location("command line", rank=self.rank)


def parse_overrides(texts: Sequence[str], rank: int) -> list[Override]:
    """Return all overrides in order.

    Raises a RecipeError with everything that is wrong with them.
    """
    overrides, problems = [], []
    for number, text in enumerate(texts, 1):
        try:
            if text.startswith(_REMOVES) and not _split(text)[1]:
                removed = parse_key(text.removeprefix(_REMOVES))
                overrides.append(Override(f"-o #{number}", {}, rank + number, removed))
            else:
                overrides.append(Override(f"-o #{number}", _parse(text), rank + number))
        except ValueError as error:
            problems.append(Problem(f"-o #{number}", *error.args))
    if problems:
        raise RecipeError(problems)
    return overrides


def _parse(text: str) -> dict[str, Any]:
    key_text, equals, value_text = _split(text)
    if not equals:
        raise ValueError(f"expected KEY=VALUE or ~KEY, got {text[:80]!r}", "for example -o optimizer.lr=1e-3")
    keys = parse_key(key_text)
    if keys == ("extends",):
        raise ValueError("extends: cannot be overridden", "name the other recipe instead of this one")
    value = _value(value_text.strip(), keys)
    for key in reversed(keys):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def _split(text: str) -> tuple[str, str, str]:
    """Split at the first ``=`` that is not within a quoted key."""
    found = re.match(r"""((?:"[^"]*"|'[^']*'|[^"'=])*)=(.*)""", text, re.DOTALL)
    return (found[1], "=", found[2]) if found else (text, "", "")


def parse_key(text: str) -> tuple[str, ...]:
    """Return the parts of a key as TOML writes it.

    An example is ``plugins.web.headers."X.Id"``. Raises ValueError.
    """
    try:
        table: Any = tomli.loads(f"{text.strip()} = 0") if "\n" not in text else {}
    except (tomli.TOMLDecodeError, RecursionError):
        table = {}
    keys = []
    while isinstance(table, dict) and len(table) == 1:
        key, table = next(iter(table.items()))
        keys.append(key)
    if table != 0:
        raise ValueError(f"not a key: {text[:80]!r}", "write the table and the key, as in optimizer.lr")
    return tuple(keys)


def _value(text: str, keys: tuple[str, ...]) -> Any:
    name = ".".join(keys)
    if not text:
        raise ValueError(f"{name}: no value given", 'an empty string is written "", in the shell \'""\'')
    if "\n" in text:
        raise ValueError(f"{name}: the value has a line break", 'write it as \\n within TOML quotes, as in "a\\nb"')
    try:
        parsed = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    if parsed.keys() == {"value"}:
        return parsed["value"]
    if not text.startswith(_TOML):
        return text
    shown = "its value" if any(is_secret(key) for key in keys) else repr(text[:80])
    raise ValueError(
        f"{name}: {shown} begins like a TOML list, table or string and is none",
        "look for a missing bracket or quote; the shell removes quotes that are not within others",
    )


def masked(argument: str, schema: Schema) -> str:
    """Return an argument of the command line without the secret that it sets.

    The argument is an override or a line of TOML.
    """
    option = next((one for one in _OPTIONS if argument.startswith(one)), "")
    key, equals, _ = _split(argument.removeprefix(option))
    try:
        path = parse_key(key) if equals else ()
    except ValueError:
        path = ()
    if path and is_secret_at(path, schema):
        return f"{option}{key}={REDACTED}"
    return mask(argument)
