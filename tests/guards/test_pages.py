"""The pages that are made from the code are up to date, and hold every command, option and recipe key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from trainrun.cli.main import COMMANDS as OWN
from trainrun.cli.main import cli
from trainrun.recipe.schema import base_schema


@pytest.mark.parametrize("page", ["hooks.md", "recipe.md", "commands.md", "gallery.md"])
def test_page_is_what_the_generator_makes(page: str, root: Path, generate: ModuleType) -> None:
    written = (root / "docs" / page).read_text(encoding="utf-8")
    assert written == generate.PAGES[page](), f"docs/{page} is out of date: run `make docs`"


# Only our own: an installed plugin may bring more.
COMMANDS = {f"trainrun {name}": command for name in OWN if (command := cli.get_command(click.Context(cli), name))}


def section(page: str, heading: str) -> str:
    _, found, rest = page.partition(f"\n## {heading}\n")
    assert found, f"no section {heading!r}"
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("path", COMMANDS)
def test_command_and_its_options_are_documented(path: str, root: Path) -> None:
    command = COMMANDS[path]
    if command.hidden:
        return
    assert command.help, "the command has no help"
    text = section((root / "docs" / "commands.md").read_text(encoding="utf-8"), path)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{parameter.opts} has no help"
            assert all(name in text for name in parameter.opts)


def tables() -> Iterator[tuple[str, dict[str, Any]]]:
    """Heading and keys of every table of the recipe."""
    schema = base_schema()

    def target(value: dict[str, Any]) -> dict[str, Any]:
        return schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value

    for name, value in schema["properties"].items():
        rows = target(value).get("additionalProperties")
        if isinstance(rows, dict) and "$ref" in rows and "properties" not in target(value):
            yield f"[{name}.NAME]", target(rows)["properties"]
        else:
            yield f"[{name}]", target(value).get("properties", {})


def test_every_recipe_key_is_documented(root: Path) -> None:
    page = (root / "docs" / "recipe.md").read_text(encoding="utf-8")
    for heading, keys in tables():
        text = section(page, heading)
        assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_every_recipe_key_has_a_description() -> None:
    assert [
        f"{name} {key}" for name, keys in tables() for key, item in keys.items() if not item.get("description")
    ] == []


def test_every_option_of_our_plugins_has_a_description(generate: ModuleType) -> None:
    listed, _ = generate.gallery.plugins()
    assert [
        f"{one.instance.name} {name}"
        for one in listed
        for name, value in (one.description.options_schema or {}).get("properties", {}).items()
        if not value.get("description")
    ] == []


def test_every_plugin_has_a_page_of_its_own(root: Path, generate: ModuleType) -> None:
    """A section by its name in one of the pages on callbacks and trackers; those of trainrun itself are exempt."""
    pages = [*(root / "docs" / "callbacks").glob("*.md"), root / "docs" / "trackers.md"]
    written = "".join(page.read_text(encoding="utf-8") for page in pages if page.exists())
    listed, _ = generate.gallery.plugins()
    names = [one.instance.name for one in listed if (one.instance.distribution or "trainrun") != "trainrun"]
    assert [name for name in names if f"\n## {name}\n" not in written] == []
