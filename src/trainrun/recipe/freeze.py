"""The resolved recipe as TOML text, without its secrets."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainrun.recipe.schema import Schema
from trainrun.recipe.secret import redact

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def freeze(data: Mapping[str, Any], schema: Schema | None = None) -> str:
    """Return TOML text of `data` with secrets redacted.

    They are redacted by the types in `schema` too. The text reads back as redacted.
    """
    return toml_text(redact(data, schema))


def toml_text(data: Mapping[str, Any]) -> str:
    """Return TOML text of `data` with all that is in it.

    Raises TypeError for a value that TOML cannot hold.
    """
    return "\n".join(_table((), data)).strip() + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table, plain keys first.

    Keys that follow a header would belong to that header.
    """
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    if path and (plain or not tables):
        yield ""
        yield f"[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {toml_value(value)}"
    for key, value in tables.items():
        yield from _table((*path, key), value)


def toml_value(value: Any) -> str:
    """Return one value as TOML writes it."""
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items() if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"TOML cannot hold {type(value).__name__}")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(letter) or _control(letter) for letter in text) + '"'


def _control(letter: str) -> str:
    code = ord(letter)
    return f"\\u{code:04x}" if code < 0x20 or code == 0x7F else letter
