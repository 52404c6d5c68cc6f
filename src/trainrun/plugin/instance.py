"""One enabled use of a plugin. What the client decides about it, the workers read from the run directory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Role = Literal["builtin", "task", "plugin"]
Policy = Literal["fail", "disable", "warn"]
WhenFull = Literal["drop", "block"]

TASK = "task"


@dataclass(frozen=True)
class Instance:
    """One enabled use of a plugin, named by its table in the recipe.

    `target` is what `targets.load` imports. `plugin` is the entry point's name, None for a plugin named by module or
    path. `on_error`, `before` and `after` are the effective values: those of the recipe's table if it sets them,
    otherwise those of the class.
    """

    name: str
    role: Role
    target: str
    plugin: str | None = None
    distribution: str | None = None
    version: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    on_error: Policy = "fail"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    queue: int = 1000
    when_full: WhenFull = "drop"

    @property
    def where(self) -> str:
        """How errors name this instance: what it is, its distribution and its entry point."""
        subject = "task" if self.role == "task" else f"plugin {self.name}"
        return f"{subject} ({self.origin})"

    @property
    def origin(self) -> str:
        """Distribution, version and entry point, or the target of a plugin that has none."""
        if self.role == "builtin":
            return "built-in"
        if self.distribution is None:
            return self.target
        return f"{self.distribution} {self.version}, entry point {self.plugin} = {self.target}"

    @property
    def switch(self) -> str:
        """What the user does to run without this instance; nothing for the task, which a run needs."""
        if self.role == "task":
            return ""
        return f"to run without it: -p {shlex.quote(f'no:{self.name}')}, or enabled = false in [plugins.{self.name}]"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Instance:
        """The inverse of `to_json`."""
        return cls(**{**data, "before": tuple(data["before"]), "after": tuple(data["after"])})
