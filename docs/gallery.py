"""The gallery of plugins: what trainrun and its own distributions bring, from what they declare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import tomli

from trainrun.plugin.catalogue import Listed, catalogue
from trainrun.plugin.description import Description, ImplInfo, SpecInfo

HERE = Path(__file__).parent
COSTS = HERE / "costs.json"

INTRO = """\
All plugins of trainrun and of its own distributions. The tables show what the plugins declare. `trainrun plugins` lists
the plugins that you have installed, and `trainrun hooks train.toml` shows how they work together. *Cost* is the time of
the plugin's hooks on rank 0 per training step. Every run records it, and `tests/benchmarks/monitoring.py` measures the
numbers here. A plugin that runs only in the client, or only at the start and end of a run, costs nothing in a step.
Work that a plugin has PyTorch do is not included: the page of the plugin describes it.
"""

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]
Text = Callable[..., str]
Specs = Mapping[str, SpecInfo]


def ours(folder: Path) -> set[str]:
    """The names of the distributions below `folder`."""
    found = folder.glob("*/pyproject.toml")
    return {tomli.loads(path.read_text(encoding="utf-8"))["project"]["name"] for path in found}


def plugins() -> tuple[list[Listed], Specs]:
    """Those of trainrun and of its distributions, by distribution and name; and the hooks that there are."""
    found = catalogue()
    first_party = {"trainrun", *ours(HERE.parent / "plugins")}
    listed = [one for one in found.plugins if (one.instance.distribution or "trainrun") in first_party]
    if broken := [f"{one.instance.name}: {one.error}" for one in listed if one.error]:
        raise SystemExit("\n".join(["the gallery needs every plugin to work:", *broken]))
    return sorted(listed, key=lambda one: (one.instance.distribution or "trainrun", one.instance.name)), found.specs


def costs() -> Mapping[str, Any]:
    """Microseconds a step by plugin, and what was measured."""
    return json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.exists() else {"plugins": {}}  # type: ignore[no-any-return]


def page(table: Table, type_text: Text, default_text: Text) -> str:
    listed, specs = plugins()
    measured = costs()
    parts = ["# Gallery", "<!-- Made by docs/generate.py; change the plugins and run `make docs`. -->", INTRO.strip()]
    if about := measured.get("about"):
        parts += [f"Measured: {about}."]
    for distribution, members in groupby(listed, key=lambda one: one.instance.distribution or "trainrun"):
        group = list(members)
        parts += [f"## {distribution}", table(("plugin", "what it does"), [_row(one) for one in group])]
        for one in group:
            parts += section(one, specs, measured["plugins"].get(one.instance.name), (table, type_text, default_text))
    return "\n\n".join(part for part in parts if part) + "\n"


def section(one: Listed, specs: Specs, cost: float | None, tools: tuple[Table, Text, Text]) -> list[str]:
    """One plugin: its docstring, where and on which ranks it runs, its hooks and options."""
    table, type_text, default_text = tools
    described = one.description
    facts = [f"runs in: {', '.join(_loci(described, specs)) or 'nothing'}", f"on error: {described.on_error}"]
    if any(impl.mutates for impl in described.impls):
        facts += ["changes training or uses a collective"]
    if any(impl.background for impl in described.impls):
        facts += ["works in the background"]
    if _loci(described, specs) == ["client"]:
        cost = 0.0
    if cost is not None:
        facts += [f"cost: {_duration(cost)}"]
    schema = described.options_schema or {}
    rows = [_option(name, value, schema, (type_text, default_text)) for name, value in _properties(schema)]
    return [
        f"### {one.instance.name}",
        described.doc,
        " · ".join(facts),
        "Hooks: " + ", ".join(_hooks(described.impls, specs)) + "." if described.impls else "",
        table(("option", "type", "default", "meaning"), rows) if rows else "It has no options.",
    ]


def _duration(microseconds: float) -> str:
    if not microseconds:
        return "nothing in a step"
    return f"{microseconds / 1000:.2g} ms a step" if microseconds >= 1000 else f"{microseconds:.3g} µs a step"


def _row(one: Listed) -> tuple[str, str]:
    return f"[`{one.instance.name}`](#{one.instance.name})", one.description.summary


def _loci(described: Description, specs: Specs) -> list[str]:
    return sorted({specs[impl.hook].locus for impl in described.impls})


def _hooks(impls: Sequence[ImplInfo], specs: Specs) -> Iterator[str]:
    """Each hook with the ranks it runs on, where it runs on ranks."""
    for hook in dict.fromkeys(impl.hook for impl in impls):
        ranks = next((impl.ranks for impl in impls if impl.hook == hook), None) or specs[hook].ranks
        yield f"`{hook}`" + (f" ({ranks})" if ranks else "")


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(schema.get("properties", {}).items())


def _option(
    name: str, value: Mapping[str, Any], schema: Mapping[str, Any], tools: tuple[Text, Text]
) -> tuple[str, ...]:
    type_text, default_text = tools
    default = default_text(value, required=name in schema.get("required", []))
    text = " ".join(str(value.get("description", "")).split())
    return f"`{name}`", type_text(value, schema), default, text
