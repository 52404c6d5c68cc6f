"""Which values are secrets. They never reach the saved recipe, a log or an error message.

A value is a secret by its key's name, by the type of an option (pydantic's secret types, by their JSON Schema), or by
itself: a URL with a login. An option whose schema has `writeOnly` as false is none, with any name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainrun.recipe.plain import Key
from trainrun.recipe.schema import Schema, resolved

REDACTED = "<redacted>"

_WORDS = re.compile(
    r"(^|[_-])(passw(or)?d|pwd|passphrase|passcode|secrets?|tokens?|bearer|(api|access|private|secret|signing)[_-]?keys?"
    r"|auth|authorization|credentials?|cookies?|dsn|connection[_-]?string|webhook([_-]?url)?)$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGNMENT = re.compile(r"""(?P<key>[\w-]+)["']?\s*=\s*(?P<value>[^,}]*\S)""")
_LOGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<user>[^/@\s:]*)(?P<password>:[^/@\s]*)?@", re.IGNORECASE)
_QUERY = re.compile(r"(?P<key>(?<=[?&])[\w-]+)=(?P<value>[^&#\s]+)")


def is_secret(key: object) -> bool:
    """Return whether a key's name says that its value is a secret.

    Examples are `wandb_api_key`, `token` and `smtp-password`.
    """
    return isinstance(key, str) and (_WORDS.search(key) or _WORDS.search(_CAMEL.sub("_", key))) is not None


def mask(line: str) -> str:
    """Return a line of TOML with the values of secrets replaced."""
    first = next((found for found in _ASSIGNMENT.finditer(line) if is_secret(found["key"])), None)
    return mask_url(line) if first is None else mask_url(line[: first.start("value")]) + REDACTED


def mask_url(text: str) -> str:
    """Return the text without the passwords and tokens in its URLs."""
    if "://" not in text:
        return text
    return _QUERY.sub(_masked_query, _LOGIN.sub(_masked_login, text))


def _masked_login(found: re.Match[str]) -> str:
    if found["password"] is not None:
        return f"{found['scheme']}://{found['user']}:{REDACTED}@"
    # A lone name is a user's for git and ssh; for a web server it is a token.
    return f"{found['scheme']}://{REDACTED}@" if found["scheme"].lower() in {"http", "https"} else found[0]


def _masked_query(found: re.Match[str]) -> str:
    return f"{found['key']}={REDACTED}" if is_secret(found["key"]) else found[0]


def redact(data: Any, schema: Schema | None = None, root: Schema | None = None) -> Any:
    """Return a copy of `data` in which every secret is replaced.

    schema: that of `data`, whose types make secrets too.
    root: the schema to which its references lead, if not to itself.
    """
    return _redacted(data, () if schema is None else (schema,), root or schema or {})


def is_secret_at(key: Key, schema: Schema) -> bool:
    """Return whether what is set at `key` is a secret.

    It is by a name in the key or by its type in `schema`.
    """
    nodes: Sequence[Schema] = (schema,)
    for part in key:
        nodes = [*_steps(nodes, part, schema)]
        if (is_secret(part) and not _declared_plain(nodes, schema)) or _typed_secret(nodes, schema):
            return True
    return False


def redact_at(key: Key, value: Any, schema: Schema) -> Any:
    """Return what is shown of a value that is set at `key`."""
    if is_secret_at(key, schema):
        return REDACTED
    nodes: Sequence[Schema] = (schema,)
    for part in key:
        nodes = [*_steps(nodes, part, schema)]
    return _redacted(value, nodes, schema)


def _redacted(value: Any, nodes: Sequence[Schema], root: Schema) -> Any:
    if _typed_secret(nodes, root):
        return REDACTED
    if isinstance(value, Mapping):
        redacted = {}
        for key, item in value.items():
            inner = [*_steps(nodes, key, root)]
            named = _named_secret(key, item) and not _declared_plain(inner, root)
            redacted[key] = REDACTED if named or _in_company(key, nodes, root) else _redacted(item, inner, root)
        return redacted
    if isinstance(value, list | tuple):
        return [_redacted(item, [*_steps(nodes, place, root)], root) for place, item in enumerate(value)]
    if _holds_secrets(nodes, root):
        return REDACTED  # the secret is not at its own place, which may be further in
    return mask_url(value) if isinstance(value, str) else value


def _holds_secrets(nodes: Sequence[Schema], root: Schema, deep: int = 0) -> bool:
    for node in _branches(nodes, root):
        tables = [inner for inner in node.get("properties", {}).items() if isinstance(inner[1], dict)]
        lists = [*node.get("prefixItems", ()), node.get("items"), node.get("additionalProperties")]
        inner = [*(one for _, one in tables), *(one for one in lists if isinstance(one, dict))]
        if _any_secret(tables, root) or _typed_secret(inner, root):
            return True
        if deep < _DEEPEST and inner and _holds_secrets(inner, root, deep + 1):
            return True
    return False


def _named_secret(key: object, value: Any) -> bool:
    """Return whether a key's name makes its value a secret.

    `auth = true` and `max_tokens = 512` give nothing away.
    """
    counts = isinstance(value, int | float) and str(key).lower().endswith("tokens")
    return is_secret(key) and not isinstance(value, bool) and not counts


def _in_company(key: object, nodes: Sequence[Schema], root: Schema) -> bool:
    """Return whether an unknown key stands next to those of secrets.

    It may be one of them, misspelt.
    """
    tables = [node for node in _branches(nodes, root) if "properties" in node]
    if not tables or any(key in node["properties"] or node.get("additionalProperties", True) for node in tables):
        return False
    return _any_secret([option for node in tables for option in node["properties"].items()], root)


def _any_secret(options: Sequence[tuple[str, Schema]], root: Schema) -> bool:
    return any(
        (is_secret(name) and not _declared_plain((inner,), root)) or _typed_secret((inner,), root)
        for name, inner in options
    )


def _declared_plain(nodes: Sequence[Schema], root: Schema) -> bool:
    return any(node.get("writeOnly") is False for node in _branches(nodes, root))


def _typed_secret(nodes: Sequence[Schema], root: Schema) -> bool:
    return any(node.get("writeOnly") is True or node.get("format") == "password" for node in _branches(nodes, root))


def _branches(nodes: Sequence[Any], root: Schema, deep: int = 0) -> Iterator[Schema]:
    """Yield every subschema that a value may have to fit.

    The value is at one place. These are those of unions, and what references stand for.
    """
    for node in nodes:
        found = resolved(root, node)
        yield found
        if deep < _DEEPEST:
            inner = [one for word in ("anyOf", "oneOf", "allOf") for one in found.get(word, ())]
            yield from _branches(inner, root, deep + 1)


_DEEPEST = 4  # unions within unions, tables within tables


def _steps(nodes: Sequence[Schema], part: object, root: Schema) -> Iterator[Schema]:
    """Yield the subschemas of what is at `part` of a value."""
    for node in _branches(nodes, root):
        if isinstance(part, int):
            first = node.get("prefixItems", ())
            found = [first[part]] if part < len(first) else [node.get("items")]
        elif part in node.get("properties", {}):
            found = [node["properties"][part]]
        else:
            found = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        yield from (one for one in found if isinstance(one, dict))
