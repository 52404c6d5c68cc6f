"""Every block of code in README and docs is executed or checked.

TOML goes through the pipeline of `trainrun check`, Python is run and its plugins are inspected, and the commands of
console blocks are parsed by the command line's own parser.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from trainrun import PluginOptions
from trainrun.cli.main import cli
from trainrun.plugin.hookcheck import check_hooks
from trainrun.plugin.inspecting import describe_object
from trainrun.plugin.instance import Instance
from trainrun.plugin.resolve import resolve
from trainrun.plugin.specs import by_name, own_specs
from trainrun.testing import DistributionInstaller

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BASE = '[task]\nuse = "digits"\n[train]\nsteps = 10\n'

STAND_IN = """
from trainrun import Field, PluginOptions

class StandIn:
    class Options(PluginOptions):
        every: int = Field(10, ge=1)

    def __init__(self, options):
        pass
"""


@dataclass(frozen=True)
class Block:
    """A fenced block. ```` ```toml title="a.toml" needs="x" ```` names its file, and a plugin to take for installed."""

    page: str
    line: int
    language: str
    title: str | None
    needs: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            info = dict(re.findall(r'(\w+)="([^"]+)"', match[2]))
            found.append(
                Block(str(page.relative_to(ROOT)), line, match[1], info.get("title"), info.get("needs"), match[3])
            )
    return found


BLOCKS = blocks()


def of(*languages: str) -> Any:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=str)


def test_every_block_says_what_it_is() -> None:
    known = {"console", "json", "python", "sh", "text", "toml"}
    assert [str(block) for block in BLOCKS if block.language not in known] == []


def files_of(page: str, folder: Path) -> None:
    """Write what the page's blocks say is in files, as a reader would have by the end of it."""
    for block in BLOCKS:
        if block.page == page and block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


@of("toml")
def test_toml(block: Block, tmp_path: Path, install_distribution: DistributionInstaller) -> None:
    document = tomllib.loads(block.text)
    if block.needs:
        install_distribution(block.needs, {"stand_in.py": STAND_IN}, {block.needs: "stand_in:StandIn"})
    if "project" in document or "build-system" in document:
        return
    files_of(block.page, tmp_path)
    (tmp_path / "base.toml").write_text(BASE, encoding="utf-8")
    head = "" if "extends" in document or {"task", "train"} <= set(document) else 'extends = "base.toml"\n'
    recipe = tmp_path / "block.toml"
    recipe.write_text(head + block.text, encoding="utf-8")
    assert [str(problem) for problem in resolve(recipe).problems] == []


@of("python")
def test_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text(BASE, encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "block"}
    for earlier in BLOCKS[: BLOCKS.index(block)]:
        if earlier.page == block.page and earlier.language == "python":
            exec(compile(earlier.text, str(earlier), "exec"), namespace)
    before = set(namespace)
    exec(compile(block.text, str(block), "exec"), namespace)
    for name in set(namespace) - before:
        if is_plugin(namespace[name]):
            described = describe_object(f"block:{name}", namespace[name])
            assert described.ok, described.error
            instance = Instance(name, "plugin", described.target)
            specs = by_name(own_specs(), described.specs)
            assert [str(problem) for problem in check_hooks(instance, described, specs)] == []


def is_plugin(found: object) -> bool:
    """A class that the block itself defines, and not only the options of a module."""
    return isinstance(found, type) and found.__module__ == "block" and not issubclass(found, PluginOptions)


@of("console", "sh")
def test_commands(block: Block) -> None:
    lines = [line.removeprefix("$ ") for line in block.text.splitlines()]
    called = [line for line, raw in zip(lines, block.text.splitlines(), strict=True) if is_command(block, raw)]
    assert called, "no command in the block"
    for line in called:
        words = shlex.split(line, comments=True)
        if words and words[0] == "trainrun":
            parse(words[1:])


def is_command(block: Block, line: str) -> bool:
    return line.startswith("$ ") if block.language == "console" else bool(line.strip())


def parse(words: list[str]) -> None:
    """Raises where command or options do not exist."""
    context = cli.make_context("trainrun", list(words), resilient_parsing=True)
    command: click.Command | None = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name!r}"
        context = click.Context(command, info_name=name, parent=context)
    if command is not None and not isinstance(command, click.Group) and "--help" not in words:
        parser = command.make_parser(context)
        parser.parse_args(args=list(words))


LINK = re.compile(r"\]\(([^)#\s]+)?(#[^)]+)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        if target.startswith("http"):
            continue
        other = (page.parent / target) if target else page
        assert other.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor[1:] in anchors(other.read_text(encoding="utf-8")), f"{target}{anchor}"


def anchors(text: str) -> set[str]:
    """The names that headings get on a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
