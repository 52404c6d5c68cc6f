"""`trainrun launch`: train by a recipe."""

from __future__ import annotations

import json
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from trainrun.cli import options

if TYPE_CHECKING:
    from trainrun.launch.terminal import Echo
    from trainrun.rundir.records import Outcome


def _ranks(_: click.Context, __: click.Parameter, value: str) -> Echo:
    if value in {"zero", "all", "none"}:
        return cast("Echo", value)
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", value):
        raise click.BadParameter(f"expected zero, all, none or ranks such as 0,2, got {value!r}")
    return tuple(map(int, value.split(",")))


@click.command("launch")
@click.argument("recipe", metavar="RECIPE")
@options.override
@options.plugin
@click.option(
    "--dir",
    "base",
    type=click.Path(path_type=Path, file_okay=False),
    help="Make the run's folder in this one, in place of the recipe's run.dir.",
)
@click.option(
    "--ranks",
    metavar="zero|all|none|N,N…",
    callback=_ranks,
    default="zero",
    show_default=True,
    help="Whose output to show: that of rank 0, of all, of none, or of these. All of it is in the run's logs folder.",
)
@click.option("--nodes", type=click.IntRange(1), help="Number of machines, in place of the recipe's launch.nodes.")
@click.option("--node-rank", type=click.IntRange(0), help="Which of the machines this is, from 0 on.")
@click.option(
    "--rdzv-endpoint",
    metavar="HOST:PORT",
    help="Where node 0 is: a name or address that all nodes know, and a port that is free on node 0.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but the last lines.")
@options.as_json
@options.refresh
def command(  # noqa: PLR0913 - one for each option
    *,
    recipe: str,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    base: Path | None,
    ranks: Echo,
    nodes: int | None,
    node_rank: int | None,
    rdzv_endpoint: str | None,
    quiet: bool,
    as_json: bool,
    refresh: bool,
) -> None:
    """Train by RECIPE on this machine, or together with others.

    For several machines run the same command on each, with a --node-rank of its own.

    Ctrl-C once finishes the step and ends in good order, twice ends at once. The exit code says how it
    ended: 0 finished, or stopped by a vote or `trainrun stop`; 1 training failed; 2 recipe or command line is wrong;
    4 something is missing, here, in a plugin, or another node; 75 a node was lost, start again; 93 no progress
    in three attempts, do not; 130 Ctrl-C; 143 SIGTERM.
    """
    from trainrun.launch.launch import launch  # noqa: PLC0415 - help should not pay for it

    outcome = launch(
        recipe,
        (*overrides, *([] if nodes is None else [f"launch.nodes={nodes}"])),
        plugins,
        dir=base,
        ranks=ranks,
        quiet=quiet,
        refresh=refresh,
        node_rank=node_rank,
        rdzv_endpoint=rdzv_endpoint,
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C of a burst must not cut the last lines off
    with suppress(BrokenPipeError):  # the exit code still has to tell how it ended
        _answer(outcome, as_json=as_json)
    raise click.exceptions.Exit(outcome.exit_code)


def _answer(outcome: Outcome, *, as_json: bool) -> None:
    from trainrun.launch import closing  # noqa: PLC0415

    if as_json:
        click.echo(json.dumps({"version": options.JSON_VERSION, **outcome.to_json()}, indent=2))
        return
    trace = closing.trace(outcome)
    if trace:
        click.echo(trace, err=True)
    click.echo("\n".join(closing.lines(outcome)))
