"""Is this the right Python, and is what trainrun needs installed in it?"""

from __future__ import annotations

import operator
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import NamedTuple

from trainrun import __version__
from trainrun.doctor.finding import Context, Finding, Verdict

OLDEST = (3, 11)

_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;\s*(.*))?$")
_CLAUSE = re.compile(r"^\s*(>=|<=|==|!=|>|<)\s*([0-9][0-9.]*)")
_HOLDS: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


class Requirement(NamedTuple):
    """One line of a distribution's requirements, as in `click>=8.4`."""

    name: str
    versions: str

    def holds(self, version: str) -> bool:
        """Return whether a version is one of those asked for.

        What cannot be read is taken to hold.
        """
        clauses = [found.groups() for part in self.versions.split(",") if (found := _CLAUSE.match(part))]
        return all(_HOLDS[sign](*_same_length(release(version), release(asked))) for sign, asked in clauses)


def python(_: Context) -> Iterator[Finding]:
    """Check the interpreter that runs trainrun."""
    verdict = Verdict("python")
    version, place = platform.python_version(), _environment()
    verdict.say(f"{version} in {place}: {sys.executable}")
    if sys.version_info[:2] < OLDEST:
        verdict.fail("it is too old", f"make a virtual environment with Python {'.'.join(map(str, OLDEST))} or newer")
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield verdict.finding(version=version, executable=sys.executable, environment=place, system=system)


def packages(_: Context) -> Iterator[Finding]:
    """Check the distribution of trainrun, and everything that it requires."""
    verdict = Verdict("packages")
    versions: dict[str, str | None] = {"trainrun": installed("trainrun")}
    asked = list(requirements())
    versions.update((requirement.name, installed(requirement.name)) for requirement in asked)
    shown = (f"{name} {version}" for name, version in versions.items() if version)
    verdict.say(", ".join(shown) or "none are installed")
    if versions["trainrun"] != __version__:
        what = f"trainrun {__version__} runs from {os.path.dirname(__file__)}, but {versions['trainrun']} is installed"  # noqa: PTH120
        verdict.warn(what, "install one of the two again, so that plugins find the same one")
    for requirement in asked:
        _judge(verdict, requirement, versions[requirement.name])
    yield verdict.finding(versions=versions)


def requirements() -> Iterator[Requirement]:
    """Yield what trainrun's distribution requires, its extras left out."""
    try:
        lines = metadata.requires("trainrun") or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        found = _REQUIREMENT.match(line)
        if found and "extra" not in (found[3] or ""):
            yield Requirement(found[1], found[2].strip())


def installed(name: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what marks a build.

    For example, (2, 13, 0) of `2.13.0+cpu`.
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _judge(verdict: Verdict, requirement: Requirement, version: str | None) -> None:
    name = f"{requirement.name}{requirement.versions}"
    if version is None:
        verdict.fail(f"{requirement.name} is missing", f"pip install '{name}'")
    elif not requirement.holds(version):
        verdict.fail(f"{requirement.name} {version} is not {requirement.versions}", f"pip install '{name}'")


def _same_length(*numbers: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the versions with equal lengths: 2.10 is 2.10.0."""
    longest = max(map(len, numbers))
    return (one + (0,) * (longest - len(one)) for one in numbers)


def _environment() -> str:
    if sys.prefix != sys.base_prefix:
        return "a virtual environment"
    return "a conda environment" if os.environ.get("CONDA_PREFIX") else "no virtual environment"
