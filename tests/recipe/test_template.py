from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainrun.recipe import Document, check
from trainrun.recipe.template import TEMPLATE


def test_the_template_is_right(document: Callable[..., Document], schema: dict[str, Any]) -> None:
    assert check(document(TEMPLATE), schema) == []


def test_what_the_template_leaves_commented_out_is_right_too(
    document: Callable[..., Document], schema: dict[str, Any]
) -> None:
    lines = [line.removeprefix("# ") if "=" in line or "[" in line else line for line in TEMPLATE.splitlines()]
    text = "\n".join(line for line in lines if "A recipe" not in line)

    found = check(document(text), schema)

    assert "match" in text
    assert "epochs" not in document(text).data["train"]
    assert found == []
