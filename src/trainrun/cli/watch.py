"""`trainrun watch`: a run as it goes, on one screen."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from trainrun.cli import options
from trainrun.cli.echo import echo
from trainrun.cli.status import lines
from trainrun.launch import closing
from trainrun.rundir.create import find
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import is_over, read_outcome
from trainrun.rundir.view import Viewer

_PACE = 0.3  # seconds between two looks


@click.command("watch")
@options.run
@options.base
@options.as_json
def command(*, run: str, base: Path, as_json: bool) -> None:
    """Watch RUN until it ends: progress, ranks, last events, and what plugins cost.

    If the run has ended, or there is no terminal, everything is printed once. Ctrl-C exits with code 130 and does not
    affect the run.

    RUN is an id, a part of one, a path, or `latest`.
    """
    paths = find(run, base)
    viewer = Viewer(paths)
    if as_json:
        view = viewer.look()
        answer = {**view.to_json(), "events": view.events}
        echo(json.dumps({"version": options.JSON_VERSION, **answer}, indent=2))
        return
    live = sys.stdout.isatty() and not is_over(paths)
    if live:
        _live(paths, viewer)
    echo("\n".join(_last(paths, viewer, brief=live)))


def _last(paths: RunPaths, viewer: Viewer, *, brief: bool) -> list[str]:
    """Return what stays on the terminal: how the run ended.

    Unless it was seen live, the state of everything at that time is included.
    """
    outcome = read_outcome(paths)
    if outcome is None:
        return list(lines(viewer.look()))
    verdict, *rest = closing.lines(outcome)
    return [verdict, *rest] if brief else [*lines(viewer.look()), "", *rest]


def _live(paths: RunPaths, viewer: Viewer) -> None:
    from trainrun.cli.screen import Screen  # noqa: PLC0415 - rich is imported only on a terminal

    signal.signal(signal.SIGTERM, _leave)  # the user who ends the watching gets the terminal back as it was
    with Screen() as screen:
        while not is_over(paths):
            screen.show(viewer.look())
            time.sleep(_PACE)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
