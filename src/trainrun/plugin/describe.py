"""Describe plugins without importing them here: from the cache, or by a short-lived process that imports them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainrun.plugin.cache import Store, cache_folder
from trainrun.plugin.description import Description
from trainrun.plugin.discovery import EntryPoint
from trainrun.plugin.targets import guess_files, is_path
from trainrun.recipe.secret import redact
from trainrun.rundir import secrets

if TYPE_CHECKING:
    from trainrun.plugin.importer import Died


class Target(NamedTuple):
    """What to describe, and which installation of it is meant, so that another one is described anew."""

    target: str
    location: str = ""
    distribution: str = ""
    version: str = ""

    @classmethod
    def of(cls, entry: EntryPoint) -> Target:
        """Return the target of an installed entry point."""
        return cls(entry.value, entry.location, entry.distribution, entry.version)

    @property
    def key(self) -> tuple[str, ...]:
        """Return what the description depends on, besides the sources."""
        anchored = self.location or is_path(self.target)
        where = (self.location,) if anchored else (str(Path.cwd()), *sys.path)
        return "describe", sys.executable, sys.version, self.target, self.distribution, self.version, *where


def describe(
    targets: Sequence[Target],
    fingerprint: str,
    *,
    timeout: float | None = None,
    refresh: bool = False,
    retry_broken: bool = False,
    only_cached: bool = False,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Description]:
    """Describe each target; broken ones are described as such.

    A target that worked is remembered until its sources change. One that failed is remembered until a package is
    installed or removed (`fingerprint`); with `retry_broken` it is not remembered at all. `timeout` is for each target.
    `tell` is called with each target that must be imported. With `only_cached` nothing is imported, and a target that
    is not remembered is described as broken.
    """
    store = Store(cache_folder())
    found = {} if refresh else _remembered(store, targets, fingerprint, retry_broken=retry_broken)
    if only_cached:
        unknown = {one.target: Description(one.target, ok=False, error="not in the cache") for one in targets}
        return {**unknown, **found}
    missing = [target for target in dict.fromkeys(targets) if target.target not in found]
    jobs = [{"do": "describe", "target": target.target} for target in missing]
    for target, answer in zip(missing, _import(jobs, timeout, tell), strict=True):
        found[target.target] = _described(target, answer)
        _remember(store, target, found[target.target], fingerprint)
    return found


def validate_options(
    target: Target, description: Description, options: Mapping[str, Any], *, timeout: float | None = None
) -> list[tuple[tuple[str | int, ...], str]]:
    """Run the validators of a plugin's options model.

    Returns key and message of each problem. The model's JSON Schema cannot express what they check.
    """
    store = Store(cache_folder())
    key = ("validate", _hash(*target.key, json.dumps(options, sort_keys=True, default=str)))
    answer = store.get(*key)
    if answer is None:
        table = json.loads(json.dumps(options, default=str))
        (answer,) = _import([{"do": "validate", "target": target.target, "options": table}], timeout)
        if not isinstance(answer, list):
            return [((), f"checking it failed: {answer.how}")]
        hidden = secrets.pack({"options": (table, redact(table, description.options_schema))})
        answer = [(where, secrets.scrub(message, hidden)) for where, message in answer]
        store.put(answer, description.files, *key)
    return [(tuple(where), message) for where, message in answer]


def _hash(*parts: str) -> str:
    """Return a hash of parts that may hold secrets, for the cache."""
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, and few plugins have validators of their own

    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


# --- the cache ---------------------------------------------------------------------------------


def _remembered(
    store: Store, targets: Sequence[Target], fingerprint: str, *, retry_broken: bool
) -> dict[str, Description]:
    found = {}
    for target in targets:
        value = store.get(*target.key)
        if value is None and not retry_broken:
            value = store.get(*target.key, fingerprint)
        if value is not None:
            found[target.target] = Description.from_json(value)
    return found


def _remember(store: Store, target: Target, description: Description, fingerprint: str) -> None:
    key = target.key if description.ok else (*target.key, fingerprint)
    store.put(description.to_json(), description.files, *key)


def _import(
    jobs: Sequence[Mapping[str, Any]], timeout: float | None, tell: Callable[[str], None] | None = None
) -> list[Any]:
    if not jobs:
        return []
    # The modules for processes stay unloaded while the cache has every description.
    from trainrun.plugin.importer import answers  # noqa: PLC0415

    return list(answers(jobs, timeout, tell))


def _described(target: Target, answer: Mapping[str, Any] | Died) -> Description:
    if isinstance(answer, Mapping):
        return Description.from_json(answer)
    files = tuple(guess_files(target.target))
    return Description(target.target, ok=False, error=answer.how, traceback=answer.output or None, files=files)
