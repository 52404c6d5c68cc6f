"""JSON Schema to a pydantic_core validator, strict: the models' verdict without the models.

Covers what pydantic writes. Keywords beyond that are passed over: the real model has the last word
in the worker. TOML has no null, so branches that only allow null vanish.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import CoreSchema, SchemaError, SchemaValidator, ValidationError, core_schema

from trainrun.recipe.plain import Key
from trainrun.recipe.schema import Schema

_NUMBER = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
_STRING = {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"}
_ARRAY = {"minItems": "min_length", "maxItems": "max_length"}
_OBJECT = {"minProperties": "min_length", "maxProperties": "max_length"}


@dataclass(frozen=True)
class Violation:
    """A place in the data that the schema does not allow. `kind` is pydantic's name for the error."""

    key: Key
    kind: str
    value: Any


def violations(schema: Schema, data: Any) -> Iterator[Violation]:
    """Everything in `data` (in its JSON form) that `schema` does not allow."""
    try:
        _validator(schema).validate_python(data, strict=True)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_context=False):
            yield Violation(found["loc"], found["type"], found["input"])


def _validator(schema: Schema) -> SchemaValidator:
    try:
        return SchemaValidator(_Builder(schema, "rust-regex").build())
    except SchemaError:  # a pattern with look-around, which only Python's engine knows
        return SchemaValidator(_Builder(schema, "python-re").build())


def is_null(node: Any) -> bool:
    """Whether a subschema allows nothing but null."""
    return isinstance(node, dict) and (node.get("type") == "null" or node.get("const", 0) is None)


@dataclass
class _Builder:
    root: Schema
    engine: str
    used: set[str] = field(default_factory=set)

    def build(self) -> CoreSchema:
        main = self._node(self.root)
        built: dict[str, CoreSchema] = {}
        while missing := self.used - built.keys():
            name = missing.pop()
            built[name] = {**self._node(self.root.get("$defs", {}).get(name, {})), "ref": name}  # type: ignore[misc]
        return core_schema.definitions_schema(main, list(built.values())) if built else main

    def _node(self, node: Any) -> CoreSchema:
        if node is False:
            return core_schema.literal_schema(["\0never"])
        if not isinstance(node, dict):
            return core_schema.any_schema()
        if "$ref" in node:
            name = str(node["$ref"]).removeprefix("#/$defs/")
            self.used.add(name)
            # A schema that is a reference cannot be a definition; the function around it can.
            return core_schema.chain_schema([core_schema.definition_reference_schema(name)])
        if "const" in node or "enum" in node:
            return core_schema.literal_schema([node["const"]] if "const" in node else node["enum"])
        for keyword in ("anyOf", "oneOf"):
            if keyword in node:
                return self._union([branch for branch in node[keyword] if not is_null(branch)])
        if "allOf" in node:
            return core_schema.chain_schema([self._node(branch) for branch in node["allOf"]])
        if isinstance(node.get("type"), list):
            return self._union([{**node, "type": name} for name in node["type"] if name != "null"])
        return self._typed(node)

    def _union(self, branches: list[Any]) -> CoreSchema:
        if len(branches) == 1:
            return self._node(branches[0])
        choices = [self._node(branch) for branch in branches]
        return core_schema.union_schema(choices, custom_error_type="union", custom_error_message="no branch fits")

    def _typed(self, node: Schema) -> CoreSchema:
        match node.get("type"):
            case "object":
                return self._object(node)
            case "array":
                return self._array(node)
            case "string":
                return core_schema.str_schema(strict=True, regex_engine=self.engine, **_mapped(node, _STRING))
            case "integer":
                return core_schema.int_schema(strict=True, **_mapped(node, _NUMBER))
            case "number":
                return core_schema.float_schema(strict=True, allow_inf_nan=False, **_mapped(node, _NUMBER))
            case "boolean":
                return core_schema.bool_schema(strict=True)
            case "null":
                return core_schema.none_schema()
        return self._object(node) if "properties" in node else core_schema.any_schema()

    def _array(self, node: Schema) -> CoreSchema:
        if "prefixItems" in node:
            return core_schema.chain_schema(
                [
                    core_schema.list_schema(strict=True, **_mapped(node, _ARRAY)),
                    core_schema.tuple_schema([self._node(item) for item in node["prefixItems"]], strict=False),
                ]
            )
        return core_schema.list_schema(self._node(node.get("items", True)), strict=True, **_mapped(node, _ARRAY))

    def _object(self, node: Schema) -> CoreSchema:
        extra = node.get("additionalProperties", True)
        if "properties" not in node:
            values = self._node(
                next(iter(node["patternProperties"].values())) if "patternProperties" in node else extra
            )
            keys = self._node({"type": "string", **node.get("propertyNames", {})})
            return core_schema.dict_schema(keys, values, strict=True, **_mapped(node, _OBJECT))
        required = set(node.get("required", ()))
        fields = {
            name: core_schema.typed_dict_field(self._node(inner), required=name in required)
            for name, inner in node["properties"].items()
        }
        if extra is False:
            return core_schema.typed_dict_schema(fields, strict=True, extra_behavior="forbid")
        return core_schema.typed_dict_schema(
            fields, strict=True, extra_behavior="allow", extras_schema=self._node(extra)
        )


def _mapped(node: Schema, names: dict[str, str]) -> dict[str, Any]:
    return {ours: node[theirs] for theirs, ours in names.items() if theirs in node}
