"""Durations: a number of seconds, or a text such as ``30s``, ``10m``, ``1h30m``."""

from __future__ import annotations

import re

PATTERN = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d))+$"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9.]+)(ms|s|m|h|d)")


def seconds(text: str) -> float:
    """Return the seconds in a duration's text. Raises ValueError."""
    if not re.fullmatch(PATTERN[1:-1], text):
        raise ValueError(f"not a duration: {text[:40]!r}; write 30s, 10m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
