"""What the files of a run leave out: secrets travel from client to workers in their environment, never on disk.

The environment of a process can be read by its own user only, as can the run directory; but files are
kept, copied and attached to reports.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

SECRETS_VARIABLE = "TRAINRUN_SECRETS"

_Path = list[str | int]


def pack(shown: Mapping[str, tuple[Any, Any]]) -> dict[str, str]:
    """The environment that carries what was left out. `shown` maps a name to a value and to its redacted form."""
    hidden = {name: list(_hidden(value, redacted, [])) for name, (value, redacted) in shown.items()}
    return {SECRETS_VARIABLE: json.dumps(hidden)} if any(hidden.values()) else {}


def restore(name: str, redacted: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """The value that was packed under `name`, from its redacted form and the environment."""
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
