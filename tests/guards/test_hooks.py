"""No hook without a manual, a page, something that fires it, a test, and a plugin or task of ours that uses it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainrun import hookspecs
from trainrun.marker import spec_options

HOOKS = {name: function for name, function in vars(hookspecs).items() if spec_options(function) is not None}

# Hooks of parts that do not exist yet. A line leaves this table in the commit that calls its hook.
NOT_CALLED_YET = {
    "on_submit_start": "scheduler backends",
    "on_submit_end": "scheduler backends",
    "sample_trials": "sweeps",
    "on_sweep_start": "sweeps",
    "on_sweep_end": "sweeps",
    "on_control": "live control",
}

CALLED_IN_LOADER_PROCESSES = {"collate"}  # where there is no run

# "Called before the workers of an attempt are started.", or "Called once."
CALLED = re.compile(
    r"(?:^|(?<=[.\n] ))Called (?:after|and|at|before|for|if|in|instead of|last|once|when)\b", re.MULTILINE
)

Hook = Callable[..., Any]
each_hook = pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)


def arguments(hook: Hook) -> list[str]:
    return [name for name in inspect.signature(hook).parameters if name != "run"]


def text_of(*folders: Path) -> str:
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def implements(hook: str, source: str) -> bool:
    return re.search(rf"@hookimpl(\([^@]*?\))?\s+def {hook}\(", source) is not None


@pytest.fixture(scope="module")
def own_source(root: Path) -> str:
    """Built-in plugins, examples, plugins of ours and the examples of the pages, which are run by tests too.

    Without the testing kit, whose recorder implements every hook and uses none.
    """
    parts = [path for path in (root / "src" / "trainrun").iterdir() if path.is_dir() and path.name != "testing"]
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted((root / "docs").rglob("*.md")))
    blocks = re.findall(r"^```python[^\n]*\n(.*?)^```", pages, re.MULTILINE | re.DOTALL)
    return "\n".join([text_of(*parts, *(root / "plugins").glob("*/src")), *blocks])


@pytest.fixture(scope="module")
def calling_source(root: Path) -> str:
    return text_of(*(root / "src" / "trainrun" / part for part in ("cli", "launch", "worker")))


@pytest.fixture(scope="module")
def source_of_tests(root: Path) -> str:
    return text_of(*(folder for folder in (root / "tests").iterdir() if folder.is_dir() and folder.name != "guards"))


@each_hook
def test_docstring_says_when_it_is_called(hook: Hook) -> None:
    assert CALLED.search(inspect.getdoc(hook) or ""), "no sentence begins with 'Called when', 'Called before' and so on"


@each_hook
def test_docstring_mentions_every_argument(hook: Hook, generate: ModuleType) -> None:
    """Or the page's list of arguments that mean the same in every hook does, or the twin that the docstring names."""
    manual = hook.__doc__ or ""
    for twin in re.findall(r"arguments are those of `(\w+)`", manual):
        manual += HOOKS[twin].__doc__ or ""
    if "as at its start" in manual:
        manual += HOOKS[hook.__name__.replace("_end", "_start")].__doc__ or ""
    missing = [name for name in arguments(hook) if f"`{name}`" not in manual and name not in generate.ARGUMENTS]
    assert not missing, f"not in the docstring: {missing}"


def test_shared_arguments_exist(generate: ModuleType) -> None:
    taken = {name for hook in HOOKS.values() for name in inspect.signature(hook).parameters}
    assert set(generate.ARGUMENTS) <= taken


@each_hook
def test_page_has_a_section(hook: Hook, root: Path) -> None:
    page = (root / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert f"\n### {hook.__name__}\n" in page
    assert f"| [`{hook.__name__}`](#{hook.__name__}) |" in page


@each_hook
def test_it_is_called_and_tested_and_used(
    hook: Hook, calling_source: str, source_of_tests: str, own_source: str
) -> None:
    name = hook.__name__
    by_name = rf'(?:detached|provider|_required|_module)\((?:hooks, )?"{name}"'
    called = re.search(rf"hooks\.{name}\b|{by_name}", calling_source)
    if name in NOT_CALLED_YET:
        assert called is None, "it is called: take it out of NOT_CALLED_YET"
        return
    assert called, "nothing calls it"
    assert re.search(rf"\b{name}\b", source_of_tests), "no test names it"
    assert implements(name, own_source), "no plugin or task of ours implements it"


def test_table_of_exceptions_names_hooks() -> None:
    assert set(NOT_CALLED_YET) <= set(HOOKS)


@each_hook
def test_host_arguments_are_arguments(hook: Hook) -> None:
    options = spec_options(hook)
    assert options is not None
    assert set(options.host) <= set(inspect.signature(hook).parameters)


@each_hook
def test_worker_hooks_offer_run(hook: Hook) -> None:
    options = spec_options(hook)
    assert options is not None
    expected = options.locus in {"worker", "both"} and hook.__name__ not in CALLED_IN_LOADER_PROCESSES
    assert ("run" in inspect.signature(hook).parameters) == expected
    assert (options.ranks is not None) == (options.locus in {"worker", "both"})


def test_pages_are_made_from_the_hooks(generate: ModuleType) -> None:
    shown = [hook.__name__ for _, hooks in generate.phases() for hook in hooks]
    assert shown == list(HOOKS)
