"""Options and arguments that several commands share, and how a run is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from trainrun.cli import completing

if TYPE_CHECKING:
    from trainrun.launch.terminal import Echo

F = TypeVar("F", bound=Callable[..., Any])

Option = Callable[[F], F]

JSON_VERSION = 1
RECIPE = "train.toml"  # what `trainrun init` writes, and commands take if no recipe is given
TRACEBACK = "trainrun.traceback"  # in the context's meta: whether the command line asks for tracebacks


def _ranks(_: click.Context, __: click.Parameter, value: str) -> Echo:
    if value in {"zero", "all", "none"}:
        return cast("Echo", value)
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", value):
        raise click.BadParameter(f"expected zero, all, none or ranks such as 0,2, got {value!r}")
    return tuple(map(int, value.split(",")))


def _default_recipe(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Return what was given, or the recipe that `trainrun init` writes.

    The latter counts only if it is in this folder.
    """
    if value:
        return value
    if not Path(RECIPE).is_file():
        what = f"no recipe is given, and there is no {RECIPE} in this folder"
        raise click.UsageError(f"{what}; give its path, or write one with `trainrun init`", context)
    return (RECIPE,) if parameter.nargs == -1 else RECIPE


recipe = click.argument(
    "recipe", metavar="[RECIPE]", required=False, callback=_default_recipe, shell_complete=completing.files
)
recipes = click.argument(
    "recipes", metavar="[RECIPE]...", nargs=-1, callback=_default_recipe, shell_complete=completing.files
)
override = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE|~KEY",
    shell_complete=completing.keys,
    help="Set a key of the recipe, such as -o optimizer.lr=1e-3, or remove one, such as -o ~train.steps.",
)
plugin = click.option(
    "-p",
    "--plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    shell_complete=completing.plugins,
    help="Enable a plugin; no:NAME disables it.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
refresh = click.option("--refresh", is_flag=True, help="Import plugins and task again instead of using the cache.")
traceback = click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    callback=lambda context, _, value: context.meta.update({TRACEBACK: value}),
    help="Show full tracebacks of failed imports of plugins and task.",
)
base = click.option(
    "--dir",
    "base",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder that holds the runs.",
)
allow_changes = click.option(
    "--allow-changes", is_flag=True, help="Resume even if changes to recipe or plugins affect training."
)
trust_checkpoint = click.option(
    "--trust-checkpoint",
    is_flag=True,
    help="Resume from a checkpoint that another user could have modified. This is logged.",
)
ranks = click.option(
    "--ranks",
    metavar="zero|all|none|N,N…",
    callback=_ranks,
    default="zero",
    show_default=True,
    help="Show the output of rank 0, of all ranks, of none, or of these. The run's logs folder has all of it.",
)
nodes = click.option("--nodes", type=click.IntRange(1), help="Number of machines (overrides launch.nodes).")
node_rank = click.option("--node-rank", type=click.IntRange(0), help="Rank of this machine, counted from 0.")
rdzv_endpoint = click.option(
    "--rdzv-endpoint",
    metavar="HOST:PORT",
    help="Address of node 0, reachable from all nodes, and a free port on it.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Print only the final summary.")
run = click.argument("run", metavar="[RUN]", default="latest", shell_complete=completing.runs)
