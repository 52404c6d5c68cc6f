"""Names that MLflow takes: of metrics, parameters and tags, changed if they must be, and never two as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from zlib import crc32

from trainrun.printing import inline

TAG = "trainrun.name."  # of a metric: how it is really called

_LONGEST = 250  # characters
_VALUE = 5000  # characters of a tag
_ROOM = 20  # of them, for what tags put before a metric's name
_FOREIGN = re.compile(r"[^/\w.\- :]")


def valid(name: str) -> str:
    """Return the name as MLflow takes it.

    It is a path that is spelt in one way only, of certain characters.
    """
    parts = (part for part in _FOREIGN.sub("_", name).split("/") if part not in {"", "."})
    found = "/".join("__" if part == ".." else part for part in parts) or "_"
    if found.startswith(".."):
        found = f"_{found[1:]}"
    return found if len(found) <= _LONGEST else _marked(found, name)


def distinct(names: Iterable[str]) -> dict[str, str]:
    """Return each name with the one that it gets.

    It is its own if that is valid, and never that of another.
    """
    found = {name: name for name in names if valid(name) == name}
    for name in names:
        if name not in found:
            changed = valid(name)
            found[name] = _marked(changed, name) if changed in found.values() else changed
    return found


class MetricNames:
    """The names of one run's metrics: the first of two that would become one gets the plain name, also after a resume.

    taken: what the run has metrics of. tags: those of the run, of which some say how metrics are really called.
    """

    def __init__(self, taken: Iterable[str] = (), tags: Mapping[str, str] | None = None) -> None:
        self._given = {own: key.removeprefix(TAG) for key, own in (tags or {}).items() if key.startswith(TAG)}
        self._taken = {*taken, *self._given.values()}
        self._plain = self._taken - set(self._given.values())

    def get(self, name: str) -> tuple[str, dict[str, str]]:
        """Return the metric's name in MLflow, and tags to set first."""
        own = inline(name)[:_VALUE]  # as a tag can hold it
        if own in self._given:
            return self._given[own], {}
        changed = valid(name)
        if changed == name and (name in self._plain or name not in self._taken):
            self._plain.add(name)
            self._taken.add(name)
            return name, {}
        if changed in self._taken or len(changed) > _LONGEST - _ROOM:
            changed = _marked(changed, name)
        self._given[own] = changed
        self._taken.add(changed)
        return changed, {f"{TAG}{changed}": own}


def _marked(changed: str, name: str) -> str:
    return f"{changed[: _LONGEST - _ROOM - 9]}-{crc32(name.encode(errors='surrogatepass')):08x}"
