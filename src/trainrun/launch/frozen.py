"""The saved recipe of a run, as one to launch by: with overrides on top, and with the secrets that it leaves out."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainrun import recipe as recipes
from trainrun.errors import EnvironmentProblem, Problem, RecipeError, UsageError
from trainrun.recipe import Document
from trainrun.recipe.plain import Key, dotted, lookup
from trainrun.recipe.secret import REDACTED
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import last_attempt

_OFF = "no:"


def read_run(paths: RunPaths) -> dict[str, Any]:
    """Return the run's `manifest.json`. Raise EnvironmentProblem if there is none."""
    manifest = read_json(paths.manifest)
    if manifest is None:
        raise EnvironmentProblem(f"{paths.manifest}: missing or unreadable; launch a new run by its recipe")
    return manifest


def require_started(paths: RunPaths) -> None:
    """Raise UsageError if the launch of the run was ended too early.

    That is before it had written the recipe and the manifest.
    """
    manifest = read_json(paths.manifest) or {}
    if last_attempt(paths) or paths.outcome.exists() or (paths.recipe.exists() and "workers" in manifest):
        return
    what = "this run never started: its launch was ended before it had written the recipe"
    raise UsageError(f"{paths.root}: {what}; to start it anew: {_command(manifest)}")


def _command(manifest: Mapping[str, Any]) -> str:
    """Return the command that launched a run, according to its manifest.

    The manifest may not have all of it.
    """
    _, *arguments = map(str, manifest.get("argv") or [""])
    if arguments[:1] != ["launch"]:  # from Python, or it is not known
        arguments = ["launch", str(manifest.get("recipe") or "RECIPE")]
    folder = str(manifest.get("directory") or "")
    elsewhere = f"cd {shlex.quote(folder)} && " if folder and Path(folder) != Path.cwd() else ""
    return f"{elsewhere}{shlex.join(['trainrun', *arguments])}"


def read_frozen(paths: RunPaths, overrides: Sequence[str] = ()) -> Document:
    """Return the run's recipe, with overrides on top.

    Paths in it start at the folder of the recipe that it was made from. Secrets come from the overrides, or from the
    recipe that the run was launched by. Raises RecipeError with all that are still missing.
    """
    require_started(paths)
    document = recipes.read(paths.recipe, overrides)
    original = Path(str(read_run(paths).get("recipe") or paths.recipe))
    return document._replace(path=original, data=_revealed(document, original))


def switches(paths: RunPaths, more: Sequence[str]) -> list[str]:
    """Return what `-p` said when the run was launched.

    more: wins for the plugins that it names.
    """
    before = read_run(paths).get("switches") or []
    named = {switch.removeprefix(_OFF) for switch in more}
    return [*(str(switch) for switch in before if str(switch).removeprefix(_OFF) not in named), *more]


def _revealed(document: Document, original: Path) -> dict[str, Any]:
    """Return the document's data with the secrets that the saved recipe leaves out."""
    hidden = list(_hidden(document.data))
    if not hidden:
        return document.data
    data, known = copy.deepcopy(document.data), _original(original)
    missing = [key for key in hidden if not _fill(data, key, known)]
    if missing:
        raise RecipeError([_problem(document, key, original) for key in missing])
    return data


def _hidden(value: Any, key: Key = ()) -> Iterator[Key]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if isinstance(item, str) and REDACTED in item:
            yield (*key, name)
        else:
            yield from _hidden(item, (*key, name))


def _original(path: Path) -> dict[str, Any]:
    try:
        return recipes.read(path).data
    except RecipeError:  # moved, or edited since: what it may hold is asked for
        return {}


def _fill(data: dict[str, Any], key: Key, known: Mapping[str, Any]) -> bool:
    present, value = lookup(known, key)
    if not present or (isinstance(value, str) and REDACTED in value):
        return False
    _, holder = lookup(data, key[:-1])
    holder[key[-1]] = value
    return True


def _problem(document: Document, key: Key, original: Path) -> Problem:
    what = f"{dotted(key)}: it is a secret, which the run's recipe leaves out"
    return document.locate(key).problem(what, f"give it again, with -o {dotted(key)}=… or in {original}")
