"""JSON Schema to a pydantic_core validator, strict: the models' verdict without the models.

Covers what pydantic writes. Keywords beyond that are passed over: the real model has the last word
in the worker. TOML has no null, so branches that only allow null vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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


class Violation(NamedTuple):
    """A place in the data that the schema does not allow. `kind` is pydantic's name for the error."""

    key: Key
    kind: str
    value: Any


def violations(schema: Schema, data: Any) -> Iterator[Violation]:
    """Yield everything in `data` that `schema` does not allow.

    data: in its JSON form.
    """
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
    """Return whether a subschema allows nothing but null."""
    return isinstance(node, dict) and (node.get("type") == "null" or node.get("const", 0) is None)


class _Builder:
    def __init__(self, root: Schema, engine: Literal["rust-regex", "python-re"]) -> None:
        self.root = root
        self.engine = engine
        self.used: set[str] = set()

    def build(self) -> CoreSchema:
        main = self._node(self.root)
        built: dict[str, Any] = {}
        while missing := self.used - built.keys():
            name = missing.pop()
            built[name] = {**self._node(self.root.get("$defs", {}).get(name, {})), "ref": name}
        return core_schema.definitions_schema(main, list(built.values())) if built else main

    def _node(self, node: Any) -> CoreSchema:
        if not isinstance(node, dict):
            return core_schema.literal_schema(["\0never"]) if node is False else core_schema.any_schema()
        for keyword, build in _KEYWORDS:
            if keyword in node:
                return build(self, node)
        if isinstance(node.get("type"), list):
            return self._union([{**node, "type": name} for name in node["type"] if name != "null"])
        return _TYPES.get(node.get("type", ""), _Builder._untyped)(self, node)

    def _reference(self, node: Schema) -> CoreSchema:
        name = str(node["$ref"]).removeprefix("#/$defs/")
        self.used.add(name)
        return core_schema.definition_reference_schema(name)

    def _choice(self, node: Schema) -> CoreSchema:
        return core_schema.literal_schema([node["const"]] if "const" in node else node["enum"])

    def _branches(self, node: Schema) -> CoreSchema:
        return self._union([branch for branch in node.get("anyOf") or node["oneOf"] if not is_null(branch)])

    def _all(self, node: Schema) -> CoreSchema:
        return core_schema.chain_schema([self._node(branch) for branch in node["allOf"]])

    def _union(self, branches: list[Any]) -> CoreSchema:
        if len(branches) == 1:
            return self._node(branches[0])
        choices: list[CoreSchema | tuple[CoreSchema, str]] = [self._node(branch) for branch in branches]
        return core_schema.union_schema(choices, custom_error_type="union", custom_error_message="no branch fits")

    def _string(self, node: Schema) -> CoreSchema:
        return core_schema.str_schema(strict=True, regex_engine=self.engine, **_mapped(node, _STRING))

    def _integer(self, node: Schema) -> CoreSchema:
        return core_schema.int_schema(strict=True, **_mapped(node, _NUMBER))

    def _number(self, node: Schema) -> CoreSchema:
        return core_schema.float_schema(strict=True, allow_inf_nan=False, **_mapped(node, _NUMBER))

    def _boolean(self, _: Schema) -> CoreSchema:
        return core_schema.bool_schema(strict=True)

    def _null(self, _: Schema) -> CoreSchema:
        return core_schema.none_schema()

    def _untyped(self, node: Schema) -> CoreSchema:
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


if TYPE_CHECKING:  # CoreSchema is a union of fifty types, slow to put into another type
    _Build = Callable[[_Builder, Schema], CoreSchema]

_KEYWORDS: tuple[tuple[str, _Build], ...] = (
    ("$ref", _Builder._reference),
    ("const", _Builder._choice),
    ("enum", _Builder._choice),
    ("anyOf", _Builder._branches),
    ("oneOf", _Builder._branches),
    ("allOf", _Builder._all),
)
_TYPES: dict[str, _Build] = {
    "object": _Builder._object,
    "array": _Builder._array,
    "string": _Builder._string,
    "integer": _Builder._integer,
    "number": _Builder._number,
    "boolean": _Builder._boolean,
    "null": _Builder._null,
}


def _mapped(node: Schema, names: dict[str, str]) -> dict[str, Any]:
    return {ours: node[theirs] for theirs, ours in names.items() if theirs in node}
