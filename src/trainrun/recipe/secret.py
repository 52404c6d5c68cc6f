"""Which keys hold secrets. Their values never reach the frozen recipe, a log or an error message."""

from __future__ import annotations

import re

REDACTED = "<redacted>"

_WORDS = re.compile(
    r"(^|[_-])(passw(or)?d|passphrase|secrets?|tokens?|api[_-]?keys?|access[_-]?keys?|private[_-]?keys?"
    r"|auth|authorization|credentials?|cookie|dsn|webhook([_-]?url)?)$",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(r"""(?P<key>[\w-]+)["']?\s*=\s*(?P<value>[^,}]*\S)""")


def is_secret(key: object) -> bool:
    """Whether a key's name says that its value is a secret: `wandb_api_key`, `token`, `smtp-password`."""
    return isinstance(key, str) and _WORDS.search(key) is not None


def mask(line: str) -> str:
    """A line of TOML with the values of secrets replaced."""
    first = next((found for found in _ASSIGNMENT.finditer(line) if is_secret(found["key"])), None)
    return line if first is None else line[: first.start("value")] + REDACTED
