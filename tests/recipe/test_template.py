from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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


def test_it_says_when_checkpoints_are_written(document: Callable[..., Document]) -> None:
    for text in (TEMPLATE, (Path(__file__).parents[2] / "train.toml").read_text(encoding="utf-8")):
        assert document(text).data["checkpoint"]["every"] == "15m"
