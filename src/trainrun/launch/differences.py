"""What changed between the launch that wrote a checkpoint and the one that resumes from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainrun.checkpoint import Manifest, plugin_file
from trainrun.errors import UsageError
from trainrun.plugin.instance import Instance
from trainrun.plugin.resolve import Resolved
from trainrun.recipe.model import Recipe
from trainrun.recipe.secret import REDACTED

Change = tuple[Any, Any]  # before and now; None if there was or is nothing

_FREE_TABLES = ("launch", "evaluate", "checkpoint", "control")
_FREE_KEYS = {
    "run.name",
    "run.dir",
    "run.autoload",
    "data.workers",
    "data.pin_memory",
    "train.log_every",
    "train.device",
}
_OPTIMIZER = "optimizer.name"
_DEFAULTS = "providers"  # the built-in plugin that builds what no other plugin builds
_LENGTH = {"train.steps", "train.epochs"}
_WITHOUT_LENGTH = {"constant", "step", "exponential"}  # schedules that do not depend on how long training is
_SAID = ("plugin", "distribution", "version", "hash")


class Present(NamedTuple):
    """What is about to run, in the form in which a checkpoint's manifest says what ran. world: number of workers."""

    recipe: Mapping[str, Any]
    plugins: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str | None]
    world: int


@dataclass(frozen=True)
class Differences:
    """What changed. `blocking` names those of the recipe's keys and of the plugins that change the training.

    `impossible` names those of them that a resume cannot make: the checkpoint's state is of another kind.
    """

    recipe: Mapping[str, Change] = field(default_factory=dict)
    plugins: Mapping[str, Change] = field(default_factory=dict)
    versions: Mapping[str, Change] = field(default_factory=dict)
    world: Change | None = None
    blocking: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `on_resume` and the run's events.

        What did not change is left out.
        """
        found = {
            "plugins": _pairs(self.plugins),
            "versions": _pairs(self.versions),
            "world": list(self.world) if self.world else None,
            "recipe": _pairs(self.recipe),
        }
        return {name: value for name, value in found.items() if value}

    def require(self, checkpoint: Path, *, allow: bool = False) -> None:
        """Raise UsageError, with every change that blocks, if there is one. allow: only those that cannot be made."""
        if self.impossible:
            listed = [f"    {key}: {_arrow(self.recipe[key])}" for key in self.impossible]
            what = (
                f"{checkpoint}: a resume cannot change the optimizer, whose state the checkpoint holds; set it back, or"
            )
            raise UsageError("\n".join([f"{what} start a new run", *listed]))
        if allow or not self.blocking:
            return
        changes = {**self.recipe, **{_plugin(name): change for name, change in self.plugins.items()}}
        listed = [f"    {key}: {_arrow(changes[key])}" for key in self.blocking]
        what = f"{checkpoint}: this checkpoint was made with different settings"
        raise UsageError("\n".join([f"{what}; resume anyway with --allow-changes:", *listed]))

    def notes(self) -> Iterator[str]:
        """Yield a line for each change, as the terminal shows it."""
        for key, change in self.recipe.items():
            yield f"{key} has changed: {_arrow(change)}"
        for name, change in self.plugins.items():
            yield f"{_plugin(name)} has changed: {_arrow(change)}"
        for name, change in self.versions.items():
            yield f"the version of {name} has changed: {_arrow(change)}"
        if self.world:
            yield (
                f"the number of workers has changed: {_arrow(self.world)}; each sample is still seen exactly once, "
                "but the results are not the same bit for bit"
            )


def present(resolved: Resolved, versions: Mapping[str, str | None], world: int) -> Present:
    """Return what is about to run."""
    return Present(resolved.shown, plugins(resolved), versions, world)


def plugins(resolved: Resolved) -> dict[str, dict[str, str]]:
    """Return what runs of each instance.

    `acts` lists the hooks by which it takes part in the training, and does not watch.
    """
    return {one.name: _described(resolved, one) for one in resolved.instances}


def compare(manifest: Manifest, now: Present) -> Differences:
    """Return how `now` differs from what wrote the checkpoint."""
    had_state = {name for name in {*manifest.plugins, *now.plugins} if plugin_file(name) in manifest.files}
    acting = {name for name in {*manifest.plugins, *now.plugins} if _acts(name, manifest.plugins, now.plugins)}
    changed_plugins = dict(_plugins(manifest.plugins, now.plugins))
    both = manifest.plugins.keys() & now.plugins.keys()
    before, after = _flat(_normal(manifest.recipe)), _flat(_normal(now.recipe))
    changed = {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
        and REDACTED not in (before.get(key), after.get(key))
        and (_instance(key) is None or _instance(key) in both)
    }
    own_schedule = _builds("build_scheduler", manifest, now)
    blocking = [
        key for key in changed if not _is_free(key, (before, after), acting | had_state, own_schedule=own_schedule)
    ]
    blocking += [_plugin(name) for name in changed_plugins if name in acting | had_state]
    return Differences(
        recipe=changed,
        plugins=changed_plugins,
        versions={
            name: (old, now.versions.get(name))
            for name, old in manifest.versions.items()
            if old != (now.versions.get(name) or "")
        },
        world=(manifest.world_size, now.world) if manifest.world_size != now.world else None,
        blocking=tuple(blocking),
        impossible=tuple(key for key in changed if key == _OPTIMIZER and not _builds("build_optimizer", manifest, now)),
    )


def _described(resolved: Resolved, instance: Instance) -> dict[str, str]:
    own = instance.role == "builtin"  # the version of trainrun says it all
    return {
        "plugin": instance.plugin or instance.target,
        "distribution": instance.distribution or "",
        "version": instance.version or "",
        "hash": "" if own else source_hash(resolved, instance),
        "acts": ", ".join(sorted(_acting_hooks(resolved, instance))),
    }


def source_hash(resolved: Resolved, instance: Instance) -> str:
    """Return the SHA-256 of the plugin's own source file.

    Empty if none can be read.
    """
    file = resolved.description(instance).file
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""


def _acting_hooks(resolved: Resolved, instance: Instance) -> set[str]:
    found = set()
    for impl in resolved.description(instance).impls:
        spec = resolved.specs.get(impl.hook)
        if spec is None or spec.locus == "client":
            continue
        if spec.kind != "event" or impl.mutates or impl.wrapper:
            found.add(impl.hook)
    return found


def _acts(name: str, *sets: Mapping[str, Mapping[str, str]]) -> bool:
    # Of one that says nothing about it, the worst is assumed.
    return any(bool(one[name].get("acts", "?")) for one in sets if name in one)


def _builds(hook: str, manifest: Manifest, now: Present) -> bool:
    """Return whether the task or a plugin implements a provider hook.

    It is a hook of the worker. The plugins of the checkpoint and the present ones count.
    """
    every = [*manifest.plugins.items(), *now.plugins.items()]
    return any(hook in one.get("acts", "").split(", ") for name, one in every if name != _DEFAULTS)


def _plugins(
    before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, Change]]:
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old is None or new is None or _differ(old, new):
            yield name, (_shown(old), _shown(new))


def _differ(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    if not old.get("distribution") and not new.get("distribution") and old.get("hash") and new.get("hash"):
        return old["hash"] != new["hash"]  # a file of the user's own, wherever it lies
    return any(old.get(key, "") != new.get(key, "") for key in _SAID)


def _shown(plugin: Mapping[str, str] | None) -> str | None:
    if plugin is None:
        return None
    version = " ".join(part for part in (plugin.get("distribution"), plugin.get("version")) if part)
    source = f"source {plugin['hash'][:12]}" if plugin.get("hash") else ""
    detail = ", ".join(part for part in (version, source) if part)
    name = plugin.get("plugin", "")
    return f"{name} ({detail})" if detail else name


def _normal(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recipe with its defaults, units made one.

    A recipe of a version with other keys is returned as it stands.
    """
    try:
        found = Recipe.from_data(data).model_dump(mode="json", exclude_none=True)
    except ValueError:
        return data
    optimizer = found["optimizer"]  # whose name may be written in several ways
    return {**found, "optimizer": {**optimizer, "name": re.sub("[-_]", "", optimizer["name"].lower())}}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        path = f"{prefix}.{key}" if prefix else key
        found.update(_flat(item, path) if isinstance(item, Mapping) else {path: item})
    return found


def _instance(key: str) -> str | None:
    """Return the plugin whose table the key belongs to."""
    table, _, rest = key.partition(".")
    return rest.partition(".")[0] if table == "plugins" else None


def _is_free(
    key: str, recipes: tuple[Mapping[str, Any], Mapping[str, Any]], acting: set[str], *, own_schedule: bool
) -> bool:
    """Return whether a change of the key does not change the training."""
    instance = _instance(key)
    if instance is not None:
        return instance not in acting
    if key in _LENGTH:
        return not own_schedule and all(recipe.get("scheduler.name") in _WITHOUT_LENGTH for recipe in recipes)
    return key in _FREE_KEYS or key.partition(".")[0] in _FREE_TABLES


def _pairs(changes: Mapping[str, Change]) -> dict[str, list[Any]]:
    return {key: list(change) for key, change in changes.items()}


def _plugin(name: str) -> str:
    return f"plugin {name}"


def _arrow(change: Change) -> str:
    old, new = ("nothing" if value is None else str(value) for value in change)
    return f"{old} → {new}"
