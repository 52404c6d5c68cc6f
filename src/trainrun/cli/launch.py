"""`trainrun launch`: train by a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trainrun import interrupts
from trainrun.cli import completing, options
from trainrun.cli.echo import answers_only, echo
from trainrun.errors import UsageError

if TYPE_CHECKING:
    from trainrun.launch.terminal import Echo
    from trainrun.rundir.records import Outcome

_TRACE = "launch-trace"


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
@click.option("--dry-run", is_flag=True, help="Print the plan of the run; start and create nothing.")
@click.option(
    "--trace",
    "traced",
    metavar="HOOK",
    multiple=True,
    shell_complete=completing.hooks,
    help="Write each call of HOOK in the first steps to the run's logs folder: order, argument types, time. "
    "May be repeated; `all` traces every hook.",
)
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
    dry_run: bool,
    traced: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    refresh: bool,
) -> None:
    """Train a model from RECIPE (default: train.toml) on this machine or on several.

    On several machines, run the same command on each, with its own --node-rank. --dry-run prints the workers, the run
    directory (without its random words), the environment, and which hooks run in which process.

    Ctrl-C stops after the current step, and a second Ctrl-C stops at once. Exit codes: 0 finished, or stopped by a
    vote or `trainrun stop`; 1 training failed; 2 recipe or command line is wrong; 4 something is missing on this
    machine, in a plugin or on another node; 75 stopped from outside or a node was lost, resume with `trainrun
    resume`; 93 no progress in three attempts: restarting will not help; 130 Ctrl-C; 143 SIGTERM, and the last step is
    not saved.
    """
    overrides = (*overrides, *([] if nodes is None else [f"launch.nodes={nodes}"]))
    overrides = (*overrides, *(_tracing(traced, recipe, overrides, plugins) if traced else ()))
    if dry_run:
        settings = {"base": base, "ranks": ranks, "refresh": refresh, "nodes": (node_rank, rdzv_endpoint)}
        _plan((recipe, overrides, plugins), settings, (allow_changes, trust_checkpoint), as_json=as_json)
        return
    from trainrun.launch.launch import launch  # noqa: PLC0415 - help should not pay for it

    outcome = launch(
        recipe,
        overrides,
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
    if traced:
        echo(f"trace: {Path(outcome.run) / 'logs'}/trace-*.txt", err=True)
    leave(outcome, as_json=as_json)


def _plan(
    what: tuple[str, tuple[str, ...], tuple[str, ...]],
    settings: Mapping[str, Any],
    allowed: tuple[bool, bool],
    *,
    as_json: bool,
) -> None:
    """Print what the launch would do. allowed: --allow-changes and --trust-checkpoint."""
    from trainrun.cli.dry_run import document, lines  # noqa: PLC0415 - help should not pay for it
    from trainrun.launch.dry_run import plan  # noqa: PLC0415
    from trainrun.launch.handle import GoingOn  # noqa: PLC0415

    planned = plan(*what, wish=GoingOn(allow_changes=allowed[0], trust=allowed[1]), **settings)
    echo(json.dumps(document(planned), indent=2) if as_json else "\n".join(lines(planned)))


def _tracing(hooks: Sequence[str], recipe: str, overrides: Sequence[str], plugins: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides that trace these hooks. Raises UsageError for one that does not exist."""
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415 - help should not pay for it
    from trainrun.recipe.suggest import did_you_mean  # noqa: PLC0415

    known = ["all", *resolve(recipe, overrides, plugins).specs]
    for hook in hooks:
        if hook not in known:
            raise UsageError(
                f"--trace: no hook is called {hook!r}; {did_you_mean(hook, known) or 'trainrun hooks lists them'}"
            )
    return f'plugins.{_TRACE}.use="trainrun.builtin.trace:Trace"', f"plugins.{_TRACE}.hooks={json.dumps(list(hooks))}"


def leave(outcome: Outcome, *, as_json: bool) -> NoReturn:
    """Show how the run ended, and exit with its exit code."""
    interrupts.ignore()  # another Ctrl-C of a burst must not cut the last lines off, nor change the exit code
    with suppress(BrokenPipeError):  # the exit code still has to show how it ended
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
