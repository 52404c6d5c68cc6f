"""`trainrun checkpoints`: what a run has saved, whether it is good, and its weights for others."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trainrun.checkpoint import Found, Manifest, linked, named, problems, put_aside, scan, step_of
from trainrun.checkpoint.contents import tree
from trainrun.cli import completing, options
from trainrun.cli.columns import columns
from trainrun.cli.echo import echo
from trainrun.cli.figures import duration, number
from trainrun.doctor.filesystem import size
from trainrun.errors import EnvironmentProblem, ExitCode, UsageError
from trainrun.printing import clean
from trainrun.rundir.create import find
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.process import PYTHON

_HEADER = ("step", "size", "age", "state", "metrics")
_METRICS = 3


@click.command("checkpoints")
@options.run
@click.option("--verify", "full", is_flag=True, help="Read every file; exit with 1 if any checkpoint is bad.")
@click.option(
    "--export",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the model weights of one checkpoint to FILE, as safetensors.",
)
@click.option(
    "--step",
    type=click.IntRange(min=0),
    metavar="N",
    shell_complete=completing.steps,
    help="Export this step instead of the newest good one.",
)
@click.option("--force", is_flag=True, help="Let --export overwrite a file.")
@options.base
@options.as_json
def command(*, run: str, base: Path, as_json: bool, out: Path | None, **chosen: Any) -> None:
    """List the checkpoints of RUN, newest first: step, size, age, state and metrics.

    Names and sizes of files are checked; --verify also reads every byte, and checks that weights are finite if an older
    version saved them without that check. A bad checkpoint is never loaded: a run resumes from the newest good one.

    RUN is an id, a part of one, a path, or `latest`.
    """
    paths = find(run, base)
    if out is None:
        _refuse_without_export(chosen)
        _list(paths, full=chosen["full"], as_json=as_json)
    else:
        _export(paths, out, step=chosen["step"], force=chosen["force"], as_json=as_json)


@dataclass(frozen=True)
class Row:
    """A checkpoint as it is shown.

    `size` is in bytes, `saved` in seconds since the epoch. Without a problem it is good. `links` are the names of the
    symbolic links next to it that lead to it.
    """

    path: Path
    step: int
    size: int
    saved: float
    problem: str | None
    manifest: Manifest | None
    links: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values.

        Of the manifest, the recipe and the list of files are left out.
        """
        facts = self.manifest.to_json() if self.manifest else {}
        return {
            "path": str(self.path),
            "step": self.step,
            "links": list(self.links),
            "size": self.size,
            "saved": self.saved,
            "good": self.problem is None,
            "problem": self.problem,
            **{name: facts.get(name) for name in _FACTS},
        }


_FACTS = (
    "epoch",
    "samples_seen",
    "attempt",
    "world_size",
    "strategy",
    "reason",
    "seconds",
    "metrics",
    "missing",
    "finite",
)


def _list(paths: RunPaths, *, full: bool, as_json: bool) -> None:
    links = linked(paths.checkpoints)
    rows = [_row(found, links.get(found.path.resolve(), ()), full=full) for found in scan(paths.checkpoints)]
    aside = put_aside(paths.checkpoints)
    if as_json:
        echo(json.dumps(_answer(paths, rows, aside, full=full), indent=2))
    elif rows:
        echo("\n".join(columns([_HEADER, *map(_cells, rows)])))
    else:
        echo(f"no checkpoints in {paths.root}", err=True)
    if aside and not as_json:
        echo(f"moved aside, not used: {', '.join(path.name for path in aside)}", err=True)
    if full and any(row.problem for row in rows):
        raise click.exceptions.Exit(1)


def _row(found: Found, links: Sequence[str], *, full: bool) -> Row:
    problem = found.problem
    if full and problem is None:
        problem = "; ".join(problems(found.path)) or None
    total, changed = _measure(found.path)
    saved = found.manifest.created if found.manifest else changed
    return Row(found.path, found.step, total, saved, problem, found.manifest, links)


def _measure(folder: Path) -> tuple[int, float]:
    """Return the bytes in all, and when the folder was last changed.

    Both are zero if an active run has just removed it.
    """
    with suppress(OSError):
        files = [found.st_size for found in tree(folder).values() if stat.S_ISREG(found.st_mode)]
        return sum(files), folder.lstat().st_mtime
    return 0, 0.0


def _cells(row: Row) -> tuple[str, ...]:
    age = duration(max(0.0, time.time() - row.saved)) if row.saved else ""
    checked = row.manifest is not None and row.manifest.finite
    state = f"bad: {clean(row.problem)}" if row.problem else "good" if checked else "good, if its weights are finite"
    metrics = row.manifest.metrics if row.manifest else {}
    shown = [f"{clean(name)} {number(metrics[name])}" for name in sorted(metrics)[:_METRICS]]
    more = len(metrics) - len(shown)
    links = f" ({clean(', '.join(row.links))})" if row.links else ""
    return f"{row.step}{links}", size(row.size), age, state, "  ".join(shown) + (f"  and {more} more" if more else "")


def _answer(paths: RunPaths, rows: Sequence[Row], aside: Sequence[Path], *, full: bool) -> dict[str, Any]:
    return {
        "version": options.JSON_VERSION,
        "run": paths.run_id,
        "verified": full,
        "checkpoints": [row.to_json() for row in rows],
        "put_aside": [str(path) for path in aside],
    }


def _refuse_without_export(chosen: dict[str, Any]) -> None:
    if chosen["step"] is not None or chosen["force"]:
        raise UsageError("--step and --force are options of --export; add --export FILE")


def _export(paths: RunPaths, out: Path, *, step: int | None, force: bool, as_json: bool) -> None:
    if os.path.lexists(out) and not force:
        raise UsageError(f"{out}: the file exists; --force overwrites it")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    checkpoint = named(paths.root if step is None else _of_step(paths, step))
    if step is None:
        _tell_of_newer(paths, checkpoint)
    _run_export(checkpoint, out, force=force)
    if as_json:
        answer = {"version": options.JSON_VERSION, "run": paths.run_id, "checkpoint": str(checkpoint)}
        echo(json.dumps({**answer, "exported": str(out.resolve()), "size": out.stat().st_size}, indent=2))
    else:
        echo(f"{out}: {size(out.stat().st_size)}, the weights of {checkpoint.name}")


def _of_step(paths: RunPaths, step: int) -> Path:
    there = {found.step: found.path for found in scan(paths.checkpoints)}
    if step not in there:
        known = ", ".join(map(str, sorted(there))) or "none"
        raise UsageError(f"{paths.run_id} has no checkpoint of step {step}; it has those of: {known}")
    return there[step]


def _tell_of_newer(paths: RunPaths, checkpoint: Path) -> None:
    chosen = step_of(checkpoint.name) or 0
    newer = [found.path.name for found in scan(paths.checkpoints) if found.step > chosen]
    if newer:
        echo(f"not good, and skipped: {', '.join(newer)}; --verify shows why", err=True)


def _run_export(checkpoint: Path, out: Path, *, force: bool) -> None:
    # -P: a file called torch.py in the folder that the command is called from must not be imported.
    command = [*PYTHON, "-m", "trainrun.worker.checkpoint.export", str(checkpoint), str(out.resolve())]
    done = subprocess.run(
        [*command, *(["--force"] if force else [])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode == ExitCode.OK:
        return
    said = done.stderr.decode(errors="replace").strip()
    last = clean(said.rpartition("\n")[2]) or "it said nothing"
    if done.returncode == ExitCode.USAGE:
        raise UsageError(last)
    ending = "" if done.returncode == ExitCode.ENVIRONMENT else f"the export ended with code {done.returncode}: "
    raise EnvironmentProblem(f"{ending}{last}")
