"""`trainrun sync`: send trackers what they could not be sent while a run was active."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from trainrun.cli import options
from trainrun.cli.echo import echo
from trainrun.errors import EnvironmentProblem, UsageError
from trainrun.launch.frozen import read_frozen
from trainrun.plugin.instance import Instance
from trainrun.recipe.schema import RESERVED
from trainrun.recipe.secret import REDACTED
from trainrun.rundir.create import find_own
from trainrun.rundir.files import read_json
from trainrun.rundir.lease import held
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.summary import last_attempt, read_outcome
from trainrun.tracking.cursor import trackers
from trainrun.tracking.delivery import Delivery, TrackerProcess
from trainrun.tracking.process import Order


@click.command("sync")
@options.run
@options.base
@click.option(
    "--tracker",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="Send only to this tracker, by its table in the recipe. May be repeated.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Time limit in seconds per tracker.",
)
@options.as_json
def command(*, run: str, base: Path, chosen: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Upload metrics that the trackers of RUN have missed.

    Use it after an outage, or if the client was killed. Records that a tracker already has are not sent again. Exits
    with 4 if a tracker still cannot be reached.

    RUN is an id, a part of one, a path, or `latest`. It must have ended.
    """
    paths = find_own(run, base, "sync")
    owner = held(paths)
    if owner is not None:
        raise UsageError(f"{paths.run_id}: the run has not ended, and sends to its trackers itself ({owner})")
    deliveries = [_send(paths, instance, timeout) for instance in _instances(paths, chosen)]
    if as_json:
        rows = [{**one._asdict(), "complete": _complete(paths, one)} for one in deliveries]
        echo(json.dumps({"version": options.JSON_VERSION, "run": paths.run_id, "trackers": rows}, indent=2))
    else:
        for one in deliveries:
            echo(f"{one.name}: {one}")
    lacking = [one.name for one in deliveries if not _complete(paths, one)]
    if lacking:
        raise EnvironmentProblem(f"{', '.join(lacking)}: not everything could be sent; try again later")


def _send(paths: RunPaths, instance: Instance, timeout: float) -> Delivery:
    delivery = Delivery.read(paths, instance.name)
    if _complete(paths, delivery):
        return delivery
    order = Order(str(paths.root), instance, last_attempt(paths) > 1, 1.0, timeout)
    process = TrackerProcess(paths, order)
    process.end(read_outcome(paths))
    return process.join()


def _complete(paths: RunPaths, delivery: Delivery) -> bool:
    """Return whether nothing is left to send.

    If its client was killed, no outcome was recorded.
    """
    return delivery.complete or (not delivery.left and read_outcome(paths) is None)


def _instances(paths: RunPaths, chosen: tuple[str, ...]) -> Iterator[Instance]:
    names = trackers(paths)
    if unknown := [name for name in chosen if name not in names]:
        raise UsageError(f"--tracker {unknown[0]}: {paths.run_id} has these trackers: {', '.join(names) or 'none'}")
    if not names:
        raise UsageError(f"{paths.run_id}: it was launched without a tracker")
    listed = (read_json(paths.manifest) or {}).get("instances") or []
    known = {instance.name: instance for instance in map(Instance.from_json, listed)}
    for name in chosen or names:
        if name not in known:
            raise EnvironmentProblem(f"{paths.manifest}: does not say what the tracker {name} is")
        yield _with_secrets(paths, known[name])


def _with_secrets(paths: RunPaths, instance: Instance) -> Instance:
    """Return the instance with the options that the run directory leaves out.

    Raises RecipeError if they are missing.
    """
    if REDACTED not in json.dumps(dict(instance.options), default=str):
        return instance
    table = read_frozen(paths).data["plugins"][instance.name]
    return replace(instance, options={key: value for key, value in table.items() if key not in RESERVED})
