"""Write the pages that are made from the code: `make docs`. A guard test compares them with the code.

docs/hooks.md comes from the hookspecs, docs/recipe.md from the recipe's JSON Schema, docs/commands.md from
the click commands, docs/gallery.md from what trainrun's own plugins declare.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import gallery

from trainrun import hookspecs
from trainrun.cli.main import cli
from trainrun.marker import SpecOptions, spec_options
from trainrun.recipe.schema import base_schema

HERE = Path(__file__).parent
NOTICE = "<!-- Made by docs/generate.py; change {source} and run `make docs`. -->"

Schema = Mapping[str, Any]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- hooks ---------------------------------------------------------------------------------------


def phases() -> Iterator[tuple[str, list[Callable[..., Any]]]]:
    """The hookspecs in the order of the file, under the headings that its comments give them."""
    parts = re.split(r"^# --- (.+?) -+$", inspect.getsource(hookspecs), flags=re.MULTILINE)
    for title, source in zip(parts[1::2], parts[2::2], strict=True):
        names = re.findall(r"^def (\w+)\(", source, flags=re.MULTILINE)
        yield title, [getattr(hookspecs, name) for name in names]


def options_of(hook: Callable[..., Any]) -> SpecOptions:
    options = spec_options(hook)
    assert options is not None, f"{hook.__name__} is no hookspec"
    return options


def hook_row(hook: Callable[..., Any]) -> tuple[str, ...]:
    options = options_of(hook)
    arguments = ", ".join(f"`{name}`" for name in inspect.signature(hook).parameters)
    return f"[`{hook.__name__}`](#{hook.__name__})", options.locus, options.kind, options.ranks or "", arguments


def hook_section(hook: Callable[..., Any]) -> str:
    options = options_of(hook)
    signature = inspect.signature(hook)
    facts = [f"**{options.kind}**", f"runs in: {options.locus}"]
    facts += [f"ranks: {options.ranks}"] if options.ranks else []
    facts += ["host values: " + ", ".join(f"`{name}`" for name in options.host)] if options.host else []
    shown = ", ".join(str(parameter) for parameter in signature.parameters.values()).replace("'", "")
    returned = str(signature.return_annotation)
    call = f"`{hook.__name__}({shown}) -> {returned}`"
    return f"### {hook.__name__}\n\n{call}\n\n{' · '.join(facts)}\n\n{inspect.getdoc(hook)}"


HOOKS_INTRO = """\
Kinds: all hookimpls of an *event* are called; of a *provider*, the first value that is not None is used; all reasons
of a *vote* are collected, and any of them counts. A hookimpl takes any subset of the arguments, by name. *Host values*
are the arguments that a `background=True` hookimpl may take. [Plugins](plugins.md) explains how to write one.
"""

# What means the same in every hook that has it; a docstring says more only where there is more to say.
ARGUMENTS = {
    "run": "the worker's handle, bound to the plugin instance that receives it",
    "launch": "the run as the client sees it: recipe, paths, run id and attempt",
    "recipe": "the resolved recipe; it never changes",
    "model": "the model as `parallelize_model` left it",
    "batch": "what the loader yielded, after `move_batch` unless the hook says otherwise",
    "step": "the update being made, counted from 1",
    "epoch": "the pass over the training data, counted from 1",
    "split": "`train`, or one of the recipe's `evaluate.splits`",
    "optimizer": "the optimizer that `build_optimizer` returned",
    "reason": "text for people that says why",
    "outcome": "how it ended: state, exit code, reason, step",
}


def hooks_page() -> str:
    manual = inspect.getdoc(hookspecs) or ""
    picture = re.search(r"\n\n(\S[^:]*(?::[^:]+)*)::\n\n(.*?)\n\n(\S.*?)\n\n", manual, flags=re.DOTALL)
    assert picture is not None, "the docstring of hookspecs.py has no picture of the order of hooks"
    parts = ["# Hooks", NOTICE.format(source="src/trainrun/hookspecs.py"), HOOKS_INTRO.strip()]
    parts += ["## In the order of a run", picture[1] + ":", f"```text\n{inspect.cleandoc(picture[2])}\n```", picture[3]]
    parts += ["## Arguments that mean the same everywhere"]
    parts += ["\n".join(f"* `{name}`: {text}" for name, text in ARGUMENTS.items())]
    for title, hooks in phases():
        parts += [f"## {title[0].upper()}{title[1:]}"]
        parts += [table(("hook", "process", "kind", "ranks", "arguments"), [hook_row(hook) for hook in hooks])]
        parts += [hook_section(hook) for hook in hooks]
    return "\n\n".join(parts) + "\n"


# --- the recipe ----------------------------------------------------------------------------------


def resolve(schema: Schema, root: Schema) -> Schema:
    """Follow a `$ref` into `$defs`; keys beside the reference win."""
    if "$ref" not in schema:
        return schema
    target = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return {**resolve(target, root), **{key: value for key, value in schema.items() if key != "$ref"}}


RANGES = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
LARGE = 2**31  # bounds beyond this only keep out what no machine can count


def type_text(schema: Schema, root: Schema) -> str:
    """What a value may be, in words."""
    schema = resolve(schema, root)
    if schema.get("x-type"):
        return str(schema["x-type"])
    if "anyOf" in schema:
        kinds = [type_text(kind, root) for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {plural(type_text(schema.get('items', {}), root))}"
    ranges = [text.format(schema[key]) for key, text in RANGES.items() if key in schema and abs(schema[key]) < LARGE]
    kind = str(schema.get("type", "object")).replace("object", "table")
    return " ".join([kind, ", ".join(ranges)]).strip()


def plural(kind: str) -> str:
    return f"{kind}s" if kind.isalpha() else kind


def default_text(schema: Schema, *, required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    return "" if default is None or default in ({}, []) else f"`{json.dumps(default)}`"


def meaning(schema: Schema) -> str:
    """The description, and what this version does not do with the key yet."""
    text = " ".join(str(schema.get("description", "")).split())
    planned, unavailable = schema.get("x-planned"), schema.get("x-unavailable")
    if planned:
        text += f" *Accepted, not acted on yet: {planned}.*"
    if unavailable:
        values = (
            ", ".join(f"`{json.dumps(value)}`" for value in unavailable.get("values", [])) or "anything but the default"
        )
        text += f" *An error for now: {values}, because {unavailable['why']}.*"
    return text


def recipe_section(name: str, schema: Schema, root: Schema) -> list[str]:
    """A table of the recipe; below it, the tables that it holds."""
    inner = resolve(schema.get("additionalProperties") or {}, root) if "properties" not in schema else {}
    heading = f"[{name}.NAME]" if inner.get("properties") else f"[{name}]"
    parts = [
        f"## {heading}",
        meaning(inner if inner.get("properties") else schema),
        *recipe_rows(inner or schema, root),
    ]
    for key, raw in schema.get("properties", {}).items():
        items = resolve(resolve(raw, root).get("items", {}), root)
        if items.get("properties"):
            parts += [f"### [[{name}.{key}]]", meaning(items), *recipe_rows(items, root)]
    return [part for part in parts if part]


def recipe_rows(schema: Schema, root: Schema) -> list[str]:
    required = schema.get("required", [])
    rows = []
    for key, raw in schema.get("properties", {}).items():
        value = resolve(raw, root)
        rows.append((f"`{key}`", type_text(raw, root), default_text(value, required=key in required), meaning(value)))
    return [table(("key", "type", "default", "meaning"), rows)] if rows else []


RECIPE_INTRO = """\
Every table and key of a recipe, with its default. Keys that are not listed are errors, except in `[task]`,
`[optimizer]` and `[plugins.NAME]`, whose further keys belong to the task, to the optimizer's class and to the plugin.
A duration is a number of seconds or a string such as `"30s"`, `"10m"` or `"1h30m"`.
"""


def recipe_page() -> str:
    root = base_schema()
    parts = ["# Recipe", NOTICE.format(source="src/trainrun/recipe/model.py"), RECIPE_INTRO.strip()]
    for name, schema in root["properties"].items():
        table_schema = resolve({"$ref": schema["$ref"]}, root) if "$ref" in schema else schema
        parts += recipe_section(name, table_schema, root)
    return "\n\n".join(parts) + "\n"


# --- commands ------------------------------------------------------------------------------------


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command under `group`, with the words that call it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if command.hidden or not is_own(command):
            continue
        inner = click.Context(command, info_name=name, parent=context)
        yield inner.command_path, command, inner
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def is_own(command: click.Command) -> bool:
    """Not one that an installed plugin brings."""
    return (command.callback or is_own).__module__.startswith("trainrun.")


def option_rows(command: click.Command, context: click.Context) -> list[tuple[str, ...]]:
    """Arguments are left out, for the help text speaks of them, and so is `--help`, which every command has."""
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            rows.append((f"`{record[0]}`", record[1]))
    return rows


def command_section(path: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"## {path}", f"`{usage}`", inspect.cleandoc(command.help or "").replace("\b\n", "")]
    rows = option_rows(command, context)
    parts += [table(("option", "meaning"), rows)] if rows else []
    return "\n\n".join(part for part in parts if part)


COMMANDS_INTRO = """\
Commands print their results to stdout, and all other messages to stderr. `--help` explains each command. For exit
codes, see [outcomes.md](outcomes.md).
"""


def commands_page() -> str:
    context = click.Context(cli, info_name="trainrun")
    parts = ["# Commands", NOTICE.format(source="src/trainrun/cli/"), COMMANDS_INTRO.strip()]
    parts += [command_section("trainrun", cli, context)]
    parts += [command_section(*found) for found in commands(cli, context)]
    return "\n\n".join(parts) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "hooks.md": hooks_page,
    "recipe.md": recipe_page,
    "commands.md": commands_page,
    "gallery.md": lambda: gallery.page(table, type_text, default_text),
}


def main() -> None:
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
