"""Everything that is wrong with a recipe, at once, in the order of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from trainrun.errors import Problem
from trainrun.recipe import rules
from trainrun.recipe.complete import complete, only
from trainrun.recipe.document import Document
from trainrun.recipe.plain import Key, dotted, json_form, lookup
from trainrun.recipe.schema import Schema
from trainrun.recipe.secret import REDACTED, redact_at
from trainrun.recipe.suggest import suggest
from trainrun.recipe.validator import Violation, violations
from trainrun.recipe.wording import expectation, listed, value_in_words

Finding = tuple[Key, str, str | None]

_MOST = 50  # beyond this many, messages are of no help and positions cost time


def check(document: Document, schema: Schema, *, own_optimizer: bool = False) -> list[Problem]:
    """Return every problem of the document under `schema` (see `merge`).

    These are problems of keys, types, ranges, and rules across keys.

    own_optimizer: task or a plugin builds the optimizer, so `[optimizer]` may have any key if it names no optimizer.
    """
    data = json_form(document.data)
    found = list(violations(schema, data))
    wrong = {violation.key for violation in found if violation.kind != "extra_forbidden"}
    findings: list[Finding] = [_finding(violation, schema) for violation in found]
    free = own_optimizer and not lookup(data, ("optimizer", "name"))[0]
    findings += [
        (broken.key, broken.what, broken.hint)
        for broken in rules.broken(complete(data, schema), wrong)
        if not (free and broken.key[0] == "optimizer")
    ]
    findings += [(key, f"{value_in_words(value)}: {note['why']}", None) for key, value, note in _marked(data, schema)]
    return _problems(document, findings, schema)


def planned(document: Document, schema: Schema) -> list[Problem]:
    """Return what the recipe sets and this version does not act on.

    This version accepts it. These are notes, not errors.
    """
    noted = _marked(json_form(document.data), schema, "x-planned")
    return _problems(document, [(key, f"has no effect: {why}", None) for key, _, why in noted], schema)


def _problems(document: Document, findings: list[Finding], schema: Schema) -> list[Problem]:
    placed = [(document.locate(key), key, what, hint) for key, what, hint in findings[:_MOST]]
    placed.sort(key=lambda entry: entry[0].order)
    problems = [
        _masked(place.problem(f"{dotted(key)}: {what}", hint), secret=redact_at(key, "", schema) == REDACTED)
        for place, key, what, hint in placed
    ]
    if len(findings) > _MOST:
        problems.append(Problem(str(document.path), f"{len(findings) - _MOST} more problems"))
    return problems


def _masked(problem: Problem, *, secret: bool) -> Problem:
    """Return the problem without what its line sets a secret to."""
    if not secret or problem.source is None:
        return problem
    return replace(problem, source="".join([*problem.source.partition("=")[:2], " ", REDACTED]))


def _finding(violation: Violation, schema: Schema) -> Finding:
    key, node = _reachable(violation.key, schema)
    if violation.kind == "extra_forbidden":
        return key, "unknown key", _where_it_belongs(key, schema)
    if violation.kind == "missing":
        return key, "is missing", f"expected {expectation(node, schema)}"
    told = redact_at(key, violation.value, schema)
    got = "a secret" if told == REDACTED else value_in_words(told)
    return key, f"expected {expectation(node, schema)}, got {got}", None


def _reachable(key: Key, schema: Schema) -> tuple[Key, Schema]:
    """Return the subschema for a key.

    Parts that only name a branch of a union are left out of the key.
    """
    node, path = only(schema, schema), []
    for part in key:
        inner = _step(node, part)
        if inner is not None:
            path.append(part)
            node = only(inner, schema)
    return tuple(path), node


def _step(node: Schema, part: str | int) -> Any:
    if isinstance(part, int):
        prefix = node.get("prefixItems", ())
        return prefix[part] if part < len(prefix) else node.get("items", {})
    if part in node.get("properties", {}):
        return node["properties"][part]
    return node.get("additionalProperties", {} if node.get("type") == "object" or "properties" in node else None)


def _where_it_belongs(key: Key, schema: Schema) -> str | None:
    *table, name = key
    if "." in str(name):
        return "write tables as a.b, without quotes"
    siblings = only(schema, schema)
    for part in table:
        siblings = only(_step(siblings, part), schema)
    near = suggest(str(name), siblings.get("properties", {}))
    if near:
        return f"did you mean {near!r}?"
    homes = [home for home in _homes(str(name), schema) if home != dotted(tuple(table))]
    return f"it belongs to {listed([f'[{home}]' for home in homes])}" if homes else None


def _homes(name: str, schema: Schema) -> Iterator[str]:
    """Yield the tables that have a key of this name."""
    for table, node in schema["properties"].items():
        properties = only(node, schema).get("properties", {})
        if table == "plugins" and name in properties:
            yield f"plugins.{name}"
        elif table != "plugins" and name in properties:
            yield table


def _marked(data: Mapping[str, Any], schema: Schema, mark: str = "x-unavailable") -> Iterator[tuple[Key, Any, Any]]:
    """Yield keys that the data sets and whose schema carries `mark`.

    Keys that are set to the default are left out.
    """
    for table, node in schema["properties"].items():
        for name, inner in only(node, schema).get("properties", {}).items():
            present, value = lookup(data, (table, name))
            if mark in inner and present and value != inner.get("default"):
                values = inner[mark].get("values") if isinstance(inner[mark], dict) else None
                if values is None or value in values:
                    yield (table, name), value, inner[mark]
