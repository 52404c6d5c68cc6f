"""Do the installed plugins work, and does the recipe?"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from trainrun.doctor.finding import Context, Finding, Verdict
from trainrun.errors import EnvironmentProblem, Problem, RecipeError
from trainrun.launch.preflight import place
from trainrun.plugin.catalogue import Catalogue, Listed, catalogue
from trainrun.plugin.resolve import Resolved, resolve
from trainrun.recipe import Recipe
from trainrun.recipe.plain import lookup

_SHOWN = 3  # broken plugins and problems that are named in a finding


def plugins(context: Context) -> Iterator[Finding]:
    """Check every installed plugin, imported once if it is not remembered."""
    context.doing("describing the installed plugins")
    found = catalogue()
    verdict = Verdict("plugins")
    own = [one for one in found.plugins if one.instance.distribution in (None, "trainrun")]
    others = _by_distribution(one for one in found.plugins if one not in own and not one.error)
    listed = ", ".join(f"{owner} ({len(names)})" for owner, names in others.items())
    verdict.say(f"{len(own)} of trainrun's own; installed: {listed or 'none'}")
    for one in found.broken[:_SHOWN]:
        # An installed plugin does nothing until a recipe names it; a built-in one is part of every run.
        tell = verdict.fail if one.instance.role == "builtin" else verdict.warn
        tell(f"{one.instance.name} is broken: {one.error}", one.switch or "`trainrun plugins` shows all of it")
    if len(found.broken) > _SHOWN:
        verdict.warn(f"{len(found.broken) - _SHOWN} more are broken", "`trainrun plugins` lists them")
    _judge_commands(verdict, found)
    yield verdict.finding(installed=others, broken=[one.instance.name for one in found.broken])


def recipe(context: Context) -> Iterator[Finding]:
    """Report what `trainrun check` finds, and check the devices.

    This machine must have those that the recipe asks for.
    """
    path = context.settings.recipe
    assert path is not None
    context.doing(f"checking {path}")
    verdict = Verdict("recipe")
    try:
        resolved = resolve(path)
    except RecipeError as error:
        _judge_problems(verdict, path, error.problems)
        yield verdict.finding()
        return
    facts = _settings(resolved)
    if resolved.problems:
        _judge_problems(verdict, path, resolved.problems)
    else:
        facts["threads"] = _judge_placement(verdict, path, resolved)
    yield verdict.finding(settings={name: value for name, value in facts.items() if value is not None})


def _judge_commands(verdict: Verdict, found: Catalogue) -> None:
    for name, entries in found.commands.items():
        if len(entries) > 1:
            what = f"several distributions bring the command {name}: {'; '.join(map(str, entries))}"
            verdict.warn(what, "uninstall one of them")


def _judge_problems(verdict: Verdict, path: str, problems: Any) -> None:
    listed: list[Problem] = list(problems)
    more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
    first = listed[0]
    verdict.fail(f"{first.where}: {first.what}{more}", first.hint or f"`trainrun check {shlex.quote(path)}` shows it")


def _judge_placement(verdict: Verdict, path: str, resolved: Resolved) -> str | None:
    try:
        placement = place(Recipe.from_data(resolved.data))
    except EnvironmentProblem as error:
        verdict.fail(str(error), f"change {path}, or run it on another machine")
        return None
    task = resolved.data["task"]["use"]
    names = ", ".join(one.name for one in resolved.instances if one.role == "plugin")
    workers = f"{placement.workers} worker{'s' * (placement.workers > 1)}"
    verdict.say(f"{path} is valid: task {task}, plugins {names or 'none'}, {workers}")
    return placement.environment.get("OMP_NUM_THREADS")


def _settings(resolved: Resolved) -> dict[str, Any]:
    """Return what other checks need to know of the recipe.

    It is returned as far as it can be read.
    """
    keys = {
        "run_dir": (("run", "dir"), str),
        "start": (("launch", "start"), str),
        "preload": (("launch", "preload"), list),
        "nodes": (("launch", "nodes"), int),
        "device": (("train", "device"), str),
        "loader_workers": (("data", "workers"), int),
    }
    found = {name: (lookup(resolved.data, key)[1], kind) for name, (key, kind) in keys.items()}
    usable: dict[str, Any] = {name: value for name, (value, kind) in found.items() if isinstance(value, kind)}
    return {**usable, "preload_path": [str(resolved.document.path.parent.resolve())]}


def _by_distribution(plugins: Iterable[Listed]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in plugins:
        found.setdefault(f"{one.instance.distribution} {one.instance.version}", []).append(one.instance.name)
    return found
