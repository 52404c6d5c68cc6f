"""How the code should read, as far as a machine can tell."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in [ROOT / "src", *(ROOT / "plugins").glob("*/src")]
    for path in folder.rglob("*.py")
)

LONG_MODULES = {Path("src/trainrun/hookspecs.py")}  # the manual of every hook, in one file on purpose
LONG_FUNCTIONS = {Path("src/trainrun/worker/loop.py")}  # the loop stands on one screen and is not cut up
VAGUE_NAMES = {"utils", "core", "common", "base", "manager", "types", "helpers", "misc"}

# What only exists on somebody's machine. Split so that this file does not find itself.
MACHINE_PATHS = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]", "/Us" + "ers/", "/opt/py" + "pi"])
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines that hold code of the body: no docstring, no comments, no blank lines."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return len({line for part in body for node in ast.walk(part) if (line := getattr(node, "lineno", None))})


def test_modules_are_short() -> None:
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > 400 and path not in LONG_MODULES} == {}


def test_functions_are_short() -> None:
    listed = [(path, one.name, code_lines(one)) for path in SOURCES for one in functions(path)]
    assert [long for long in listed if long[2] > 50 and long[0] not in LONG_FUNCTIONS] == []


def test_no_bare_except() -> None:
    handlers = [
        (path, node) for path in SOURCES for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)
    ]
    assert [f"{path}:{node.lineno}" for path, node in handlers if node.type is None] == []


def test_module_names_say_something() -> None:
    assert [path for path in SOURCES if VAGUE_NAMES & set(path.with_suffix("").parts)] == []


def test_public_classes_have_docstrings() -> None:
    classes = [(path, node) for path in SOURCES for node in tree(path).body if isinstance(node, ast.ClassDef)]
    public = [(path, node) for path, node in classes if not node.name.startswith("_")]
    assert [f"{path}: {node.name}" for path, node in public if not ast.get_docstring(node)] == []


def committed_texts() -> list[Path]:
    """What git tracks or would track; data files and the licence are not ours to style."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix not in {".gz", ".png"}]


def lines_matching(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in committed_texts():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def test_nothing_is_left_to_do() -> None:
    assert lines_matching(re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")) == []


def test_no_paths_of_a_machine() -> None:
    assert lines_matching(MACHINE_PATHS) == []
