"""`trainrun resume`: resume a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainrun.cli import completing, options
from trainrun.cli.echo import answers_only
from trainrun.cli.launch import leave

if TYPE_CHECKING:
    from trainrun.launch.terminal import Echo


@click.command("resume")
@options.run
@options.base
@options.override
@options.plugin
@click.option(
    "--from",
    "start",
    metavar="STEP|CHECKPOINT",
    shell_complete=completing.steps,
    help="Resume from this checkpoint: a step of the run, or a path. Newer ones are moved aside, not removed.",
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
    run: str,
    base: Path,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    start: str | None,
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
    """Resume RUN from its newest good checkpoint, in the same directory.

    RUN is an id, a part of one, a path, or `latest`. It resumes with its own recipe plus overrides. Secrets are read
    from the recipe file that it was launched from, or given again with -o. Changes that affect training are refused
    without --allow-changes. A run that has completed all its steps is left unchanged. The exit codes are those of
    `trainrun launch`; 4 also means that no checkpoint is good.
    """
    from trainrun.launch.resume import resume  # noqa: PLC0415 - help should not pay for it

    outcome = resume(
        run,
        (*overrides, *([] if nodes is None else [f"launch.nodes={nodes}"])),
        plugins,
        dir=base,
        start=start,
        allow_changes=allow_changes,
        trust_checkpoint=trust_checkpoint,
        ranks=ranks,
        quiet=quiet,
        refresh=refresh,
        node_rank=node_rank,
        rdzv_endpoint=rdzv_endpoint,
    )
    leave(outcome, as_json=as_json)
