"""Find the installed plugins from metadata alone: nothing is imported.

`importlib.metadata` has the same information, but importing it takes longer than all of this.
Here and in other modules that every command imports, named tuples take the place of dataclasses. They are defined in a
quarter of the time, and definitions take most of the time of a command that only reads.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

PLUGINS = "trainrun"
COMMANDS = "trainrun.commands"

_SEPARATORS = re.compile("[-_.]+")
_SUFFIXES = (".dist-info", ".egg-info")


class EntryPoint(NamedTuple):
    """One line of a distribution's entry points: `name` = `value`. `location` is the metadata's folder."""

    distribution: str
    name: str
    value: str
    version: str
    group: str
    location: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}, entry point {self.name} = {self.value}"


class Installed(NamedTuple):
    """What is installed. `fingerprint` changes when a distribution comes, goes or changes."""

    entry_points: tuple[EntryPoint, ...]
    fingerprint: str

    @property
    def plugins(self) -> dict[str, tuple[EntryPoint, ...]]:
        """Map each plugin name to its entry points.

        They are sorted by distribution and then name. More than one under a name is a clash.
        """
        return self._named(PLUGINS)

    @property
    def commands(self) -> dict[str, tuple[EntryPoint, ...]]:
        """Map the names of extra commands to their entry points."""
        return self._named(COMMANDS)

    def _named(self, group: str) -> dict[str, tuple[EntryPoint, ...]]:
        table: dict[str, tuple[EntryPoint, ...]] = {}
        for entry in self.entry_points:
            if entry.group == group:
                table[entry.name] = (*table.get(entry.name, ()), entry)
        return table


def discover(path: Sequence[str] | None = None) -> Installed:
    """Scan `sys.path`, or `path`, for distributions with entry points for trainrun."""
    fingerprint = 0  # of the light kind: nothing worse follows from a clash than one look too few
    first: dict[str, str] = {}  # the first one on the path is the one that Python imports
    for folder in dict.fromkeys(sys.path if path is None else path):
        for metadata in _distributions(folder or "."):
            mark = f"{metadata.path}\0{metadata.stat().st_mtime_ns}\n"
            fingerprint = crc32(mark.encode(errors="surrogateescape"), fingerprint)
            identity = _normalized(metadata.name)
            if identity not in first or _is_left_over(first[identity]):
                first[identity] = metadata.path
    entries = [entry for location in first.values() for entry in _entry_points(location)]
    return Installed(tuple(sorted(entries)), f"{fingerprint:08x}")


def _normalized(file_name: str) -> str:
    """Return the distribution's name from that of its metadata.

    file_name: `my_plug-1.0.dist-info` or `my.plug.egg-info`.
    """
    return _SEPARATORS.sub("_", file_name.rpartition(".")[0].partition("-")[0].lower())


def _is_left_over(location: str) -> bool:
    """Return whether the folder is left over from an installation.

    The installation was cut off or removed: nothing says what was in it.
    """
    return os.path.isdir(location) and not any(  # noqa: PTH112 - not by Path, as below
        os.path.exists(f"{location}/{file}")  # noqa: PTH110
        for file in ("METADATA", "PKG-INFO", "entry_points.txt")
    )


def _distributions(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted((one for one in found if one.name.lower().endswith(_SUFFIXES)), key=lambda one: one.name)
    except OSError:
        return []  # zip files, missing and unreadable folders


def _entry_points(location: str) -> list[EntryPoint]:
    try:
        # Not by Path: this is done for everything that is installed.
        with open(f"{location}/entry_points.txt", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return []
    lines = [line for line in _parsed(text) if line[0] in (PLUGINS, COMMANDS)]
    if not lines:
        return []
    distribution, version = _identity(location)
    return [EntryPoint(distribution, name, value, version, group, location) for group, name, value in lines]


def _parsed(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield group, name and value of each line.

    Extras such as ``[test]`` behind a value mean nothing any more.
    """
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.partition("[")[0].replace(" ", "").strip()


def _identity(location: str) -> tuple[str, str]:
    """Return name and version of a distribution.

    They are in the head of the metadata, or in the folder's name.
    """
    name, _, version = Path(location).stem.partition("-")
    fields = {"Name": name, "Version": version}
    for file in ("METADATA", "PKG-INFO"):
        try:
            head = Path(location, file).read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        except OSError:
            continue
        for line in head.splitlines():
            key, _, value = line.partition(":")
            if key in fields and value.strip():
                fields[key] = value.strip()
    return fields["Name"], fields["Version"]
