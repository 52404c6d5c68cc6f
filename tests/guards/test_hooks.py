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

# Hooks of parts that do not exist yet. A line leaves this table in the commit that fires its hook.
FIRED_BY_NOBODY_YET = {
    "on_submit_start": "scheduler backends",
    "on_submit_end": "scheduler backends",
    "sample_trials": "sweeps",
    "on_sweep_start": "sweeps",
    "on_sweep_end": "sweeps",
    "on_resume": "checkpoints",
    "on_checkpoint_start": "checkpoints",
    "on_checkpoint_saved": "checkpoints",
    "on_control": "live control",
}

CALLED_IN_LOADER_PROCESSES = {"collate"}  # where there is no run

WHEN = re.compile(
    r"\b(after|again|before|begins?|built|called|came|changed|comes|each|ended|ends|every|fires?|leaves|once|over|passed|raised|ready"
    r"|start(ed)?|taken|up|was|when|while)\b"
    r"|\b(about to|has answered|have agreed|is complete|is on the device)\b"
    r"|of one micro-batch|for training and evaluation|as `\w+` is",
    re.IGNORECASE,
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
    return text_of(root / "src", root / "plugins")


@pytest.fixture(scope="module")
def firing_source(root: Path) -> str:
    return text_of(*(root / "src" / "trainrun" / part for part in ("cli", "launch", "worker")))


@pytest.fixture(scope="module")
def test_source(root: Path) -> str:
    return text_of(*(folder for folder in (root / "tests").iterdir() if folder.is_dir() and folder.name != "guards"))


@each_hook
def test_docstring_says_when_it_fires(hook: Hook) -> None:
    assert WHEN.search(hook.__doc__ or ""), "the docstring does not say when the hook fires"


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


def test_every_hook_is_in_the_picture_of_a_run() -> None:
    picture = hookspecs.__doc__ or ""
    sweeps = {name for name, reason in FIRED_BY_NOBODY_YET.items() if reason == "sweeps"}
    backend = {"start_workers"}  # what on_attempt_start stands before
    assert [name for name in HOOKS if name not in picture and name not in sweeps | backend] == []


@each_hook
def test_it_is_fired_and_tested_and_used(hook: Hook, firing_source: str, test_source: str, own_source: str) -> None:
    name = hook.__name__
    if name in FIRED_BY_NOBODY_YET:
        return
    fired, tested = (re.search(rf"\b{name}\b", source) is not None for source in (firing_source, test_source))
    used = implements(name, own_source)
    assert fired, "nothing fires it"
    assert tested, "no test names it"
    assert used, "no plugin or task of ours implements it"


def test_table_of_exceptions_names_hooks() -> None:
    assert set(FIRED_BY_NOBODY_YET) <= set(HOOKS)


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
