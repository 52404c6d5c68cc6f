"""docs/correctness.md names tests that exist, and every row of it names one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "correctness.md"

_TEST = re.compile(r"`((?:[\w-]+/)*test_\w+\.py)::(test_\w+)`")
_HELD_BY = "| held by |"


def rows(text: str) -> list[str]:
    """The rows of the tables whose last column says what holds them."""
    found, inside = [], False
    for line in text.splitlines():
        inside = line.endswith(_HELD_BY) or (inside and line.startswith("|"))
        if inside and not line.endswith(_HELD_BY) and not line.startswith("| ---"):
            found.append(line)
    return found


def missing(lines: Iterable[str], root: Path) -> list[str]:
    """Which of the tests that the rows name are not there, and rows that name none."""
    wrong = []
    for line in lines:
        named = _TEST.findall(line)
        if not named:
            wrong.append(f"no test: {line[:60]}")
        for file, test in named:
            path = next((one for one in (root / "tests" / file, root / file) if one.is_file()), None)
            tree = ast.parse("" if path is None else path.read_text(encoding="utf-8"))
            functions = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
            if test not in functions:
                wrong.append(f"{file}::{test}")
    return wrong


def test_every_guarantee_names_tests_that_exist() -> None:
    lines = rows(PAGE.read_text(encoding="utf-8"))
    assert len(lines) > 10
    assert missing(lines, ROOT) == []


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("| It is right. | by magic |", "no test"),
        (
            "| It is right. | `worker/test_loop.py::test_that_nobody_wrote` |",
            "worker/test_loop.py::test_that_nobody_wrote",
        ),
        ("| It is right. | `worker/test_absent.py::test_one` |", "worker/test_absent.py::test_one"),
    ],
)
def test_the_guard_finds_rows_without_a_test(row: str, wrong: str) -> None:
    assert [found.startswith(wrong) for found in missing([row], ROOT)] == [True]
