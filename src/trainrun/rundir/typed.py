"""Values from files that any user may have written: of the wanted type, and of a size that can be shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LATEST = 4e10  # seconds since the epoch: the year 3237
_LARGEST = 2**63


def whole(value: Any) -> int | None:
    """Return an integer of 64 bits as it is, otherwise None."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST else None


def number(value: Any) -> float | None:
    """Return the value if it is a finite number, otherwise None."""
    if type(value) is int:
        return float(value) if abs(value) < _LARGEST else None
    return value if type(value) is float and math.isfinite(value) else None


def moment(value: Any) -> float | None:
    """Return a time in seconds since the epoch, otherwise None."""
    found = number(value)
    return found if found is not None and 0 <= found < LATEST else None


def text(value: Any) -> str | None:
    """Return the value if it is a text, otherwise None."""
    return value if isinstance(value, str) else None


def table(value: Any) -> dict[str, Any]:
    """Return the value if it is a table, otherwise an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def metrics(value: Any) -> dict[str, float | str]:
    """Return metrics by name.

    Those that are no finite numbers are texts.
    """
    found = {}
    for name, one in table(value).items():
        shown = one if isinstance(one, str) else whole(one) if type(one) is int else number(one)
        if shown is not None:
            found[name] = shown
    return found


def rows(value: Any) -> list[dict[str, Any]]:
    """Return the tables in a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
