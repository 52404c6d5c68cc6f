"""What a schema asks for and what a recipe gives, in words."""

from __future__ import annotations

from typing import Any

from trainrun.recipe.complete import only
from trainrun.recipe.freeze import toml_value
from trainrun.recipe.plain import SLUG
from trainrun.recipe.schema import Schema
from trainrun.recipe.validator import is_null

_SHOWN = 60
_PLAIN = {"boolean": "true or false", "object": "a table", "null": "nothing"}


def expectation(node: Schema, root: Schema) -> str:
    """Return what a value must be.

    Examples are "a positive integer", "'fp32', 'bf16' or 'fp16'" and "a number above 0".
    """
    node = only(node, root)
    if "const" in node or "enum" in node:
        return listed([f"{value!r}" for value in node.get("enum", [node.get("const")])])
    if node.get("x-type") == "duration":
        return 'a duration such as "30s" or "10m"'
    branches = [branch for branch in [*node.get("anyOf", ()), *node.get("oneOf", ())] if not is_null(branch)]
    if branches:
        return listed(list(dict.fromkeys(expectation(branch, root) for branch in branches)))
    return _of_type(node, root)


def _of_type(node: Schema, root: Schema) -> str:
    match node.get("type"):
        case "integer":
            return _number(node, "an integer")
        case "number":
            return _number(node, "a number")
        case "string":
            return _string(node)
        case "array":
            return _array(node, root)
        case kind:
            return _PLAIN.get(str(kind), "another value")


def _number(node: Schema, noun: str) -> str:
    low, above, high, below = (node.get(key) for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"))
    if (low == 1 and noun == "an integer") or above == 0:
        noun = noun.replace("an ", "a positive ").replace("a number", "a positive number")
        low = above = None
    parts = [
        f"{word} {bound}"
        for word, bound in (("of at least", low), ("above", above), ("at most", high), ("below", below))
        if bound is not None and abs(bound) < 2**53
    ]
    return " and ".join([f"{noun} {parts[0]}", *parts[1:]]) if parts else noun


def _string(node: Schema) -> str:
    if node.get("minLength") == 1 and "pattern" not in node:
        return "a string that is not empty"
    if node.get("pattern") == SLUG:
        return f'lower-case letters, digits and . _ - between them (at most {node["maxLength"]}), such as "my-run.2"'
    if "pattern" in node:
        limit = f" of at most {node['maxLength']} letters" if "maxLength" in node else ""
        return f"a string{limit} that matches {node['pattern']}"
    return "a string"


def _array(node: Schema, root: Schema) -> str:
    low, high = node.get("minItems"), node.get("maxItems")
    size = f" {low}" if low is not None and low == high else f" at least {low}" if low else ""
    inner = only(node.get("items", {}), root)
    words = {"string": "string", "integer": "integer", "number": "number", "object": "table"}
    word = words.get(str(inner.get("type")), "value")
    return f"a list of{size} {word}{'' if size and low == 1 else 's'}"


def value_in_words(value: Any) -> str:
    """Return a value as TOML writes it, cut if it is long.

    Tables and long lists are shown by their kind alone.
    """
    if isinstance(value, dict):
        return "a table"
    try:
        text = toml_value(value)
    except TypeError:
        return type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def listed(words: list[str]) -> str:
    """Return ``a, b or c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
