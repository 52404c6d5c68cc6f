"""English as docs/glossary.md asks for it: words that read as translated, counted, and only ever fewer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in [ROOT / "src", *ROOT.glob("plugins/*/src")] for path in sorted(folder.rglob("*.py"))]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]

# What to write instead stands in docs/glossary.md, whose table names them, and is not searched itself.
WORDS = {
    "answers": r"\banswer(s|ed|ing)?\b",
    "goes on": r"\b(go|goes|going|went|gone) on\b",
    "tells": r"\b(tell|tells|told|telling)\b",
    "somebody": r"\b(whoever|whatever|somebody|nobody|anybody|lest)\b",
    "where": r"\bwhere\b(?! (to|from)\b)",
    "else": r"\belse\b",
    "beside": r"\bbeside\b",
    "so many": r"\bso (many|often)\b",
}
# How many there are. A line falls in the commit that rewords, and never rises.
MOST: dict[str, dict[str, int]] = {
    "pages": {},
    "messages": {},
    "docstrings": {"answers": 4, "tells": 7, "where": 4},
}


def texts(part: str) -> Iterator[str]:
    if part == "pages":
        for path in PAGES:
            if path.name not in {"glossary.md", "design.md"}:
                yield re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        return
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        manuals = {id(text) for node in ast.walk(tree) if (text := _docstring(node)) is not None}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or " " not in node.value:
                continue
            if (id(node) in manuals) == (part == "docstrings"):
                yield node.value


def _docstring(node: ast.AST) -> ast.expr | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    first = node.body[0] if node.body else None
    return first.value if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None


def counts(part: str) -> dict[str, int]:
    text = "\n".join(texts(part))
    return {name: len(found) for name, word in WORDS.items() if (found := re.findall(word, text, re.IGNORECASE))}


@pytest.mark.parametrize("part", MOST)
def test_there_are_no_more_of_these_words(part: str) -> None:
    assert counts(part) == MOST[part], "reword what is new, or take what is gone out of MOST"
