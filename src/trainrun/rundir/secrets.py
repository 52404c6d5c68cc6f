"""What the files of a run leave out: secrets travel from client to workers in their environment, never on disk.

The environment of a process can be read by its own user only, as can the run directory. But files are kept, copied and
attached to reports. What libraries and plugins say may hold a secret as well. So each text that is written or shown is
searched for the values that this process knows.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

SECRETS_VARIABLE = "TRAINRUN_SECRETS"
FORMS_VARIABLE = "TRAINRUN_SECRET_FORMS"
REDACTED = "<redacted>"

_NOTHING = "{}"
_SHORTEST = 4  # characters; what is shorter is in every text
_PLAIN = frozenset(
    {"event", "level", "timestamp", "checkpoint", "path", "file", "run", "log", "phase", "state", "type", "kind"}
    | {"plugin", "hook", "instance", "action", "decision", "signal", "locus"}
)

_Path = list[str | int]


def pack(shown: Mapping[str, tuple[Any, Any]]) -> dict[str, str]:
    """Return the environment that carries what was left out.

    shown: maps a name to a value and to its redacted form.
    """
    hidden = {name: list(_hidden(value, redacted, [])) for name, (value, redacted) in shown.items()}
    return {SECRETS_VARIABLE: json.dumps(hidden)} if any(hidden.values()) else {}


def restore(name: str, redacted: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Return the value that was packed under `name`.

    It is made from its redacted form and the environment.
    """
    restored = copy.deepcopy(redacted)
    for path, value in json.loads(environment.get(SECRETS_VARIABLE, "{}")).get(name, []):
        holder = restored
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = value
    return restored


def _hidden(value: Any, redacted: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    if isinstance(value, Mapping) and isinstance(redacted, Mapping):
        for key, item in value.items():
            yield from _hidden(item, redacted[key], [*path, key])
    elif isinstance(value, list | tuple) and isinstance(redacted, list | tuple):
        for index, item in enumerate(value):
            yield from _hidden(item, redacted[index], [*path, index])
    elif value != redacted:
        yield path, value


# --- what this process knows ---


@contextmanager
def session(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Know no secrets at first, and those of `learn` from then on.

    At the end what was known before is known again. Secrets are in the environment, so that also the processes that are
    started meanwhile know them. Within a session that knows nothing yet this is that same session.
    """
    before = environment.get(SECRETS_VARIABLE)
    if before == _NOTHING:
        yield
        return
    environment[SECRETS_VARIABLE] = _NOTHING
    try:
        yield
    finally:
        del environment[SECRETS_VARIABLE]
        if before is not None:
            environment[SECRETS_VARIABLE] = before


def learn(packed: Mapping[str, str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Know what `pack` made, for as long as the session lasts.

    Without a session nothing is remembered.
    """
    if SECRETS_VARIABLE in environment:
        environment.update(packed)


def scrub(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text without the secrets that this process knows.

    They are found in all forms in which they may be written.
    """
    packed = environment.get(SECRETS_VARIABLE)
    pattern = None if packed is None else _pattern(packed)
    return text if pattern is None else pattern.sub(REDACTED, text)


def scrub_all(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Return a JSON value without the secrets in what it says.

    Names and paths, by which processes go, are left alone.
    """
    packed = environment.get(SECRETS_VARIABLE)
    pattern = None if packed is None else _pattern(packed)
    return value if pattern is None else _scrubbed(value, pattern)


def _scrubbed(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return {
            key: item if key in _PLAIN and isinstance(item, str) else _scrubbed(item, pattern)
            for key, item in value.items()
        }
    return [_scrubbed(item, pattern) for item in value] if isinstance(value, list | tuple) else value


@lru_cache(maxsize=4)
def _pattern(packed: str) -> re.Pattern[str] | None:
    return _compiled([value for hidden in json.loads(packed).values() for _, value in hidden])


def forms(packed: str) -> list[str]:
    """Return the forms of the secrets in the environment, longest first."""
    return _forms([value for hidden in json.loads(packed).values() for _, value in hidden])


def _compiled(values: Any) -> re.Pattern[str] | None:
    found = _forms(values)
    return re.compile("|".join(map(re.escape, found))) if found else None


def _forms(values: Any) -> list[str]:
    """Return the forms of secrets, the longest first.

    So one that begins like another is found whole.
    """
    texts = {text.strip() for value in _leaves(values) for text in _texts(value)}
    found = {form for text in texts if len(text) >= _SHORTEST for form in _written(text)}
    return sorted(found, key=lambda form: (-len(form), form))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _texts(value: str) -> Iterator[str]:
    """Yield a secret, its lines, and the password in a URL.

    A key in a file's format has many lines.
    """
    yield value
    if "\n" in value:
        yield from value.splitlines()
    if "://" in value:
        try:
            parts = urlsplit(value)
            yield from filter(None, (parts.password, parts.username if parts.password is None else None))
        except ValueError:  # brackets that hold no address
            return


def _written(text: str) -> set[str]:
    data = text.encode(errors="surrogatepass")
    encoded = {base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()}
    quoted = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
    return {text, quote(text, safe="", errors="replace"), *quoted, *encoded, *(one.rstrip("=") for one in encoded)}
