"""`trainrun smoke`: CI's command. A few steps with everything on, on two CPU workers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainrun.cli import options

if TYPE_CHECKING:
    from trainrun.plugin.resolve import Resolved
    from trainrun.rundir.records import Outcome

WORKERS = 2

_CHECK = "smoke-check"
_TARGET = "trainrun.builtin.smoke:SmokeCheck"
_FIXED = (
    'launch.backend="local"',
    "launch.nodes=1",
    f"launch.workers={WORKERS}",
    'train.device="cpu"',
    "train.log_every=1",
    f'plugins.{_CHECK}.use="{_TARGET}"',
)


@click.command("smoke")
@click.argument("recipe", metavar="RECIPE")
@options.override
@options.plugin
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="How many steps to make.")
@options.refresh
def command(*, recipe: str, overrides: tuple[str, ...], plugins: tuple[str, ...], steps: int, refresh: bool) -> None:
    """Try RECIPE with everything on: a few steps on 2 CPU workers, with evaluation and all its plugins.

    The parameters of both workers must be equal at the end. The run's folder is temporary, and
    kept only after a failure. Exit codes are those of `trainrun launch`.
    """
    from trainrun.launch.launch import launch  # noqa: PLC0415 - help should not pay for it
    from trainrun.plugin.resolve import resolve  # noqa: PLC0415

    settings = [*_FIXED, f"evaluate.every={steps if steps % 2 else steps // 2}"]
    resolved = resolve(recipe, [*settings, *overrides], plugins, refresh=refresh)
    settings += [_limit(resolved, steps), *overrides]
    folder = Path(tempfile.mkdtemp(prefix="trainrun-smoke-"))
    try:
        outcome = launch(recipe, settings, plugins, dir=folder, quiet=True)
    except BaseException:
        _remove_unused(folder)
        raise
    click.echo("\n".join(_report(outcome, resolved)))
    if outcome.exit_code == 0:
        shutil.rmtree(folder)
    raise click.exceptions.Exit(outcome.exit_code)


def _limit(resolved: Resolved, steps: int) -> str:
    """A recipe that counts epochs cannot count steps too: there the check votes to stop."""
    by_epochs = resolved.data.get("train", {}).get("epochs") is not None
    return f"plugins.{_CHECK}.steps={steps}" if by_epochs else f"train.steps={steps}"


def _remove_unused(folder: Path) -> None:
    """Where nothing was started there is nothing to look at."""
    if not any(folder.iterdir()):
        folder.rmdir()


def _report(outcome: Outcome, resolved: Resolved) -> Iterator[str]:
    from trainrun.launch import closing  # noqa: PLC0415
    from trainrun.rundir.files import read_json  # noqa: PLC0415
    from trainrun.rundir.paths import RunPaths  # noqa: PLC0415

    status = read_json(RunPaths(Path(outcome.run)).status) or {}
    if outcome.exit_code == 0:
        yield f"ok: {outcome.step} steps on {WORKERS} CPU workers, and the same parameters on both"
        yield from closing.faults(RunPaths(Path(outcome.run)))
    else:
        yield from filter(None, [closing.trace(outcome)])
        yield from closing.lines(outcome)
        yield f"the folder is kept: {outcome.run}"
    yield from exercised(resolved, status.get("cost") or [])


def exercised(resolved: Resolved, cost: Sequence[dict[str, Any]]) -> Iterator[str]:
    """For the task and each plugin, which of its hooks rank 0 called, how often, and which never."""
    called = {(row["instance"], row["hook"]): row["calls"] for row in cost if row["calls"]}
    for instance in resolved.instances:
        if instance.role == "builtin" or instance.name == _CHECK:
            continue
        impls = resolved.descriptions[instance.target].impls
        hooks = [impl.hook for impl in impls if resolved.specs[impl.hook].locus != "client"]
        counts = [f"{hook} {called[instance.name, hook]}" for hook in hooks if (instance.name, hook) in called]
        never = [hook for hook in hooks if (instance.name, hook) not in called]
        yield f"{instance.name}: {', '.join(counts) or 'no hook was called'}"
        if never:
            yield f"  not called: {', '.join(never)}"
