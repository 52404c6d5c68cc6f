"""The recipe: a TOML document, its overrides, and the typed, immutable `Recipe` made of them.

Pure: no torch, no command line, no processes. `Recipe` is loaded on first use, because pydantic's
models cost more to import than all the rest of the command line; checking works from JSON Schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainrun.recipe.check import check, planned
from trainrun.recipe.complete import complete
from trainrun.recipe.document import Document, Origin, made, read
from trainrun.recipe.freeze import freeze
from trainrun.recipe.plain import Key
from trainrun.recipe.schema import base_schema, merge, to_draft07
from trainrun.recipe.secret import redact
from trainrun.recipe.source import Location
from trainrun.recipe.suggest import suggest

if TYPE_CHECKING:
    from trainrun.recipe.model import Recipe

__all__ = [
    "Document",
    "Key",
    "Location",
    "Origin",
    "Recipe",
    "base_schema",
    "check",
    "complete",
    "freeze",
    "made",
    "merge",
    "planned",
    "read",
    "redact",
    "suggest",
    "to_draft07",
]


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        from trainrun.recipe.model import Recipe  # noqa: PLC0415

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
