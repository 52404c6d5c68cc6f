"""Whatever is written to a terminal is escaped: only a few places write there, and these do it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in [ROOT / "src", *(ROOT / "plugins").glob("*/src")]
    for path in folder.rglob("*.py")
)

CALLBACKS = "plugins/trainrun-callbacks/src/trainrun_callbacks"
ESCAPED = {
    "src/trainrun/cli/echo.py",
    "src/trainrun/launch/terminal.py",
    "src/trainrun/launch/busy.py",
    "src/trainrun/builtin/display.py",
    f"{CALLBACKS}/metrics_table.py",
}
# What these write is read by a process that escapes it, or goes to a file.
READ = {
    "src/trainrun/worker/checkpoint/examine.py",
    "src/trainrun/worker/checkpoint/export.py",
    "src/trainrun/tracking/shipper.py",
    "src/trainrun/tracking/process.py",
    "src/trainrun/examples/chargpt.py",
    f"{CALLBACKS}/debugger.py",
}
WRITERS = {"click.echo", "click.secho", "click.echo_via_pager", "print", "sys.stdout.write", "sys.stderr.write"}


def writes(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in WRITERS:
            yield f"{path}:{node.lineno}: {ast.unparse(node.func)}"


def test_only_a_few_places_write() -> None:
    assert [call for path in SOURCES if str(path) not in ESCAPED | READ for call in writes(path)] == []


@pytest.mark.parametrize("path", sorted(ESCAPED))
def test_those_that_write_escape(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(r"from trainrun\.printing import .*(escape|inline)", source)


def test_the_list_holds_nothing_that_does_not_write() -> None:
    assert [path for path in sorted(ESCAPED | READ) if not list(writes(Path(path)))] == []
