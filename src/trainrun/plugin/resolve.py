"""From a recipe to everything that is known before a launch: the one pipeline of all commands that take one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trainrun import recipe as recipes
from trainrun.errors import PluginProblem, Problem, RecipeError
from trainrun.plugin.answers import check_providers, chosen_providers
from trainrun.plugin.cache import Store, cache_folder
from trainrun.plugin.describe import describe, validate_options
from trainrun.plugin.description import Description, ImplInfo, SpecInfo
from trainrun.plugin.discovery import Installed, discover
from trainrun.plugin.enabling import Enabled, Request, enable
from trainrun.plugin.hookcheck import check_hooks, check_specs, unmarked_notes
from trainrun.plugin.instance import Instance
from trainrun.plugin.order import called, plan_order
from trainrun.plugin.plan import Plan, make_plan
from trainrun.plugin.specs import by_name, own_specs
from trainrun.plugin.trainable import builder, untrainable
from trainrun.recipe import Document
from trainrun.recipe.overrides import masked
from trainrun.recipe.plain import json_form
from trainrun.recipe.schema import RESERVED, Schema
from trainrun.recipe.secret import redact
from trainrun.recipe.suggest import did_you_mean
from trainrun.rundir import secrets


@dataclass(frozen=True)
class Resolved:
    """A recipe with its plugins.

    `data` is the document with all defaults; `instances` are in plan order. `recipe_problems` are to be solved in the
    recipe or on the command line, `plugin_problems` lie in what is installed, and `notes` stop nothing. `schema` is
    that of this recipe with these plugins. `reasons` explain the position of each instance.
    """

    document: Document
    schema: Schema
    data: dict[str, Any]
    instances: tuple[Instance, ...]
    descriptions: Mapping[str, Description]
    specs: Mapping[str, SpecInfo]
    reasons: Mapping[str, str]
    recipe_problems: tuple[Problem, ...]
    plugin_problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    installed_not_enabled: tuple[str, ...]

    @cached_property
    def plan(self) -> Plan:
        """Return which hookimpls each hook calls, in which order, and why."""
        return make_plan(self.members, self.specs, self.providers, self.reasons)

    @property
    def members(self) -> list[tuple[Instance, tuple[ImplInfo, ...]]]:
        """Return the instances in plan order, each with its hookimpls."""
        return [(instance, self.description(instance).impls) for instance in self.instances]

    @property
    def problems(self) -> list[Problem]:
        """Return everything that is wrong."""
        return [*self.recipe_problems, *self.plugin_problems]

    @property
    def providers(self) -> dict[str, str]:
        """Return the recipe's choices between the plugins that implement a provider hook."""
        return chosen_providers(self.document)

    @cached_property
    def shown(self) -> dict[str, Any]:
        """Return `data` as it may be shown and kept: with secrets, by name or by type, replaced."""
        shown: dict[str, Any] = redact(self.data, self.schema)
        return shown

    @property
    def shown_instances(self) -> list[dict[str, Any]]:
        """Return the instances as plain values that may be kept."""
        return [self._shown(instance) for instance in self.instances]

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Return the environment that carries what `shown` and `shown_instances` leave out."""
        instances = [instance.to_json() for instance in self.instances]
        return secrets.pack({"recipe": (self.data, self.shown), "instances": (instances, self.shown_instances)})

    def mask(self, argument: str) -> str:
        """Return an argument of the command line as it may be kept."""
        return secrets.scrub(masked(argument, self.schema), self.secrets)

    def _shown(self, instance: Instance) -> dict[str, Any]:
        tables = self.schema["properties"]
        node = tables["task"] if instance.role == "task" else tables["plugins"].get("properties", {}).get(instance.name)
        plain = instance.to_json()
        return {**plain, "options": redact(plain["options"], node, self.schema)}

    def description(self, instance: Instance) -> Description:
        """Return what is known of the plugin behind an instance."""
        return self.descriptions[instance.target]

    def require(self) -> None:
        """Raise RecipeError or PluginProblem if anything is wrong."""
        if self.recipe_problems:
            raise RecipeError(self.problems)
        if self.plugin_problems:
            raise PluginProblem(self.plugin_problems)


def resolve(
    recipe: Path | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    refresh: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Resolved:
    """Read a recipe, and find, check and order its plugins. Raises RecipeError if it cannot be read.

    recipe: the path of its file, or the recipe itself as a mapping.
    plugins: `NAME` turns a plugin on and `no:NAME` off, as `-p` does.
    refresh: describe every plugin again, even if the cache has a description.
    tell: called with each task or plugin that must be imported for that, which may take seconds.
    """
    document = recipes.made(recipe, overrides) if isinstance(recipe, Mapping) else recipes.read(recipe, overrides)
    return resolve_document(document, plugins, refresh=refresh, tell=tell)


def resolve_document(
    document: Document,
    plugins: Sequence[str] = (),
    *,
    refresh: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Resolved:
    """Resolve a recipe that has been read, as `resolve` does."""
    installed = discover()
    base = recipe_schema()
    enabled = enable(document, installed, base, plugins)
    targets = [request.target for request in enabled.requests]
    descriptions = describe(targets, installed.fingerprint, refresh=refresh, retry_broken=True, tell=tell)
    enabled.leave_out_incomplete(descriptions)
    found = _Resolving(document, installed, enabled, descriptions, base).resolved()
    secrets.learn(found.secrets)
    return found


def known_schema(path: Path | str) -> Schema:
    """Return a recipe's schema with the tables that the cache knows. Nothing is imported."""
    document, installed, base = recipes.read(path, ()), discover(), recipe_schema()
    enabled = enable(document, installed, base, ())
    targets = [request.target for request in enabled.requests]
    descriptions = describe(targets, installed.fingerprint, only_cached=True)
    return _Resolving(document, installed, enabled, descriptions, base).schema


def recipe_schema() -> Schema:
    """Return the JSON Schema of a recipe without plugins; cached, because pydantic is slow to import."""
    store, folder = Store(cache_folder()), Path(recipes.__file__).parent
    key = ("recipe-schema", str(folder))  # two checkouts of one version need not have the same
    schema: Schema | None = store.get(*key)
    if schema is None:
        schema = recipes.base_schema()
        store.put(schema, map(str, folder.glob("*.py")), *key)
    return schema


class _Resolving:
    def __init__(
        self,
        document: Document,
        installed: Installed,
        enabled: Enabled,
        descriptions: Mapping[str, Description],
        base: Schema,
    ) -> None:
        self._document = document
        self._installed = installed
        self._enabled = enabled
        self._descriptions = descriptions
        self._requests = enabled.requests
        self.schema = self._schema = self._merged(base)
        self._data = recipes.complete(document.data, self._schema)
        self._known = [(one.instance, descriptions[one.instance.target]) for one in self._requests]
        self._optimizer_of = builder(self._known, "build_optimizer")
        table = self._data.get("optimizer")
        if self._optimizer_of is not None and isinstance(table, dict) and "name" not in self._optimizer_table():
            # Not the default: what is kept of the run must not say that another optimizer trained.
            table["name"] = f"built-by-{self._optimizer_of.name}"
        self._unevaluated = self._leave_out_evaluation()
        self._own = by_name(own_specs())
        self._specs = by_name(self._own.values(), *(description.specs for _, description in self._known))

    def resolved(self) -> Resolved:
        order = plan_order([self._effective(request) for request in self._requests])
        members = [(one, self._descriptions[one.target].impls) for one in order.instances]
        reasons = {one.instance.name: self._reason(one, order.instances) for one in self._requests}
        checked = recipes.check(self._with_tables(), self._schema, own_optimizer=self._optimizer_of is not None)
        recipe_problems = [
            *self._enabled.recipe_problems,
            *checked,
            *self._validated(checked),
            *self._unknown_neighbours(),
            *self._cycle(order.cycle),
            *check_providers(self._document, members, self._specs),
            *untrainable(self._document, self._data, self._known),
        ]
        return Resolved(
            document=self._document,
            schema=self._schema,
            data=self._data,
            instances=order.instances,
            descriptions=self._descriptions,
            specs=self._specs,
            reasons=reasons,
            recipe_problems=self._scrubbed(recipe_problems),
            plugin_problems=self._scrubbed([*self._enabled.plugin_problems, *self._broken(), *self._hook_problems()]),
            notes=tuple(self._notes()),
            installed_not_enabled=tuple(self._not_enabled()),
        )

    def _scrubbed(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """Return the problems without the secrets that a line of the recipe or a validator may show."""
        packed = secrets.pack({"recipe": (self._data, redact(self._data, self._schema))})

        def clean(text: str | None) -> str | None:
            return text and secrets.scrub(text, packed)

        return tuple(
            replace(one, what=secrets.scrub(one.what, packed), hint=clean(one.hint), source=clean(one.source))
            for one in problems
        )

    # --- options ---

    def _merged(self, base: Schema) -> Schema:
        usable = {
            request.wish.name: self._descriptions[request.instance.target].options_schema or {}
            for request in self._requests
            if self._descriptions[request.instance.target].ok
        }
        task = usable.pop("task", None)
        return recipes.merge(base, task, usable)

    def _effective(self, request: Request) -> Instance:
        """Return the instance with its options; the table's values override those of the class."""
        instance, table = request.instance, self._table(request)
        description = self._descriptions[instance.target]
        options = {key: value for key, value in table.items() if key not in RESERVED}
        if instance.role == "task":
            return replace(instance, options=options, before=description.before, after=description.after)
        return replace(
            instance,
            options=options,
            on_error=_one_of(table.get("on_error"), ("fail", "disable", "warn")) or description.on_error,
            before=_names(request.wish.table.get("before", description.before)),
            after=_names(request.wish.table.get("after", description.after)),
            queue=queue if isinstance(queue := table.get("queue"), int) else instance.queue,
            when_full=_one_of(table.get("when_full"), ("drop", "block")) or instance.when_full,
        )

    def _table(self, request: Request) -> dict[str, Any]:
        """Return the plugin's table with defaults, even if the recipe has none."""
        if request.instance.role == "task":
            table = self._data.get("task")
        else:
            with_table = {**self._document.data, "plugins": {request.wish.name: dict(request.wish.table)}}
            table = recipes.complete(with_table, self._schema)["plugins"][request.wish.name]
        form: dict[str, Any] = json_form(table) if isinstance(table, dict) else {}
        return form

    def _with_tables(self) -> Document:
        """Return the document with an empty table for each plugin without one, to see what it lacks."""
        written = self._document.data.get("plugins", {})
        if not isinstance(written, dict):
            return self._document
        without = [one for one in self._requests if one.instance.role == "plugin" and one.wish.name not in written]
        tables = {**written, **{request.wish.name: dict(request.wish.table) for request in without}}
        return self._document._replace(data={**self._document.data, "plugins": tables}) if without else self._document

    def _key(self, request: Request) -> tuple[str, ...]:
        return ("task",) if request.instance.role == "task" else ("plugins", request.wish.name)

    def _validated(self, checked: Sequence[Problem]) -> Iterator[Problem]:
        """Yield what the plugins' own validators report of tables without other problems."""
        for request in self._requests:
            description = self._descriptions[request.instance.target]
            table = re.compile(re.escape(".".join(self._key(request))) + r"[.: =]")  # not that of a longer name
            wrong = any(table.match(problem.what) for problem in checked)
            if description.ok and description.has_validators and not wrong:
                options = self._effective(request).options
                for where, message in validate_options(request.target, description, options):
                    key = (*self._key(request), *where)
                    yield self._document.locate(key).problem(f"{'.'.join(map(str, key))}: {message}")

    # --- order ---

    def _reason(self, request: Request, instances: Sequence[Instance]) -> str:
        effective = next(one for one in instances if one.name == request.wish.name)
        before = [f"before {name}" for name in effective.before if called(instances, name)]
        after = [f"after {name}" for name in effective.after if called(instances, name)]
        return ", ".join([request.wish.why, *before, *after])

    @cached_property
    def _names(self) -> frozenset[str]:
        """Return every name that `before` and `after` may say, on or off."""
        tables = self._document.data.get("plugins")
        known = {*(one.wish.name for one in self._requests), *self._installed.plugins, *self._enabled.off}
        known |= {one.instance.plugin for one in self._requests if one.instance.plugin}
        return frozenset(known | (set(tables) if isinstance(tables, dict) else set()))

    def _unknown_neighbours(self) -> Iterator[Problem]:
        """Yield the names in `before` and `after` of tables that no plugin has, on or off."""
        known = self._names
        for request in self._requests:
            for direction in ("before", "after"):
                for index, name in enumerate(_names(request.wish.table.get(direction))):
                    if request.instance.role != "task" and name not in known:
                        key = ("plugins", request.wish.name, direction, index)
                        what = f"plugins.{request.wish.name}.{direction}: no plugin is called {name!r}"
                        yield self._document.locate(key).problem(what, did_you_mean(name, sorted(known)))

    def _cycle(self, members: Sequence[str]) -> Iterator[Problem]:
        if members:
            place = self._document.locate(("plugins", members[0]))
            chain = " before ".join(members)
            yield place.problem(f"plugin order has a cycle: {chain}", "remove one of these before/after")

    # --- what is installed ---

    def _broken(self) -> Iterator[Problem]:
        for instance, description in self._known:
            if not description.ok:
                what, trace = description.error or "it cannot be used", description.traceback
                yield Problem(instance.where, what, instance.switch or None, traceback=trace)

    def _hook_problems(self) -> Iterator[Problem]:
        yield from check_specs(self._known, self._own)
        for instance, description in self._known:
            yield from check_hooks(instance, description, self._specs)

    def _notes(self) -> Iterator[str]:
        yield from self._enabled.notes
        for problem in recipes.planned(self._document, self._schema):
            yield f"{problem.where}: {problem.what}"
        for instance, description in self._known:
            yield from unmarked_notes(instance, description)
            yield from self._unknown_declared(instance, description)
        if self._unevaluated:
            use = self._document.data.get("task", {}).get("use")
            yield f"{use} has no evaluation_step, so nothing is evaluated; evaluate.splits = [] says that it is meant"
        if self._optimizer_of is not None and self._optimizer_table():
            yield (
                f"{self._document.locate(('optimizer',))}: [optimizer] has no effect by itself, because "
                f"{self._optimizer_of.where} builds the optimizer; its build_optimizer may read run.recipe.optimizer"
            )

    def _leave_out_evaluation(self) -> bool:
        """Turn evaluation off, and return True, if no plugin could and the recipe does not ask for it."""
        table = self._data.get("evaluate")
        own = self._document.data.get("evaluate")
        asked = isinstance(own, dict) and "splits" in own
        described = all(description.ok for _, description in self._known) and "task" in self._data
        if asked or not described or not isinstance(table, dict) or builder(self._known, "evaluation_step") is not None:
            return False
        table["splits"] = []
        return True

    def _optimizer_table(self) -> Mapping[str, Any]:
        table = self._document.data.get("optimizer")
        return table if isinstance(table, dict) else {}

    def _unknown_declared(self, instance: Instance, description: Description) -> Iterator[str]:
        """Yield names in a class's `before` and `after` that no plugin has; these may be of absent plugins."""
        for direction, names in (("before", description.before), ("after", description.after)):
            for name in names:
                if name not in self._names:
                    near = did_you_mean(name, sorted(self._names))
                    what = f"{instance.where}: {direction}: no plugin is called {name!r}, so it has no effect"
                    yield f"{what}; {near}" if near else what

    def _not_enabled(self) -> Iterator[str]:
        used = {one.instance.plugin for one in self._requests}
        for name, (first, *_) in self._installed.plugins.items():
            if name not in used and first.distribution != "trainrun":
                yield name


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list | tuple) else ()


def _one_of(value: Any, allowed: tuple[str, ...]) -> Any:
    return value if value in allowed else None
