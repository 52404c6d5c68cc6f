"""Times and numbers as people read them."""

from __future__ import annotations

import time


def moment(seconds: float | None) -> str:
    """Return a local time, to the second."""
    return "" if not seconds else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def minute(seconds: float | None) -> str:
    """Return a local time for a narrow column.

    It is without seconds and the year, and of today without the date.
    """
    if not seconds:
        return ""
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%m-%d %H:%M", then)


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    if seconds < 0:
        return "?"  # the clock was set back in between
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def number(value: object) -> str:
    """Return a metric as a short text."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
