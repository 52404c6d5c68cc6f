"""`trainrun logs`: what a run has logged and printed, put in order."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import get_args

import click

from trainrun.cli import options
from trainrun.cli.echo import Styled, echo
from trainrun.cli.figures import number
from trainrun.cli.status import ended
from trainrun.printing import clean, inline
from trainrun.recipe import duration
from trainrun.rundir.create import find
from trainrun.rundir.logs import SERIOUS, Entry, Logs, Source, Wanted
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import is_over, read_outcome, summarize

_PACE = 0.2  # seconds between two looks at the files
_LINGER = 2.0  # seconds in which the last words of workers still come after their client was killed
_BATCH = 500  # lines that are written at once
_COLOURS = {"warning": "yellow", **dict.fromkeys(SERIOUS - {"warning"}, "red")}

Lines = list[str | Styled]
Show = Callable[[Iterable[Entry]], None]


def _ranks(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> frozenset[int] | None:
    if "all" in values:
        return None
    wrong = [value for value in values if not value.isdecimal()]
    if wrong:
        raise click.BadParameter(f"expected a rank or 'all', got {wrong[0]!r}")
    return frozenset(map(int, values))


def _since(_: click.Context, __: click.Parameter, value: str | None) -> float:
    """Return seconds since the epoch.

    value: a length of time before now, or a moment.
    """
    if value is None:
        return 0.0
    try:
        return time.time() - duration.seconds(value)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        raise click.BadParameter(f"expected 5m, 1h30m or 2026-11-21T18:30, got {value!r}") from None


@click.command("logs")
@options.run
@click.option("-f", "--follow", is_flag=True, help="Continue until the run ends.")
@click.option(
    "--rank",
    "ranks",
    multiple=True,
    metavar="N|all",
    callback=_ranks,
    help="Show everything of this rank. May be repeated.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Choice(get_args(Source)),
    help="Show only what workers print (output) or log (records), the metrics, the client's log, or what the agent "
    "prints. May be repeated.",
)
@click.option(
    "--since", callback=_since, metavar="TIME", help="Show only what came since: 5m, 1h30m, or 2026-11-21T18:30."
)
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Start with the last N lines.")
@options.base
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
def command(
    *,
    run: str,
    follow: bool,
    ranks: frozenset[int] | None,
    sources: tuple[Source, ...],
    since: float,
    tail: int | None,
    base: Path,
    as_json: bool,
) -> None:
    """Show the logs and output of all attempts of RUN, in order of time.

    Without --rank, show everything of rank 0 and of the client, the metrics, and the warnings and errors of all ranks.
    A bar marks what a worker prints; with `--source output --rank N` it is shown as it was printed.

    RUN is an id, a part of one, a path, or `latest`. Ctrl-C ends --follow, not the run.
    """
    paths = find(run, base)
    logs = Logs(paths, _wanted(ranks, sources, since))
    show = _printer(_as_json if as_json else _plain if _is_one_output(ranks, sources) else _line)
    entries = logs.read(last=not follow)
    show(entries if tail is None else deque(entries, tail))
    if follow:
        _follow(paths, logs, show)
        summary = summarize(paths)
        echo(ended(summary, paths.outcome), err=True)


def _wanted(ranks: frozenset[int] | None, sources: tuple[Source, ...], since: float) -> Wanted:
    if ranks is not None and not ranks:
        return Wanted(frozenset(sources or ("output", "records", "metrics", "client")), frozenset({0}), True, since)
    return Wanted(frozenset(sources or ("output", "records")), ranks, serious_of_all=False, since=since)


def _is_one_output(ranks: frozenset[int] | None, sources: tuple[Source, ...]) -> bool:
    return set(sources) == {"output"} and ranks is not None and len(ranks) <= 1


def _follow(paths: RunPaths, logs: Logs, show: Show) -> None:
    while not is_over(paths):
        show(logs.read(arrived=time.time()))
        time.sleep(_PACE)
    # The client of a run that died could not wait for what its workers printed last.
    linger = time.monotonic() + (0.0 if read_outcome(paths) else _LINGER)
    while time.monotonic() < linger:
        show(logs.read(arrived=time.time()))
        time.sleep(_PACE)
    show(logs.read(last=True, arrived=time.time()))


def _printer(form: Callable[[Entry], Lines]) -> Show:
    def show(entries: Iterable[Entry]) -> None:
        remaining = iter(entries)
        while batch := [line for entry in islice(remaining, _BATCH) for line in form(entry)]:
            echo(*[part for line in batch for part in (line, "\n")], nl=False)

    return show


def _as_json(entry: Entry) -> Lines:
    return [json.dumps({"version": options.JSON_VERSION, **entry.to_json()}, default=str)]


def _plain(entry: Entry) -> Lines:
    return [clean(entry.text)]


def _line(entry: Entry) -> Lines:
    node = f" {entry.fields['node']}" if entry.source == "agent" and entry.fields else ""
    who = f"{entry.source}{node}" if entry.rank is None else f"rank {entry.rank}"
    head = f"{_clock(entry.time)} {who}"
    if entry.source in {"output", "agent"}:
        return [f"{head} | {clean(entry.text)}"]
    if entry.source == "metrics":
        values = [f"{inline(name)} {inline(number(value))}" for name, value in entry.fields.items()]
        return ["  ".join([_clock(entry.time), clean(entry.text), *values])]
    short = [f"{name}={_value(value)}" for name, value in entry.fields.items() if not _is_long(value)]
    text = _SENTENCES.get(entry.text, entry.text) if entry.source == "client" else entry.text
    shown = "  ".join([f"{head} {inline(entry.level)}", clean(text), *map(inline, short)])
    long = [line for value in entry.fields.values() if _is_long(value) for line in str(value).rstrip().splitlines()]
    colour = _COLOURS.get(entry.level)
    first = Styled(shown, colour) if colour else shown
    return [first, *(f"    {clean(line)}".rstrip() for line in long)]


_SENTENCES = {
    "launch_start": "the launch begins",
    "package_start": "copying the code into the run directory",
    "package_end": "the code is copied",
    "attempt_start": "an attempt begins",
    "attempt_end": "an attempt has ended",
    "completed": "the run is complete",
    "launch_end": "the launch has ended",
}


def _is_long(value: object) -> bool:
    return isinstance(value, str) and "\n" in value


def _value(value: object) -> str:
    plain = isinstance(value, str) and value and not set(value) & set(' "=')
    return clean(str(value) if plain else json.dumps(value, default=str))


def _clock(moment: float) -> str:
    """Return the time of day, with the day unless that is today."""
    at, today = time.localtime(moment), time.localtime()
    return time.strftime("%H:%M:%S" if at[:3] == today[:3] else "%Y-%m-%d %H:%M:%S", at)
