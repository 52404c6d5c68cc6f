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
        """Return the instance's name in errors: kind, distribution and entry point."""
        subject = "task" if self.role == "task" else f"plugin {self.name}"
        return f"{subject} ({self.origin})"

    @property
    def origin(self) -> str:
        """Return distribution, version and entry point.

        A plugin that has none has its target instead.
        """
        if self.role == "builtin":
            return "built-in"
        if self.distribution is None:
            return self.target
        return f"{self.distribution} {self.version}, entry point {self.plugin} = {self.target}"

    @property
    def switch(self) -> str:
        """Return what the user does to run without this instance.

        Empty for the task, which a run needs.
        """
        if self.role == "task":
            return ""
        return f"to run without it: -p {shlex.quote(f'no:{self.name}')}, or enabled = false in [plugins.{self.name}]"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Instance:
        """Build the instance that `to_json` was called on."""
        return cls(**{**data, "before": tuple(data["before"]), "after": tuple(data["after"])})
