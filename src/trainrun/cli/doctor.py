"""`trainrun doctor`: will runs work on this machine, and what to do if not."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from trainrun.cli import completing, options
from trainrun.cli.echo import Styled, echo
from trainrun.errors import ExitCode

if TYPE_CHECKING:
    from trainrun.doctor.finding import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command("doctor")
@click.argument("recipe", metavar="[RECIPE]", required=False, shell_complete=completing.files)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Number of workers for the all-reduce check.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Time limit in seconds per check.",
)
@options.as_json
def command(*, recipe: str | None, workers: int, timeout: float, as_json: bool) -> None:
    """Check this machine: Python, torch, devices, workers, folders, network, limits, plugins.

    With RECIPE, also check the recipe, its folder and the modules it preloads. Each check runs in its own process and
    is killed if it hangs. Exit code 0 means that no check failed, 4 that one did; warnings do not count. The end of
    the output is for bug reports: it omits secrets, home directories, and names of users and machines.
    """
    from trainrun.doctor import report  # noqa: PLC0415 - help should not pay for it
    from trainrun.doctor.examine import examine  # noqa: PLC0415
    from trainrun.doctor.finding import Settings  # noqa: PLC0415

    begun = time.monotonic()
    findings: list[Finding] = []
    for finding in examine(Settings(recipe=recipe, workers=workers, timeout=timeout)):
        findings.append(finding)
        if not as_json:
            _show(finding)
    seconds = time.monotonic() - begun
    if as_json:
        echo(json.dumps({"version": options.JSON_VERSION, **report.document(findings, seconds)}, indent=2))
    else:
        pasted = "\n".join(report.bug_report(findings, seconds, _width()))
        echo(f"\n{report.summary(findings, seconds)}\n\nTo report a bug, paste this:\n\n{pasted}")
    raise click.exceptions.Exit(ExitCode.ENVIRONMENT if report.failed(findings) else ExitCode.OK)


def _show(finding: Finding) -> None:
    from trainrun.doctor import report  # noqa: PLC0415

    for status, text in report.lines_of(finding, _width()):
        echo(Styled(f"{status:<8}", _COLOURS.get(status)), f" {text}")


def _width() -> int | None:
    """Return the column at which lines are folded: a terminal's last one.

    None for a text that a program reads: it is left in one line.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
