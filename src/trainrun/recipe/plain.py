"""Plain values: what TOML can hold, as JSON holds it, and keys as messages show them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, TypeAlias

Key: TypeAlias = tuple[str | int, ...]

SLUG = r"^[a-z0-9]+([._-]?[a-z0-9]+)*$"  # names of which others are made, such as run ids


def json_form(value: Any) -> Any:
    """Return the value as JSON would hold it.

    Dates and times become ISO texts.
    """
    if isinstance(value, Mapping):
        return {key: json_form(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_form(inner) for inner in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value


def lookup(data: Any, key: Key) -> tuple[bool, Any]:
    """Return whether `data` holds `key`, and its value there."""
    for part in key:
        if isinstance(data, Mapping):
            if part not in data:
                return False, None
        elif not (isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)):
            return False, None
        data = data[part]
    return True, data


def dotted(key: Key) -> str:
    """Return a key as messages show it: ``optimizer.groups[0].match``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if "." not in part else f'."{part}"'
    return text.removeprefix(".")
