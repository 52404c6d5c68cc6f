"""What a tracker learns about a run, all of it read from the run directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import tomli

from trainrun.errors import EnvironmentProblem
from trainrun.recipe.plain import Key, dotted, json_form
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome

Scalar = str | int | float | bool


@dataclass(frozen=True)
class RunFacts:
    """A run, as it is known before it ends.

    `recipe` is the text of the resolved recipe, without secrets; `parameters` are its values by dotted key.
    `resumed`: the run was begun by an earlier launch. `manifest` is that of the run directory.
    """

    id: str
    name: str
    paths: RunPaths
    recipe: str
    parameters: Mapping[str, Scalar]
    resumed: bool
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, paths: RunPaths, *, resumed: bool = False) -> Self:
        """Read the run directory.

        Raises EnvironmentProblem if it holds no readable recipe.
        """
        try:
            text = paths.recipe.read_text(encoding="utf-8")
            data = json_form(tomli.loads(text))
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(f"{paths.recipe}: cannot be read: {error}") from error
        name = str(data.get("run", {}).get("name") or paths.run_id)
        return cls(paths.run_id, name, paths, text, flatten(data), resumed, read_json(paths.manifest) or {})

    def files(self, globs: Iterable[str]) -> list[Path]:
        """Return the files of the run that fit any of the globs.

        Each is there once, and they are sorted. A link that leads out of the run does not fit.
        """
        root = self.paths.root.resolve()
        found = {path for glob in globs for path in self.paths.root.glob(glob)}
        return sorted(path for path in found if path.is_file() and path.resolve().is_relative_to(root))


@dataclass(frozen=True)
class Ending:
    """How a run, or this launch of it, ended. `metrics` are the last value of each, `step` the last step made."""

    state: str
    exit_code: int
    reason: str
    step: int
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, outcome: Outcome, metrics: Mapping[str, float]) -> Self:
        """Return the ending that an outcome describes.

        metrics: the last value of each.
        """
        return cls(outcome.state, outcome.exit_code, outcome.reason, outcome.step, metrics)


def flatten(data: Mapping[str, Any]) -> dict[str, Scalar]:
    """Flatten nested tables to one, with dotted keys.

    Lists of plain values become text, other lists are numbered.
    """
    return {dotted(key): value for key, value in _leaves(data, ())}


def _leaves(value: Any, key: Key) -> Iterator[tuple[Key, Scalar]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, (*key, name))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, (*key, index))
    elif isinstance(value, list):
        yield key, ", ".join(map(str, value))
    elif value is not None:
        yield key, value
