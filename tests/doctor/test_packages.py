from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata

import pytest

from trainrun.doctor import packages
from trainrun.doctor.finding import Finding
from trainrun.doctor.packages import Requirement, release

Ask = Callable[..., Finding]


@pytest.mark.parametrize(
    ("versions", "version", "holds"),
    [
        (">=2.10", "2.13.0+cpu", True),
        (">=2.10", "2.9.1", False),
        (">=2.10", "2.10", True),
        (">=2.10.0", "2.10", True),
        (">=8,<9", "9.0", False),
        (">=8, <9", "8.9", True),
        ("==1.0", "1.0.0", True),
        ("!=1.0", "1.0", False),
        (">1", "1.0.1", True),
        ("<=1", "1.0.1", False),
        ("", "0", True),
        ("===odd", "1", True),
        ("~=1.2", "1.0", True),  # not read, so not judged
    ],
)
def test_requirement_holds(versions: str, version: str, holds: bool) -> None:
    assert Requirement("x", versions).holds(version) is holds


def test_release() -> None:
    assert release("2.13.0+cpu") == (2, 13, 0)
    assert release("3.0rc1") == (3, 0)
    assert release("unknown") == ()


def test_own_requirements() -> None:
    names = [requirement.name for requirement in packages.requirements()]
    assert {"click", "pluggy", "pydantic", "torch"} <= set(names)
    assert "pytest" not in names, "extras are not required"


def test_this_python(ask: Ask) -> None:
    finding = ask("trainrun.doctor.packages:python")
    assert finding.status == "ok"
    assert sys.executable in finding.finding


def test_a_python_that_is_too_old(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "OLDEST", (9, 9))
    finding = ask("trainrun.doctor.packages:python")
    assert finding.status == "failed"
    assert "9.9" in str(finding.advice)


def test_packages(ask: Ask) -> None:
    finding = ask("trainrun.doctor.packages:packages")
    assert finding.status == "ok"
    assert finding.facts["versions"]["click"]


def test_missing_old_and_other_packages(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"trainrun": "0.0.1", "click": "1.0", "pluggy": None}

    def version(name: str) -> str:
        if found.get(name, "99") is None:
            raise metadata.PackageNotFoundError(name)
        return str(found.get(name, "99"))

    monkeypatch.setattr(metadata, "version", version)
    finding = ask("trainrun.doctor.packages:packages")
    assert finding.status == "failed"
    assert "click 1.0 is not >=" in finding.finding
    assert "pluggy is missing" in finding.finding
    assert "but 0.0.1 is installed" in finding.finding
    assert "pip install 'pluggy>=" in str(finding.advice)
