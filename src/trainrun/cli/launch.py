"""`trainrun launch`: train by a recipe."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from trainrun import interrupts
from trainrun.cli import options
from trainrun.cli.echo import answers_only, echo

if TYPE_CHECKING:
    from trainrun.launch.terminal import Echo
    from trainrun.rundir.records import Outcome


@click.command("launch")
@options.recipe
@options.override
@options.plugin
@click.option(
    "--dir",
    "base",
    type=click.Path(path_type=Path, file_okay=False),
    help="Parent directory of the run (overrides run.dir).",
)
@options.allow_changes
@options.trust_checkpoint
@options.ranks
@options.nodes
@options.node_rank
@options.rdzv_endpoint
@options.quiet
@options.as_json
@options.refresh
@options.traceback
@answers_only
def command(  # noqa: PLR0913 - one for each option
    *,
    recipe: str,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    base: Path | None,
    allow_changes: bool,
    trust_checkpoint: bool,
    ranks: Echo,
    nodes: int | None,
    node_rank: int | None,
    rdzv_endpoint: str | None,
    quiet: bool,
    as_json: bool,
    refresh: bool,
) -> None:
    """Train by RECIPE (train.toml if none is given) on this machine, or together with others.

    For several machines run the same command on each, with a --node-rank of its own.

    Ctrl-C once finishes the step and ends in good order, twice ends at once. The exit code says how it
    ended: 0 finished, or stopped by a vote or `trainrun stop`; 1 training failed; 2 recipe or command line is wrong;
    4 something is missing, here, in a plugin, or another node; 75 stopped from outside or a node was lost, resume
    with `trainrun resume`; 93 no progress in three attempts: restarting will not help; 130 Ctrl-C; 143 SIGTERM, and
    the last step is not saved.
    """
    from trainrun.launch.launch import launch  # noqa: PLC0415 - help should not pay for it

    outcome = launch(
        recipe,
        (*overrides, *([] if nodes is None else [f"launch.nodes={nodes}"])),
        plugins,
        dir=base,
        allow_changes=allow_changes,
        trust_checkpoint=trust_checkpoint,
        ranks=ranks,
        quiet=quiet,
        refresh=refresh,
        node_rank=node_rank,
        rdzv_endpoint=rdzv_endpoint,
    )
    leave(outcome, as_json=as_json)


def leave(outcome: Outcome, *, as_json: bool) -> NoReturn:
    """Show how the run ended, and end the command with its exit code."""
    interrupts.ignore()  # another Ctrl-C of a burst must not cut the last lines off, nor change the exit code
    with suppress(BrokenPipeError):  # the exit code still has to tell how it ended
        _answer(outcome, as_json=as_json)
    raise click.exceptions.Exit(outcome.exit_code)


def _answer(outcome: Outcome, *, as_json: bool) -> None:
    from trainrun.launch import closing  # noqa: PLC0415

    if as_json:
        echo(json.dumps({"version": options.JSON_VERSION, **outcome.to_json()}, indent=2))
        return
    trace = closing.trace(outcome)
    if trace:
        echo(trace, err=True)
    echo("\n".join(closing.lines(outcome)))
